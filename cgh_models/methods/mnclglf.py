"""MNCLGLF: multi-network contrastive learning, global and local representations (arXiv 2306.15930).

Three networks: the student; a teacher, whose projection is replaced by its nearest neighbour in a
queue; and the student without gradient, on tiles of a view, whose embeddings are averaged in pairs.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import check_size, eval_mode, fixed_size, input_size, norm_momentum
from .feature_queue import FeatureQueue
from .heads import Branch, mlp
from .losses import batch_info_nce, nearest, nt_xent
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher_and_queue

PAIRS = tuple(combinations(range(4), 2))  # of a view's 2 x 2 tiles: six


class MNCLGLF(nn.Module):
    """L = L_local + nearest_weight * L_nearest.

    L_local: mean over 12 pairs of InfoNCE(p of one view, a pair of tiles of the other view);
    L_nearest: mean of NT-Xent(NN(z_t3), p1) and NT-Xent(NN(z_t1), p3). A backbone with a fixed
    input size (ViT, Swin) sees each tile resized to that size, at four times the cost.

    Differs from the authors' code: the local loss has a gradient there only in the figure
    (`local_gradient`); the teacher starts as a copy of the student, not as another network;
    batch-norm weights start at 1 and not in U(0, 1); the queue holds unit vectors (only directions
    enter the loss); tiles do not move the running statistics of batch norms, which the exported
    backbone uses on whole images; crops are resized bilinearly, not bicubically; a linear layer
    before a batch norm has no bias, which the norm would cancel.
    """

    name = "mnclglf"
    paper = "arXiv:2306.15930"
    norm_sync = "sync"  # over several processes, as the authors' GPUs
    view_recipe = "three_strong"
    exempt_names = ()  # the authors decay everything
    constant_lr = ("predictor",)  # the authors' cosine leaves it out

    @dataclass(frozen=True)
    class Config:
        """Defaults: the authors' one config (ResNet-18 at 224 pixels)."""

        projection_width: int = 2048  # output of projector and predictor
        hidden_width: int = 2048  # of the projector, twice
        predictor_width: int = 512  # hidden width of the predictor
        queue_length: int = 16384  # past teacher projections, among which the nearest is looked for
        teacher_momentum: float = 0.99  # the teacher keeps this share of itself every step
        temperature: float = 1.0  # of both losses
        nearest_weight: float = 6.0  # the paper's a
        local_gradient: bool = True  # the paper's figure; False: the release, L_local is constant
        zero_init_last: bool = True  # `build_method` starts residuals' last norms at 0, as theirs
        eval_interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # the authors' evaluation

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self._tile_size = fixed_size(backbone)
        if not self._tile_size:
            height, width = input_size(backbone)
            what = "mnclglf looks at 2 x 2 tiles of an image"
            check_size(backbone, height // 2, width // 2, what)
        hidden, width = c.hidden_width, c.projection_width
        self.student = Branch(backbone, hidden, hidden, width, norm=True, last_norm=True)
        self.teacher = make_teacher(self.student)
        self.student.predictor = mlp(width, c.predictor_width, width, norm=True)
        self.queue = FeatureQueue(c.queue_length, width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """The local and the nearest-neighbour loss, in nats. Views: three strong, (N, 3, H, W)."""
        c = self.config
        queue = self.queue.rows[0]  # (K, P)
        first, second, third = views
        p1 = self._predict(first)  # (N, P)
        with torch.set_grad_enabled(c.local_gradient and torch.is_grad_enabled()):
            p2 = self._predict(second)
        p3 = self._predict(third)
        with torch.no_grad():
            tiles1 = self._pairs_of_tiles(first)  # (6, N, P)
            tiles2 = self._pairs_of_tiles(second)
            z1 = F.normalize(self.teacher(first))  # (N, P)
            z3 = F.normalize(self.teacher(third))
            nearest_z1, nearest_z3 = nearest(z1, queue), nearest(z3, queue)
        self.queue.collect(z3)

        gather = self.queue.processes.gather  # negatives are the whole batch
        p1, p2, p3, nearest_z1, nearest_z3 = map(gather, (p1, p2, p3, nearest_z1, nearest_z3))
        tiles1, tiles2 = gather(tiles1, dim=1), gather(tiles2, dim=1)
        local_p1 = p1 if c.local_gradient else p1.detach()
        local1 = batch_info_nce(p2.expand_as(tiles1), tiles1, c.temperature)
        local2 = batch_info_nce(local_p1.expand_as(tiles2), tiles2, c.temperature)
        nearest1 = nt_xent(nearest_z3, p1, c.temperature)
        nearest3 = nt_xent(nearest_z1, p3, c.temperature)
        local_loss = 0.5 * (local1 + local2)
        nearest_loss = 0.5 * (nearest1 + nearest3)
        loss = local_loss + c.nearest_weight * nearest_loss
        return {"local": local_loss, "nearest": nearest_loss, "loss": loss}

    def _predict(self, view: Tensor) -> Tensor:
        return F.normalize(self.student.predictor(self.student(view)).float())

    def _pairs_of_tiles(self, view: Tensor) -> Tensor:
        """Embeds 2 x 2 tiles of a view, averages all pairs, projects: unit vectors (6, N, P).

        Source: Fast-MoCo (arXiv 2207.08220), where the student sees the tiles.
        """
        h, w = view.shape[2] // 2, view.shape[3] // 2  # a last odd row or column is left out
        corners = [(0, 0), (0, w), (h, 0), (h, w)]
        tiles = torch.cat([view[:, :, y : y + h, x : x + w] for y, x in corners])  # (4 N, 3, h, w)
        if self._tile_size:
            tiles = F.interpolate(tiles, self._tile_size, mode="bilinear")
        with norm_momentum(self.student, lambda _: 0.0):
            embeddings = self.student.backbone(tiles).chunk(4)  # (N, D) each
            pairs = torch.cat([(embeddings[a] + embeddings[b]) / 2 for a, b in PAIRS])  # (6 N, D)
            projections = self.student.projector(pairs).float()
        return F.normalize(projections).unflatten(0, (len(PAIRS), -1))

    after_step = move_teacher_and_queue


@torch.no_grad()
def tile_cosines(model: MNCLGLF, anchors: Tensor, others: Tensor) -> Tensor:
    """Cosines (6, N, N) of predictions of views with the pairs of tiles of other views, by PAIRS.

    Row i, column i are the positives of the local loss. The student is used, in eval mode; views
    are (N, 3, H, W), normalized.
    """
    with eval_mode(model):
        return model._predict(anchors) @ model._pairs_of_tiles(others).transpose(1, 2)
