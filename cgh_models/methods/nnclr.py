"""NNCLR: nearest-neighbour contrastive learning of visual representations (arXiv 2104.14548).

The positive of an image is not its other view but what a queue of past images holds nearest to it.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .feature_queue import FeatureQueue
from .heads import Branch, mlp
from .losses import batch_info_nce, nearest
from .method import Losses, check_config


class NNCLR(nn.Module):
    """L = mean over both directions of InfoNCE(NN(z_u), q(z_v)); negatives: the batch."""

    name = "nnclr"
    paper = "arXiv:2104.14548"
    norm_sync = "sync"  # over several processes
    view_recipe = "two_strong"

    @dataclass(frozen=True)
    class Config:
        """Defaults: heads as lightly builds them, queue and temperature as solo-learn sets them.

        Differs from the authors' code, of which none was at hand: values of two re-implementations.
        """

        projection_width: int = 256  # output of projector and predictor
        hidden_width: int = 2048  # of the projector, twice
        predictor_width: int = 4096  # hidden width of the predictor
        queue_length: int = 65536  # past projections, among which the nearest is looked for
        temperature: float = 0.2
        zero_init_last: bool = True  # `build_method` starts residuals' last norms at 0, timm's way
        eval_interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # of evaluations

        __post_init__ = check_config

    def __init__(self, backbone: nn.Module, config: Config | None = None):
        super().__init__()
        self.config = c = config or self.Config()
        hidden, width = c.hidden_width, c.projection_width
        self.student = Branch(backbone, hidden, hidden, width, norm=True, last_norm=True)
        self.student.predictor = mlp(width, c.predictor_width, width, norm=True)
        self.queue = FeatureQueue(c.queue_length, width)

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """One loss, in nats. Views: two strong ones, (N, 3, H, W) each."""
        temperature = self.config.temperature
        neighbour1, prediction1, _ = self._neighbour_and_prediction(views[0])  # (N, P) each
        neighbour2, prediction2, z2 = self._neighbour_and_prediction(views[1])
        self.queue.collect(z2)
        loss1 = batch_info_nce(neighbour1, prediction2, temperature)
        loss2 = batch_info_nce(neighbour2, prediction1, temperature)
        return {"loss": 0.5 * (loss1 + loss2)}

    def _neighbour_and_prediction(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projection's nearest neighbour, its prediction, and itself: unit vectors (N, P).

        The first two of all processes' rows, as the negatives are the whole batch.
        """
        projection = self.student(view)
        prediction = F.normalize(self.student.predictor(projection).float())
        z = F.normalize(projection.detach())
        gather = self.queue.processes.gather
        return gather(nearest(z, self.queue.rows[0])), gather(prediction), z

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves the batch's projections of the second view into the queue."""
        self.queue.enqueue(finite)
