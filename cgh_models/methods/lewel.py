"""LEWEL: learning where to learn in cross-view self-supervised learning (arXiv 2203.14898).

One projection serves the pooled embedding and every pixel of the deepest map. What it gives at the pixels is, softmaxed
over them, a set of alignment maps: weights with which the map is pooled again, into aligned embeddings that have a loss
of their own. `LEWEL` is the paper's LEWEL_B, on BYOL; `LEWELM` is our reconstruction of its LEWEL_M, on MoCo v2.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import architecture, embed_with_pixels, input_size, widths
from ..errors import InputError
from ..schedule import cosine_momentum
from .feature_queue import FeatureQueue
from .heads import mlp
from .losses import batch_info_nce, cosine_loss, info_nce
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher


class AlignedBranch(nn.Module):
    """Backbone, coupled projector, aligned projector: images (N, 3, H, W) -> z (N, P) and aligned (N, P / heads, P).

    The pooled vector is timm's embedding (N, D): of a ResNet the mean of the map's pixels. Where those are not as wide
    as the embedding (MobileNetV3 widens it after the pooling) a linear layer of ours widens them first. A ConvNeXt
    normalizes its embedding and not the pixels. All in float32.
    """

    def __init__(self, backbone: nn.Module, config: Any):
        super().__init__()
        width, channels = _widths(backbone)
        common = math.gcd(width, config.projection_width)
        if common % config.heads:
            raise InputError(
                f"heads={config.heads}: has to divide the embedding's width ({width} of {architecture(backbone)}) and "
                f"projection_width={config.projection_width}; "
                f"give --set heads={max(h for h in range(1, config.heads) if common % h == 0)}"
            )
        self.backbone = backbone
        self.heads, self.map_temperature = config.heads, config.map_temperature
        self.widen = nn.Identity() if channels == width else nn.Linear(channels, width, bias=False)
        self.projector = _head(width, config.hidden_width, config.projection_width)
        self.aligned_projector = _head(width, config.hidden_width, config.projection_width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z, pixels, weights, _ = self.coupled(images)
        heads = pixels.unflatten(2, (self.heads, -1))  # (N, pixels, heads, D / heads)
        aligned = torch.einsum("nphm,nphc->nmhc", weights, heads).flatten(2)  # (N, M, D)
        projected = self.aligned_projector(aligned.flatten(0, 1)).unflatten(0, aligned.shape[:2])  # (N, M, P)
        return z.float(), projected.float()

    def coupled(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
        """z (N, P), pixels (N, pixels, D), alignment maps (N, pixels, heads, P / heads), the map's height and width.

        Batch norm sees the pooled vector and the pixels as one batch.
        """
        embedding, pixels, size = embed_with_pixels(self.backbone, images)
        pixels = self.widen(pixels)  # (N, pixels, D)
        rows = torch.cat([embedding[:, None], pixels], 1)  # (N, 1 + pixels, D)
        projected = self.projector(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])  # (N, 1 + pixels, P)
        scores = F.normalize(projected[:, 1:].float(), dim=2) / self.map_temperature
        return projected[:, 0], pixels, scores.softmax(1).unflatten(2, (self.heads, -1)), size


@torch.no_grad()
def _widths(backbone: nn.Module) -> tuple[int, int]:
    """Of the embedding and of the pixels it is pooled from."""
    width, _ = widths(backbone, 1)
    training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval()
    _, pixels, _ = embed_with_pixels(backbone, torch.zeros(1, 3, *input_size(backbone), device=device))
    backbone.train(training)
    return width, pixels.shape[2]


def _head(*sizes: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear, without biases, initialized as the authors do."""
    head = mlp(*sizes, norm=True, last_bias=False)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return head


@torch.no_grad()
def alignment_maps(model: "LEWEL | LEWELM", images: Tensor) -> Tensor:
    """Where each aligned embedding looks: (N, heads, P / heads, h, w), each map summing to 1.

    Args:
        model: a LEWEL method, e.g. from `load_method`; its student is used, in eval mode.
        images: (N, 3, H, W), normalized.
    """
    training = model.training
    model.eval()
    try:
        _, _, weights, size = model.student.coupled(images)
    finally:
        model.train(training)
    return weights.permute(0, 2, 3, 1).unflatten(3, size)


def _check(config: Any) -> None:
    check_config(config)
    if not 0 <= config.global_weight <= 1:  # a share: the aligned loss has the rest
        raise InputError(f"global_weight={config.global_weight}: at least 0 and at most 1 is needed")


