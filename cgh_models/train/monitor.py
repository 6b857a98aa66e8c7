"""Measurements of the backbone while it trains: spread of the embeddings, kNN accuracy."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ..config import TrainConfig
from ..data.image_set import ImageSet, load_splits
from ..data.loader import order
from ..errors import InputError
from ..evaluate.collapse import spread
from ..evaluate.extraction import embeddings
from ..evaluate.neighbours import knn
from .metric_log import ADVICE

MEMORY, QUERIES, SPREAD = 10_000, 2_000, 2_000  # images a measurement looks at, so that it stays a glance


class Monitor:
    """Looks at the backbone every so often: spread of the embeddings and, where there are classes, kNN accuracy.

    With ``eval_data``: kNN of its val/ against its train/ ("knn"). Else, with class folders in the training data: kNN
    of some training images against others ("knn_train"). Both on fixed samples of at most MEMORY and QUERIES images;
    `cgh evaluate knn` takes all.
    """

    def __init__(
        self, images: ImageSet, config: TrainConfig, device: torch.device, stopped: Callable[[], bool] = lambda: False
    ):
        self.images, self.device, self.workers, self.stopped = images, device, config.workers, stopped
        self.batch_size = min(256, config.batch_size // config.accumulate)  # what fits into memory in training, too
        self.pair: tuple[str, ImageSet, np.ndarray, ImageSet, np.ndarray] | None = None
        shuffled = order(0, 0, len(images))
        if config.eval_data and config.eval_every >= 0:
            train, val = load_splits(config.eval_data, config.follow_links)
            memory, queries = order(0, 0, len(train))[:MEMORY], order(0, 0, len(val))[:QUERIES]
            self.pair = ("knn", train, memory, val, queries)
        elif images.labels is not None and len(images.classes) > 1 and len(images) >= 5:
            share = min(QUERIES, len(images) // 5)
            self.pair = ("knn_train", images, shuffled[share : share + MEMORY], images, shuffled[:share])
        self.sample = shuffled[:SPREAD]

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """feature_std, effective_rank and, in percent, knn or knn_train; nothing if the run is told to stop meanwhile.

        Raises:
            InputError: the embeddings are not finite.
        """
        try:
            values = spread(self._look(backbone, self.images, self.sample))
            if self.pair:
                name, train, memory, val, queries = self.pair
                assert train.labels is not None and val.labels is not None
                keys, looked = self._look(backbone, train, memory), self._look(backbone, val, queries)
                predicted = knn(keys, train.labels[memory], looked, k=min(20, len(memory)))
                values[name] = 100 * float((predicted == val.labels[queries]).mean())
        except _Stopped:
            return {}
        return values

    def _look(self, backbone: nn.Module, images: ImageSet, indices: np.ndarray) -> np.ndarray:
        rows = []
        how = {"batch_size": self.batch_size, "workers": self.workers, "device": self.device}
        for part in embeddings(backbone, images, indices, **how, replace=True):
            if self.stopped():
                raise _Stopped
            rows.append(part)
        found = np.concatenate(rows)
        if not np.isfinite(found).all():
            raise InputError(f"the embeddings are not finite; {ADVICE}")
        return found


class _Stopped(Exception):  # noqa: N818 - no error: the run is to be saved now
    pass
