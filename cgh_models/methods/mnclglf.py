"""MNCLGLF: multi-network contrastive learning based on global and local representations (arXiv 2306.15930).

Three networks: the student; a teacher, whose projection is replaced by its nearest neighbour in a queue; and the
student again without gradient, on tiles of a view, whose embeddings are averaged in pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import check_sizes, fixed_size, input_size, norm_momentum
from .feature_queue import FeatureQueue
from .heads import Branch, mlp
from .losses import batch_info_nce, nearest, nt_xent
from .method import Losses, check_config
from .momentum_teacher import make_teacher, move_teacher

PAIRS = tuple(combinations(range(4), 2))  # of a view's 2 x 2 tiles: six


class MNCLGLF(nn.Module):
    """L = L_local + nearest_weight * L_nearest.

    L_local: mean over 12 pairs of InfoNCE(p of one view, a pair of tiles of the other view); L_nearest: mean of
    NT-Xent(NN(z_t3), p1) and NT-Xent(NN(z_t1), p3). A backbone with a fixed input size (ViT, Swin) sees each tile
    resized to that size, at four times the cost.

    Differs from the authors' code: the local loss has a gradient there only in the figure (`local_gradient`); the
    teacher starts as a copy of the student instead of a network of its own; batch-norm weights start at 1 and not in
    U(0, 1); the queue holds unit vectors (only directions enter the loss); tiles leave the running statistics of batch
    norms alone, because the exported backbone uses them on whole images; crops are resized bilinearly, not bicubically;
    a linear layer before a batch norm has no bias, which the norm would cancel.
    """

    name = "mnclglf"
    paper = "arXiv:2306.15930"
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
        local_gradient: bool = True  # the paper's figure; False: what the release trains, the local loss being constant

        def __post_init__(self):
            check_config(self)

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        self._resized = fixed_size(backbone)
        if not self._resized:
            check_sizes(backbone, [input_size(backbone)[0] // 2], "mnclglf looks at 2 x 2 tiles of an image")

        def projector(width: int) -> nn.Module:
            return mlp(width, c.hidden_width, c.hidden_width, c.projection_width, norm=True, last_norm=True)

        self.student: Any = Branch(backbone, projector)
        self.teacher = make_teacher(self.student)
        self.student.predictor = mlp(c.projection_width, c.predictor_width, c.projection_width, norm=True)
        self.queue = FeatureQueue(c.queue_length, c.projection_width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """The local and the nearest-neighbour loss, in nats.

        Args:
            views: three strong views, (N, 3, H, W) each.
            progress: unused, the objective does not change over the run.
        """
        c, queue = self.config, self.queue.rows[0]  # (K, P)
        first, second, third = views
        p1 = self._predict(first)  # (N, P)
        with torch.set_grad_enabled(c.local_gradient and torch.is_grad_enabled()):
            p2 = self._predict(second)
        p3 = self._predict(third)
        with torch.no_grad():
            local1, local2 = (self._pairs_of_tiles(view) for view in (first, second))  # (6, N, P) each
            neighbours = [nearest(z := F.normalize(self.teacher(view)), queue) for view in (first, third)]
        self.queue.hold(z)
        local = [(p2, local1), (p1 if c.local_gradient else p1.detach(), local2)]
        losses = {
            "local": torch.stack([batch_info_nce(p.expand_as(k), k, c.temperature) for p, k in local]).mean(),
            "nearest": 0.5 * (nt_xent(neighbours[1], p1, c.temperature) + nt_xent(neighbours[0], p3, c.temperature)),
        }
        return losses | {"loss": losses["local"] + c.nearest_weight * losses["nearest"]}

    def _predict(self, view: Tensor) -> Tensor:
        return F.normalize(self.student.predictor(self.student(view)).float())

    def _pairs_of_tiles(self, view: Tensor) -> Tensor:
        """Unit projections (6, N, P) of the mean embeddings of all pairs of a view's tiles."""
        with norm_momentum(self.student, lambda _: 0.0):
            return pairs_of_tiles(view, self._embed_tiles, self.student.projector)

    def _embed_tiles(self, tiles: Tensor) -> Tensor:
        if self._resized:
            tiles = F.interpolate(tiles, self._resized, mode="bilinear")
        return self.student.backbone(tiles)

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the teacher towards the student and its projections of the third view into the queue."""
        move_teacher(self.teacher, self.student, self.config.teacher_momentum)
        self.queue.push(finite)


def pairs_of_tiles(
    view: Tensor, embed: Callable[[Tensor], Tensor], project: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """2 x 2 tiles of a view (N, 3, H, W) embedded, averaged in pairs and projected: unit vectors (6, N, P).

    Source: Fast-MoCo (arXiv 2207.08220), where the student sees the tiles.
    """
    height, width = (side // 2 for side in view.shape[2:])
    rows = (view[:, :, :height], view[:, :, height : 2 * height])
    tiles = torch.cat([row[..., left : left + width] for row in rows for left in (0, width)])  # (4 N, 3, h, w)
    embeddings = embed(tiles).chunk(4)  # (N, D) each
    pairs = torch.cat([(embeddings[a] + embeddings[b]) / 2 for a, b in PAIRS])  # (6 N, D)
    return F.normalize(project(pairs).float()).unflatten(0, (len(PAIRS), -1))