class LEWEL(nn.Module):
    """LEWEL_B: L = sum over both directions of w l(q(z_u), z'_v) + (1 - w) l(q_a(A_u), A'_v), l = mean of 2 - 2 cos.

    The aligned embedding k of one view is compared with the k-th of the other; w is ``global_weight``.

    Differs from the authors' code: the learning rate follows its cosine every step, not every epoch.
    """

    name = "lewel"
    paper = "arXiv:2203.14898"
    exempt_names = ("bias", "bn", "downsample.1")  # the authors' rule: norms of the heads are decayed

    @dataclass(frozen=True)
    class Config:
        """Defaults: the authors' EMAN runs on ImageNet (100 and 200 epochs)."""

        projection_width: int = 256  # output of projectors and predictors
        hidden_width: int = 4096  # of them all
        heads: int = 4  # groups of channels with maps of their own: projection_width / heads aligned embeddings
        map_temperature: float = 1.0  # of the alignment maps' softmax over unit pixel vectors: almost uniform at first
        global_weight: float = 0.5  # of the global loss; the aligned one has the rest
        teacher_momentum: float = 0.98  # at the start; a cosine takes it to 1. 0.996 in the 400-epoch run
        average_norms: bool = True  # EMAN: the teacher, in eval mode, takes over statistics; False: each batch's own
        blur: bool = True  # in the views

        def __post_init__(self):
            _check(self)

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.student: Any = AlignedBranch(backbone, c)
        self.teacher = make_teacher(self.student)
        self.student.predictor = _head(c.projection_width, c.hidden_width, c.projection_width)
        self.student.aligned_predictor = _head(c.projection_width, c.hidden_width, c.projection_width)
        self.train()

    @property
    def view_recipe(self) -> str:
        return "asymmetric" if self.config.blur else "asymmetric_sharp"

    def train(self, mode: bool = True) -> "LEWEL":
        """The teacher stays in eval mode where its statistics follow the student's."""
        super().train(mode)
        if self.config.average_norms:
            self.teacher.eval()
        return self

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """The global and the aligned loss, each 0 to 8 (sums of two squared distances between unit vectors).

        Args:
            views: two views, (N, 3, H, W) each; student and teacher see both.
            progress: unused, the objective does not change over the run.
        """
        students = [self.student(view) for view in views]
        with torch.no_grad():
            teachers = [self.teacher(view) for view in views]
        whole, aligned = [], []
        for (z, a), (z_target, a_target) in zip(students, reversed(teachers), strict=True):
            whole.append(cosine_loss(self.student.predictor(z).float(), z_target))
            predicted = self.student.aligned_predictor(a.flatten(0, 1)).float()  # (N M, P)
            aligned.append(cosine_loss(predicted, a_target.flatten(0, 1)))
        losses = {"global": torch.stack(whole).sum(), "aligned": torch.stack(aligned).sum()}
        w = self.config.global_weight
        return losses | {"loss": w * losses["global"] + (1 - w) * losses["aligned"]}

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student, with its batch-norm statistics if they are averaged."""
        momentum = cosine_momentum(self.config.teacher_momentum, progress)
        move_teacher(self.teacher, self.student, momentum, buffers=self.config.average_norms)


class LEWELM(nn.Module):
    """LEWEL_M, our reconstruction: L = w InfoNCE(z, z', queue) + (1 - w) mean over k of InfoNCE(A_k, A'_k, negatives).

    The authors released no code of LEWEL_M and the paper's text was not at hand: the coupled head is LEWEL_B's, the
    rest MoCo v2 as their code base has it.
    """

    name = "lewel_m"
    paper = "arXiv:2203.14898"
    view_recipe = "two_strong"
    exempt_names = ()  # MoCo v2's authors decay everything
    note = "LEWEL_M as trained here is our reconstruction: the authors released no code of it."

    @dataclass(frozen=True)
    class Config:
        """Our reconstruction. Defaults: MoCo v2's values in the code base LEWEL is built on, heads as in LEWEL_B."""

        projection_width: int = 128  # output of both projectors
        hidden_width: int = 4096  # of both
        heads: int = 4  # groups of channels with maps of their own: projection_width / heads aligned embeddings
        map_temperature: float = 1.0  # of the alignment maps' softmax
        global_weight: float = 0.5  # of the global loss; the aligned one has the rest
        queue_length: int = 65536  # past teacher projections
        teacher_momentum: float = 0.999  # the teacher keeps this share of itself every step
        temperature: float = 0.2  # of both losses
        negatives: Literal["queue", "batch"] = "queue"  # of A_k: a queue all k share, or the batch's other A'_k

        def __post_init__(self):
            _check(self)

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.student: Any = AlignedBranch(backbone, c)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width, count=2)  # global; aligned

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """The global and the aligned loss, in nats.

        Args:
            views: two strong views, (N, 3, H, W) each: the student sees the first, the teacher the second.
            progress: unused, the objective does not change over the run.
        """
        c, (queue, aligned_queue) = self.config, self.queue.rows  # (K, P) each
        z, a = (F.normalize(x, dim=-1) for x in self.student(views[0]))  # (N, P), (N, M, P)
        with torch.no_grad():
            z_target, a_target = (F.normalize(x, dim=-1) for x in self.teacher(views[1]))
        if c.negatives == "queue":
            aligned = info_nce(a.flatten(0, 1), a_target.flatten(0, 1), aligned_queue, c.temperature)
        else:
            aligned = batch_info_nce(a.transpose(0, 1), a_target.transpose(0, 1), c.temperature)
        self.queue.hold(z_target, self._one_of_each(a_target))
        losses = {"global": info_nce(z, z_target, queue, c.temperature), "aligned": aligned}
        return losses | {"loss": c.global_weight * losses["global"] + (1 - c.global_weight) * losses["aligned"]}

    def _one_of_each(self, aligned: Tensor) -> Tensor:
        """(N, M, P) -> (N, P): one aligned embedding an image, k going round with the place in the queue."""
        rows = torch.arange(aligned.shape[0], device=aligned.device)
        return aligned[rows, (self.queue.position + self.queue.held + rows) % aligned.shape[1]]

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student and the batch's teacher projections into both queues."""
        move_teacher(self.teacher, self.student, self.config.teacher_momentum)
        self.queue.push(finite)
