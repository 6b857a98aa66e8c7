"""BYOL: bootstrap your own latent (arXiv 2006.07733).

The student predicts the teacher's projection of another view; there are no negatives.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..schedule import cosine_momentum
from .heads import Branch, mlp
from .losses import cosine_loss
from .method import Losses, check_config
from .momentum_teacher import make_teacher, update_teacher


class BYOL(nn.Module):
    """L = sum over both directions of the mean of 2 - 2 cos(q(g(f(x_u))), g_t(f_t(x_v)))."""

    name = "byol"
    paper = "arXiv:2006.07733"
    norm_sync = "sync"  # over several processes, as the authors' GPUs

    @dataclass(frozen=True)
    class Config:
        """Defaults: the authors' ImageNet values for 100 epochs."""

        projection_width: int = 256  # output of projector and predictor
        hidden_width: int = 4096  # of both
        teacher_momentum: float = 0.99  # at the start; a cosine takes it to 1
        blur: bool = True  # in the views; solo-learn leaves it out on CIFAR
        wide_crops: bool = True  # of 0.08 to 1 of the area, as the authors; False: of 0.2 to 1
        zero_init_last: bool = True  # `build_method` starts residuals' last norms at 0, timm's way
        eval_interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # of evaluations

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.view_recipe = "byol" if c.wide_crops else "asymmetric"
        self.view_recipe += "" if c.blur else "_sharp"
        width = c.projection_width
        self.student = Branch(backbone, c.hidden_width, width, norm=True)
        self.teacher = make_teacher(self.student)
        self.student.predictor = mlp(width, c.hidden_width, width, norm=True)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, 0 to 8. Student and teacher see both views, (N, 3, H, W) each."""
        first, second = views
        prediction1 = self.student.predictor(self.student(first)).float()  # (N, P)
        prediction2 = self.student.predictor(self.student(second)).float()
        with torch.no_grad():
            target1 = self.teacher(first)  # (N, P)
            target2 = self.teacher(second)
        return {"loss": cosine_loss(prediction1, target2) + cosine_loss(prediction2, target1)}

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student."""
        momentum = cosine_momentum(self.config.teacher_momentum, progress)
        update_teacher(self.teacher, self.student, momentum)
