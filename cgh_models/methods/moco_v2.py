"""MoCo v2: momentum contrast with a projector (arXiv 2003.04297; MoCo: 1911.05722).

The student's view of an image has to find the teacher's among a queue of other images.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .feature_queue import FeatureQueue
from .heads import Branch
from .losses import info_nce
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher_and_queue, teacher_forward


class MoCoV2(nn.Module):
    """L = InfoNCE(s(x1), t(x2), queue); symmetric: the mean of both directions.

    Differs from the authors' code: batch-norm statistics are a whole batch's, not those of 8
    shuffled parts, unless ``batch_norm_splits`` says so (the recipe `cifar` does).
    """

    name = "moco_v2"
    paper = "arXiv:2003.04297"
    norm_sync = "shuffle"  # over several processes, as the authors' GPUs
    exempt_names = ()  # the authors decay everything

    @dataclass(frozen=True)
    class Config:
        """Defaults: the authors' ImageNet values."""

        projection_width: int = 128  # output of the projector
        hidden_width: int = 2048  # of the projector: a ResNet-50's own width
        queue_length: int = 65536  # past teacher projections, the negatives
        teacher_momentum: float = 0.999  # the teacher keeps this share of itself every step
        temperature: float = 0.2  # 0.1 on small images
        symmetric: bool = False  # both directions, at twice the cost (the authors' CIFAR demo)
        batch_norm_splits: int = 1  # parts with their own batch statistics: the authors' 8 GPUs
        blur: bool = True  # in the views; not in the authors' CIFAR demo
        wide_crops: bool = False  # of 0.08 to 1 of the area: the authors' CIFAR demo
        zero_init_last: bool = False  # `build_method` starts residuals' last norms at 1, as theirs
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # the authors' evaluation

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.view_recipe = "two_wide" if c.wide_crops else "two_strong"
        self.view_recipe += "" if c.blur else "_sharp"
        self.student = Branch(backbone, c.hidden_width, c.projection_width)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats. Views: two strong ones, (N, 3, H, W) each.

        The student sees the first, the teacher the second; symmetric: both see and queue both.
        """
        c = self.config
        splits, processes = c.batch_norm_splits, self.queue.processes
        pairs = [views, views[::-1]] if c.symmetric else [views]
        losses, projections = [], []
        for student_view, teacher_view in pairs:
            student = self.student.normalized(student_view, splits)  # (N, P)
            teacher = teacher_forward(self.teacher.normalized, teacher_view, splits, processes)
            losses.append(info_nce(student, teacher, self.queue.rows[0], c.temperature))
            projections.append(teacher)
        self.queue.collect(torch.cat(projections))
        return {"loss": torch.stack(losses).mean()}

    after_step = move_teacher_and_queue
