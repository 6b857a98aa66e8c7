"""Measurements while a method trains: spread of the embeddings, kNN accuracy, signs of health."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from ..data.image_set import ImageSet, load_splits
from ..data.loader import order
from ..errors import InputError
from ..evaluate.classifier import check_classes
from ..evaluate.collapse import spread
from ..evaluate.embedder import embeddings
from ..evaluate.neighbours import knn
from ..evaluate.protocols import EvalSettings
from .health import Health, dead_channels
from .run import Run
from .signals import StopSignals
from .verdict import ADVICE, QUERIES

Item = TypeVar("Item")

# Images of a measurement, few enough that it takes seconds.
MEMORY = 10_000
SPREAD = 2_000


class Sample(NamedTuple):
    """Some images of a set."""

    images: ImageSet
    indices: np.ndarray

    def labels(self) -> np.ndarray:
        assert self.images.labels is not None
        return self.images.labels[self.indices]


class _LeftOut(Exception):  # noqa: N818 - a signal came
    pass


class Monitor:
    """Measures the spread of the embeddings and, if there are classes, kNN accuracy.

    With ``eval_data``: kNN of its val/ against its train/ ("knn"). Else, with class folders in the
    training data: kNN of some training images against others ("knn_train"). Both on fixed samples
    of at most MEMORY and QUERIES images; `cgh evaluate knn` takes all. Several processes embed a
    share each, and all know what was found.
    """

    def __init__(self, run: Run, signals: StopSignals):
        self.processes = run.processes
        self.signals = signals
        images, config = run.images, run.config
        at_once = min(256, config.batch_size // config.accumulate // run.processes.count)
        self.settings = EvalSettings(at_once, config.workers, run.device)
        self.health = Health(run, at_once)
        self.embedded: np.ndarray | None = None  # (N, D) of ``spread``, when it was measured last
        self.knn: tuple[str, Sample, Sample] | None = None  # name of the value, memory, queries
        shuffled = order(0, 0, len(images))
        self.spread = Sample(images, shuffled[:SPREAD])
        if config.eval_data and config.eval_every >= 0:
            where = (config.eval_data, config.follow_links, images.pixel_range)
            train, val = load_splits(*where, config.in_chans, config.reader, config.cache_gib)
            check_classes(train)
            memory = Sample(train, order(0, 0, len(train))[:MEMORY])
            self.knn = ("knn", memory, Sample(val, order(0, 0, len(val))[:QUERIES]))
        elif images.labels is not None and len(images.classes) > 1 and len(images) >= 5:
            count = min(QUERIES, len(images) // 5)
            memory = Sample(images, shuffled[count : count + MEMORY])
            self.knn = ("knn_train", memory, Sample(images, shuffled[:count]))

    def __call__(self, method: object) -> dict[str, float]:
        """Spread, kNN in percent (knn or knn_train) and signs of health; none if a signal comes."""
        try:
            return self._measure(method)
        except _LeftOut:
            return {}

    def _unless_stopped(self, work: Callable[[], Item]) -> Item:
        """What ``work`` returns, on all processes; none goes on if a signal came to one."""
        result = self.processes.together(lambda: self.signals.unless_stopped(work))
        if self.processes.any(result is None):
            raise _LeftOut
        assert result is not None
        return result

    def _measure(self, method: Any) -> dict[str, float]:
        backbone = method.student.backbone
        self.embedded = embedded = self._embed(backbone, self.spread)
        values = spread(embedded) | {"dead_channels": dead_channels(embedded)}
        if self.knn:
            name, memory, queries = self.knn
            stored = self._embed(backbone, memory)
            k = min(20, len(stored))
            searched = self._embed(backbone, queries)
            predicted = self._unless_stopped(lambda: knn(stored, memory.labels(), searched, k=k))
            values[name] = 100 * float((predicted == queries.labels()).mean())
            values["knn_queries"] = len(predicted)
        return values | self._unless_stopped(lambda: self.health(method))

    def _embed(self, backbone: nn.Module, sample: Sample) -> np.ndarray:
        """Embeddings (N, D) of a sample."""
        images, indices = sample
        # Equal shares, the last of which begin again with the first images.
        even = np.resize(indices, -(-len(indices) // self.processes.count) * self.processes.count)
        share = even[self.processes.rank :: self.processes.count]
        asked = (backbone, images, share, self.settings)
        found, _ = self._unless_stopped(lambda: embeddings(*asked, "substitute"))
        if self.processes.count > 1:
            found = self.processes.gather(torch.from_numpy(found)).numpy()[: len(indices)]
        if not np.isfinite(found).all():
            raise InputError(f"the embeddings are not finite; {ADVICE}")
        return found
