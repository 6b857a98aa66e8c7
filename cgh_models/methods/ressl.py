"""ReSSL: relational self-supervised learning with weak augmentation (arXiv 2107.09282).

The teacher relates a weak view to a queue, sharply; the student learns the same relations from a strong view.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbone import check_sizes, input_size
from ..view_recipes import SMALL
from .feature_queue import FeatureQueue
from .heads import Branch, mlp
from .losses import relation_losses
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher, teach


class ReSSL(nn.Module):
    """L = H(softmax(t.Q / teacher_temperature), softmax(s.Q / student_temperature)), one direction only."""

    name = "ressl"
    paper = "arXiv:2107.09282"
    exempt_names = ("bn", "bias")  # the authors' rule for what is not decayed

    @dataclass(frozen=True)
    class Config:
        """Defaults: the authors' ImageNet values."""

        projection_width: int = 512  # output of the projector
        hidden_width: int = 4096  # of the projector
        queue_length: int = 131072  # past teacher projections that the relations are taken to
        teacher_momentum: float = 0.999  # the teacher keeps this share of itself every step
        teacher_temperature: float = 0.04  # sharper than the student's: relations, not copies
        student_temperature: float = 0.1
        batch_norm_splits: int = 1  # parts with their own batch statistics; the release uses 8 on one GPU, shuffled
        multi_crop: bool = False  # four more, smaller views for the student; the loss is the mean over all five

        def __post_init__(self):
            check_config(self)

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        if c.multi_crop:
            check_sizes(backbone, [view.side(input_size(backbone)[0]) for view in SMALL], "multi_crop=True")
        self.student = Branch(backbone, lambda width: mlp(width, c.hidden_width, c.projection_width))
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width)

    @property
    def view_recipe(self) -> str:
        return "multi_crop" if self.config.multi_crop else "weak_strong"

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats.

        Args:
            views: [weak, strong, small...], (N, 3, H, W): the weak one goes to the teacher, the others to the student.
            progress: unused, the objective does not change over the run.
        """
        weak, *strong = views
        c = self.config
        students = torch.cat([self.student.unit(view, c.batch_norm_splits) for view in strong])  # (views N, P)
        teacher = teach(self.teacher.unit, weak, c.batch_norm_splits)  # (N, P)
        hot, cold = c.student_temperature, c.teacher_temperature
        (loss,) = relation_losses([students], [teacher], self.queue.rows, [hot], [cold])
        self.queue.hold(teacher)
        return {"loss": loss}

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student and the batch's teacher projections into the queue."""
        move_teacher(self.teacher, self.student, self.config.teacher_momentum)
        self.queue.push(finite)
