"""ReSSL: relational self-supervised learning with weak augmentation (arXiv 2107.09282).

The teacher relates a weak view to a queue, sharply; the student learns the same relations from a strong view.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import embed, widths
from ..feature_queue import FeatureQueue
from ..heads import mlp
from ..losses import relation_loss, soft_target
from ..method import Losses, check_config
from ..teacher import make_teacher, move_teacher


class Branch(nn.Module):
    """Backbone and projector: images (N, 3, H, W) -> unit projections (N, P) in float32."""

    def __init__(self, backbone: nn.Module, config: "ReSSL.Config"):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(widths(backbone)[0], config.hidden_width, config.projection_width)

    def forward(self, images: Tensor, splits: int) -> Tensor:
        embedding, _ = embed(self.backbone, images, splits=splits)
        return F.normalize(self.projector(embedding).float())


class ReSSL(nn.Module):
    """L = H(softmax(t.Q / teacher_temperature), softmax(s.Q / student_temperature)), one direction only."""

    name = "ressl"
    paper = "arXiv:2107.09282"
    view_recipe = "weak_strong"

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

        def __post_init__(self):
            check_config(self)

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = config or self.Config()
        self.student = Branch(backbone, self.config)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(self.config.queue_length, self.config.projection_width)
        self._pending: Tensor | None = None

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats.

        Args:
            views: [weak, strong], each (N, 3, H, W): the weak one goes to the teacher, the strong one to the student.
            progress: unused, the objective does not change over the run.
        """
        weak, strong = views
        student = self.student(strong, self.config.batch_norm_splits)  # (N, P)
        with torch.no_grad():
            teacher = self._teach(weak)  # (N, P)
        queue = self.queue.rows[0]  # (K, P)
        target = soft_target(teacher, queue, queue, self.config.teacher_temperature)
        self._pending = teacher
        return {"loss": relation_loss(student, target, queue, self.config.student_temperature)}

    def _teach(self, images: Tensor) -> Tensor:
        """Teacher projections; split statistics are taken over shuffled parts so that they leak no pairing."""
        splits = self.config.batch_norm_splits
        if splits == 1:
            return self.teacher(images, splits)
        order = torch.randperm(images.shape[0], device=images.device)
        return self.teacher(images[order], splits)[order.argsort()]

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student and the batch's teacher projections into the queue."""
        move_teacher(self.teacher, self.student, self.config.teacher_momentum)
        if self._pending is not None:
            self.queue.push(self._pending, finite=finite)
            self._pending = None
