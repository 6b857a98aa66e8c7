"""SCE: similarity contrastive estimation (arXiv 2111.14585), between InfoNCE and ReSSL.

The student finds the teacher's projection of its image among a queue, as in MoCo, and relates
itself to the queue as the teacher does, as in ReSSL.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .feature_queue import FeatureQueue
from .heads import Branch
from .losses import Relations
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher_and_queue, teacher_forward


def similarity_contrast(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    contrast: float,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Mean of - w_t log p_t - sum_k w_k log p_k, in nats, over the positive t and the queue:

        p = softmax(s.[t, Q] / student_temperature)
        w_t = contrast,    w_k = (1 - contrast) * softmax(t.Q / teacher_temperature)_k

    Args:
        student, teacher: (N, P) unit vectors s and t, in rows of the same image.
        queue: (K, P) unit vectors; the positive is not among them.
        contrast: the paper's lambda, 0 to 1; with 1 this is `info_nce`.
        student_temperature, teacher_temperature: at least `MIN_TEMPERATURE`.

    Source: SCE (arXiv 2111.14585).
    """
    n, positive = len(teacher), teacher.detach()
    relations = Relations(student, teacher, queue, student_temperature, teacher_temperature)
    relations.stream(queue)
    relations.add_positive(positive)
    related = relations.mixtures[:n] / relations.sums[:n]
    target = contrast * (positive - relations.reference) + (1 - contrast) * related
    return relations.cross_entropy(target)


class SCE(nn.Module):
    """L = similarity_contrast(s(strong view), t(weak view), queue): the authors' CIFAR-10 run.

    Their ImageNet run differs: two views of MoCo v3, each a student's and a teacher's, a projector
    of three layers, a predictor, synchronized batch norms, and a momentum that rises.
    """

    name = "sce"
    paper = "arXiv:2111.14585"
    norm_sync = "shuffle"  # over several processes; the authors' default
    exempt_names = ()  # the authors decay everything

    @dataclass(frozen=True)
    class Config:
        """Defaults: of the authors' published settings, ImageNet's where they fit this form."""

        projection_width: int = 256  # output of the projector: ImageNet
        hidden_width: int = 2048  # of the projector, with a batch norm: ImageNet
        queue_length: int = 65536  # past teacher projections: ImageNet
        teacher_momentum: float = 0.999  # their default; on ImageNet it rises from 0.99 to 1
        contrast: float = 0.5  # the paper's lambda: share of the target that is the positive's
        teacher_temperature: float = 0.05  # CIFAR-10; 0.07 on ImageNet, where it sees strong views
        student_temperature: float = 0.1  # both
        batch_norm_splits: int = 1  # parts of the backbone's batch statistics; 8 on CIFAR-10
        zero_init_last: bool = False  # `build_method` starts residuals' last norms at 1: ours
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # ours

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.view_recipe = "weak_strong"
        self.student = Branch(backbone, c.hidden_width, c.projection_width, norm=True)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats. Views: [weak, strong], (N, 3, H, W) each.

        The teacher sees the weak one, the student the strong one.
        """
        c = self.config
        weak, strong = views
        splits, processes = c.batch_norm_splits, self.queue.processes
        student = self.student.normalized(strong, splits)  # (N, P)
        teacher = teacher_forward(self.teacher.normalized, weak, splits, processes)  # (N, P)
        queue = self.queue.rows[0]  # (K, P)
        temperatures = c.student_temperature, c.teacher_temperature
        loss = similarity_contrast(student, teacher, queue, c.contrast, *temperatures)
        self.queue.collect(teacher)
        return {"loss": loss}

    after_step = move_teacher_and_queue
