"""NNCLR: nearest-neighbour contrastive learning of visual representations (arXiv 2104.14548).

The positive of an image is not its other view but what a queue of past images holds nearest to that view.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .feature_queue import FeatureQueue
from .heads import Branch, mlp
from .losses import batch_info_nce, nearest
from .method import Losses, check_config


class NNCLR(nn.Module):
    """L = mean over both directions of InfoNCE(NN(z_u), q(z_v)); negatives are the batch's other predictions."""

    name = "nnclr"
    paper = "arXiv:2104.14548"
    view_recipe = "two_strong"

    @dataclass(frozen=True)
    class Config:
        """Defaults: heads as lightly builds them, queue and temperature as solo-learn sets them.

        Differs from the authors' code, of which none was at hand: the values are those of two re-implementations.
        """

        projection_width: int = 256  # output of projector and predictor
        hidden_width: int = 2048  # of the projector, twice
        predictor_width: int = 4096  # hidden width of the predictor
        queue_length: int = 65536  # past projections, among which the nearest is looked for
        temperature: float = 0.2

        def __post_init__(self):
            check_config(self)

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()

        def projector(width: int) -> nn.Module:
            return mlp(width, c.hidden_width, c.hidden_width, c.projection_width, norm=True, last_norm=True)

        self.student: Any = Branch(backbone, projector)
        self.student.predictor = mlp(c.projection_width, c.predictor_width, c.projection_width, norm=True)
        self.queue = FeatureQueue(c.queue_length, c.projection_width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats.

        Args:
            views: two strong views, (N, 3, H, W) each.
            progress: unused, the objective does not change over the run.
        """
        projections = [self.student(view) for view in views]  # (N, P) each
        predictions = [F.normalize(self.student.predictor(z).float()) for z in projections]
        neighbours = [nearest(F.normalize(z.detach()), self.queue.rows[0]) for z in projections]
        self.queue.hold(F.normalize(projections[1].detach()))
        pairs = zip(neighbours, reversed(predictions), strict=True)
        losses = [batch_info_nce(anchor, prediction, self.config.temperature) for anchor, prediction in pairs]
        return {"loss": torch.stack(losses).mean()}

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the batch's projections of the second view into the queue."""
        self.queue.push(finite)
