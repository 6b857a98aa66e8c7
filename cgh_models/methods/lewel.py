"""LEWEL: learning where to learn in cross-view self-supervised learning (arXiv 2203.14898).

One projector serves the pooled embedding and every pixel of the deepest map. Its output at the
pixels, softmaxed over them, is a set of alignment maps: weights with which the map is pooled again,
into aligned embeddings with a loss of their own. `LEWEL` is the paper's LEWEL_B, on BYOL; `LEWELM`
is our reconstruction of its LEWEL_M, on MoCo v2.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import architecture, embed_with_pixels, eval_mode, input_size, on_zeros, widths
from ..config import check_range
from ..errors import InputError
from ..schedule import cosine_momentum
from .feature_queue import FeatureQueue
from .heads import mlp
from .losses import batch_info_nce, cosine_loss, info_nce
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher_and_queue, update_teacher


class AlignedBranch(nn.Module):
    """Backbone and both projectors: images (N, 3, H, W) -> z (N, P) and aligned (N, P / heads, P).

    The pooled vector is timm's embedding (N, D): of a ResNet the mean of the map's pixels. Where it
    is wider than these (MobileNetV3 widens it after the pooling) a linear layer of ours widens
    them. A ConvNeXt normalizes its embedding and not the pixels. All in float32.
    """

    passes = ("forward",)
    predictor: nn.Module  # both are set by LEWEL, after the teacher was copied
    aligned_predictor: nn.Module

    def __init__(self, backbone: nn.Module, config: "LEWEL.Config | LEWELM.Config"):
        super().__init__()
        width, _ = widths(backbone, taps=1)
        _, pixels, _ = on_zeros(embed_with_pixels, backbone, *input_size(backbone))
        channels = pixels.shape[2]
        common = math.gcd(width, config.projection_width)
        if common % config.heads:
            largest = max(heads for heads in range(1, config.heads) if common % heads == 0)
            both = f"the embedding's width ({width} of {architecture(backbone)})"
            both += f" and projection_width={config.projection_width}"
            what = f"heads={config.heads}: has to divide {both}"
            raise InputError(f"{what}; give --set heads={largest}")
        self.backbone = backbone
        self.heads = config.heads
        self.map_temperature = config.map_temperature
        self.widen = nn.Identity() if channels == width else nn.Linear(channels, width, bias=False)
        self.projector = _head(width, config.hidden_width, config.projection_width)
        self.aligned_projector = _head(width, config.hidden_width, config.projection_width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z, pixels, weights, _ = self.coupled(images)
        heads = pixels.unflatten(2, (self.heads, -1))  # (N, pixels, heads, D / heads)
        aligned = torch.einsum("nphm,nphc->nmhc", weights, heads).flatten(2)  # (N, M, D)
        projected = self.aligned_projector(aligned.flatten(0, 1)).float()  # (N M, P)
        return z.float(), projected.unflatten(0, aligned.shape[:2])

    def coupled(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
        """z (N, P), pixels (N, h * w, D), their maps (N, h * w, heads, P / heads), and (h, w)."""
        embedding, pixels, size = embed_with_pixels(self.backbone, images)
        pixels = self.widen(pixels)  # (N, pixels, D)
        rows = torch.cat([embedding[:, None], pixels], 1)  # one batch for the norm
        projected = self.projector(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        scores = F.normalize(projected[:, 1:].float(), dim=2) / self.map_temperature
        maps = scores.softmax(1).unflatten(2, (self.heads, -1))
        return projected[:, 0], pixels, maps, size


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
    with eval_mode(model):
        _, _, maps, size = model.student.coupled(images)
    return maps.permute(0, 2, 3, 1).unflatten(3, size)


class LEWEL(nn.Module):
    """LEWEL_B: L = sum over both directions of w l(q(z_u), z'_v) + (1 - w) l(q_a(A_u), A'_v).

    l is the mean of 2 - 2 cos, w is ``global_weight``; the aligned embedding k of one view is
    compared with the k-th of the other.

    Differs from the authors' code: the learning rate follows its cosine every step, not epoch.
    """

    name = "lewel"
    paper = "arXiv:2203.14898"
    exempt_names = ("bias", "bn", "downsample.1")  # the authors' rule for what is not decayed

    @dataclass(frozen=True)
    class Config:
        """Defaults: the authors' EMAN runs on ImageNet (100 and 200 epochs)."""

        projection_width: int = 256  # output of projectors and predictors
        hidden_width: int = 4096  # of them all
        heads: int = 4  # channel groups with their own maps: projection_width / heads embeddings
        map_temperature: float = 1.0  # of the maps' softmax: almost uniform at first
        global_weight: float = 0.5  # of the global loss; the aligned one has the rest
        teacher_momentum: float = 0.98  # at the start, 1 at the end; 0.996 in the 400-epoch run
        average_norms: bool = True  # EMAN: the teacher, in eval mode, follows the statistics too
        blur: bool = True  # in the views
        exempt_head_norms: bool = True  # with paper_faithful; in the authors' code only with EMAN
        zero_init_last: bool = False  # `build_method` starts residuals' last norms at 1, as theirs
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # the authors' evaluation

        def __post_init__(self):
            check_config(self)
            check_range(self, 0, 1, "global_weight")

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.view_recipe = "asymmetric" if c.blur else "asymmetric_sharp"
        # Over several processes, as the authors' GPUs.
        self.norm_sync = "none" if c.average_norms else "sync"
        if c.average_norms and c.exempt_head_norms:  # the first norm of each head
            self.exempt_names = (*self.exempt_names, "projector.1", "predictor.1")
        sizes = (c.projection_width, c.hidden_width, c.projection_width)
        self.student = AlignedBranch(backbone, c)
        self.teacher = make_teacher(self.student)
        self.student.predictor = _head(*sizes)
        self.student.aligned_predictor = _head(*sizes)
        self.train()

    def train(self, mode: bool = True) -> "LEWEL":
        """Keeps the teacher in eval mode if its statistics follow the student's."""
        super().train(mode)
        if self.config.average_norms:
            self.teacher.eval()
        return self

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """The global and the aligned loss, each 0 to 8. Student and teacher see both views."""
        first, second = views
        q1, aligned1 = self._predict(first)  # (N, P), (N, M, P)
        q2, aligned2 = self._predict(second)
        with torch.no_grad():
            z1, target1 = self.teacher(first)  # (N, P), (N, M, P)
            z2, target2 = self.teacher(second)
        losses = {
            "global": cosine_loss(q1, z2) + cosine_loss(q2, z1),
            "aligned": cosine_loss(aligned1, target2) + cosine_loss(aligned2, target1),
        }
        w = self.config.global_weight
        return losses | {"loss": w * losses["global"] + (1 - w) * losses["aligned"]}

    def _predict(self, view: Tensor) -> tuple[Tensor, Tensor]:
        z, aligned = self.student(view)
        predicted = self.student.aligned_predictor(aligned.flatten(0, 1)).float()  # (N M, P)
        return self.student.predictor(z).float(), predicted.view_as(aligned)

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student, its statistics too if they are averaged."""
        momentum = cosine_momentum(self.config.teacher_momentum, progress)
        update_teacher(self.teacher, self.student, momentum, buffers=self.config.average_norms)


class LEWELM(nn.Module):
    """LEWEL_M: L = w InfoNCE(z, z', queue) + (1 - w) mean over k of InfoNCE(A_k, A'_k, negatives).

    Our reconstruction: the authors released no code of LEWEL_M and the paper's text was not at
    hand. The coupled head is LEWEL_B's, the rest MoCo v2 as their code base has it.
    """

    name = "lewel_m"
    paper = "arXiv:2203.14898"
    view_recipe = "two_strong"
    norm_sync = "none"  # over several processes: its teacher is not shuffled
    exempt_names = ()  # MoCo v2's authors decay everything
    note = "LEWEL_M as trained here is our reconstruction: the authors released no code of it."

    @dataclass(frozen=True)
    class Config:
        """Our reconstruction. Defaults: MoCo v2 in the authors' code base, heads as in LEWEL_B."""

        projection_width: int = 128  # output of both projectors
        hidden_width: int = 4096  # of both
        heads: int = 4  # channel groups with their own maps: projection_width / heads embeddings
        map_temperature: float = 1.0  # of the alignment maps' softmax
        global_weight: float = 0.5  # of the global loss; the aligned one has the rest
        queue_length: int = 65536  # past teacher projections
        teacher_momentum: float = 0.999  # the teacher keeps this share of itself every step
        temperature: float = 0.2  # of both losses
        negatives: Literal["queue", "batch"] = "queue"
        """Of A_k: a queue that all k share, or the other A'_k of the batch."""
        zero_init_last: bool = False  # `build_method` starts residuals' last norms at 1, as theirs
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # the authors' evaluation

        def __post_init__(self):
            check_config(self)
            check_range(self, 0, 1, "global_weight")

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self.student = AlignedBranch(backbone, c)
        self.teacher = make_teacher(self.student)
        self.queue = FeatureQueue(c.queue_length, c.projection_width, count=2)  # global; aligned

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """Both losses, in nats. The student sees the first view, the teacher the second."""
        c = self.config
        queue, aligned_queue = self.queue.rows  # (K, P) each
        z, a = (F.normalize(x, dim=-1) for x in self.student(views[0]))  # (N, P), (N, M, P)
        with torch.no_grad():
            z_target, a_target = (F.normalize(x, dim=-1) for x in self.teacher(views[1]))
        self.queue.collect(z_target, self._one_of_each(a_target))
        if c.negatives == "queue":
            rows, targets = a.flatten(0, 1), a_target.flatten(0, 1)  # (N M, P) each
            aligned = info_nce(rows, targets, aligned_queue, c.temperature)
        else:
            gather = self.queue.processes.gather  # negatives are the whole batch's
            anchors, candidates = (gather(x).transpose(0, 1) for x in (a, a_target))  # (M, N, P)
            aligned = batch_info_nce(anchors, candidates, c.temperature)
        losses = {"global": info_nce(z, z_target, queue, c.temperature), "aligned": aligned}
        w = c.global_weight
        return losses | {"loss": w * losses["global"] + (1 - w) * losses["aligned"]}

    def _one_of_each(self, aligned: Tensor) -> Tensor:
        """(N, M, P) -> (N, P): one aligned embedding an image; k counts up along the queue."""
        rows = torch.arange(aligned.shape[0], device=aligned.device)
        processes = self.queue.processes
        places = self.queue.pending + processes.rank + processes.count * rows
        k = (self.queue.position + places) % aligned.shape[1]
        return aligned[rows, k]

    after_step = move_teacher_and_queue
