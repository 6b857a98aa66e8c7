"""ReSSL: relational self-supervised learning with weak augmentation (arXiv 2107.09282).

The teacher relates a weak view to a queue, sharply; the student learns the same from a strong one.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..backbone import check_views
from ..view_recipes import SMALL
from .feature_queue import FeatureQueue
from .heads import Branch
from .losses import relation_loss
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher_and_queue, teacher_forward


class ReSSL(nn.Module):
    """L = H(softmax(t.Q / teacher_temperature), softmax(s.Q / student_temperature))."""

    name = "ressl"
    paper = "arXiv:2107.09282"
    norm_sync = "shuffle"  # over several processes, as the authors' GPUs
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
        batch_norm_splits: int = 1  # parts with their own batch statistics; 8 in the release
        multi_crop: bool = False  # four more, smaller views for the student, in the same mean
        zero_init_last: bool = False  # `build_method` starts residuals' last norms at 1, as theirs
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # the authors' evaluation

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.view_recipe = "multi_crop" if c.multi_crop else "weak_strong"
        if c.multi_crop:
            check_views(backbone, SMALL, "multi_crop=True")
        self.student = Branch(backbone, c.hidden_width, c.projection_width)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats. Views: [weak, strong, small...], (N, 3, H, W) each.

        The teacher sees the weak one, the student the others; the loss is the mean over them.
        """
        c = self.config
        weak, *others = views
        splits, processes = c.batch_norm_splits, self.queue.processes
        projections = [self.student.normalized(view, splits) for view in others]
        student = torch.cat(projections)  # (views N, P)
        teacher = teacher_forward(self.teacher.normalized, weak, splits, processes)  # (N, P)
        queue = self.queue.rows[0]  # (K, P)
        loss = relation_loss(student, teacher, queue, c.student_temperature, c.teacher_temperature)
        self.queue.collect(teacher)
        return {"loss": loss}

    after_step = move_teacher_and_queue
