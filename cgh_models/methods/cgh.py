"""CGH: cross-context learning between global and hypercolumn features (arXiv 2308.13392), on ReSSL.

An image has two contexts: its pooled embedding (global), and its deepest feature maps resized and
stacked (hypercolumn). Each context has its own projector and its own queue, index-aligned. The
teacher's relations in one context are the student's target in the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import check_views, count_parts, embed, stack_maps, widths
from ..view_recipes import SMALL
from .feature_queue import FeatureQueue
from .heads import mlp
from .losses import crossed_relation_losses, info_nce
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher_and_queue, teacher_forward


class Hypercolumn(nn.Module):
    """Maps [(N, C, h, w)], shallow to deep -> (N, D): resized to the deepest, stacked, pooled.

    Resized as the authors do, see `stack_maps`.
    """

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.conv = nn.Conv2d(sum(channels), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return F.relu(self.norm(self.conv(stack_maps(maps)))).mean((2, 3))


class TwoContexts(nn.Module):
    """Backbone with both heads: images -> global and hypercolumn unit projections, (N, P) each."""

    passes = ("forward", "global_projection")

    def __init__(self, backbone: nn.Module, config: "CGH.Config"):
        super().__init__()
        self.backbone = backbone
        self.taps = config.taps
        self.split_hypercolumn = config.split_hypercolumn
        width, channels = widths(backbone, config.taps)
        self.projector = mlp(width, config.hidden_width, config.projection_width)
        self.hypercolumn = Hypercolumn(channels, width)
        self.hyper_projector = mlp(width, config.hidden_width, config.projection_width)

    def forward(self, images: Tensor, splits: int) -> tuple[Tensor, Tensor]:
        embedding, maps = embed(self.backbone, images, self.taps, splits)
        projection = F.normalize(self.projector(embedding).float())
        hyper = F.normalize(self.hyper_projector(self._pooled(maps, splits)).float())
        return projection, hyper

    def _pooled(self, maps: list[Tensor], splits: int) -> Tensor:
        if splits == 1 or not self.split_hypercolumn:
            return self.hypercolumn(maps)
        pieces = list(zip(*(m.tensor_split(splits) for m in maps), strict=True))
        parts = [self.hypercolumn(pieces[part]) for part in count_parts(self.hypercolumn, splits)]
        return torch.cat(parts)

    def global_projection(self, images: Tensor, splits: int) -> Tensor:
        """The global projection alone."""
        embedding, _ = embed(self.backbone, images, splits=splits)
        return F.normalize(self.projector(embedding).float())


class CGH(nn.Module):
    """L = (H(global teacher, hypercolumn student) + H(hypercolumn teacher, global student)) / 2.

    Over the first ``warmup`` of the run two InfoNCE losses (a sum, not a mean) fade out linearly
    while L fades in: the queues mean little before they have filled.
    """

    name = "cgh"
    paper = "arXiv:2308.13392"
    norm_sync = "shuffle"  # over several processes, as the authors' GPUs
    exempt_names = ("bn", "bias")  # the authors' rule for what is not decayed
    fading = ("info_nce", "hyper_info_nce")  # losses of the warm-up alone

    @dataclass(frozen=True)
    class Config:
        """Defaults: the one ImageNet config that the authors released.

        Differs from the authors' code: the global temperatures are fields, not fixed in the loss;
        batch norms see the whole batch, not eight parts of it.
        """

        projection_width: int = 512  # output of both projectors
        hidden_width: int = 4096  # of both projectors
        queue_length: int = 131072  # past teacher projections per context
        teacher_momentum: float = 0.999  # the teacher keeps this share of itself every step
        taps: int = 2  # deepest feature maps in the hypercolumn: a ResNet's layer3 and layer4
        global_teacher_temperature: float = 0.04  # its relations teach the hypercolumn student
        global_student_temperature: float = 0.1  # learns from the hypercolumn teacher
        hyper_teacher_temperature: float = 0.08
        hyper_student_temperature: float = 0.08
        warmup: float = 0.025  # share of the run that starts on InfoNCE: 5 epochs of 200
        warmup_temperature: float = 0.2  # of both InfoNCE losses
        batch_norm_splits: int = 1  # parts with their own batch statistics; 8 in the release
        split_hypercolumn: bool = True  # its norm sees the same parts, as on that many GPUs
        multi_crop: bool = False  # four more, smaller views for the global student
        zero_init_last: bool = False  # `build_method` starts residuals' last norms at 1, as theirs
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # the authors' evaluation

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.view_recipe = "multi_crop" if c.multi_crop else "weak_strong"
        if c.multi_crop:
            check_views(backbone, SMALL, "multi_crop=True")
        self.student = TwoContexts(backbone, c)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width, count=2)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """The crossed losses and, during the warm-up, both InfoNCE losses; all in nats.

        Views: [weak, strong, small...], (N, 3, H, W) each. The teacher sees the weak one, the
        student the strong one and its global context also the small ones: a mean over all five.
        """
        c = self.config
        splits, processes = c.batch_norm_splits, self.queue.processes
        weak, strong, *small = views
        student, student_hyper = self.student(strong, splits)  # (N, P) each
        teacher, teacher_hyper = teacher_forward(self.teacher, weak, splits, processes)
        small_students = [self.student.global_projection(view, splits) for view in small]
        self.queue.collect(teacher, teacher_hyper)

        hyper_to_global, global_to_hyper = crossed_relation_losses(
            students=(torch.cat([student, *small_students]), student_hyper),
            teachers=(teacher, teacher_hyper),
            queues=self.queue.rows,  # (2, K, P)
            student_temperatures=(c.global_student_temperature, c.hyper_student_temperature),
            teacher_temperatures=(c.global_teacher_temperature, c.hyper_teacher_temperature),
        )
        loss = 0.5 * (global_to_hyper + hyper_to_global)
        losses = {"global_to_hyper": global_to_hyper, "hyper_to_global": hyper_to_global}
        if progress >= c.warmup:
            return losses | {"loss": loss}

        queue, hyper_queue = self.queue.rows
        start = info_nce(student, teacher, queue, c.warmup_temperature)
        hyper_start = info_nce(student_hyper, teacher_hyper, hyper_queue, c.warmup_temperature)
        share = progress / c.warmup
        loss = (1 - share) * (start + hyper_start) + share * loss
        return losses | {"loss": loss, "info_nce": start, "hyper_info_nce": hyper_start}

    after_step = move_teacher_and_queue
