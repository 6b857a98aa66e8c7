"""The commands that measure feature maps on images with masks."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from ..evaluate.protocols import DenseConfig
from .evaluate import Measurement, reading


@dataclass
class Segment:
    """Mean IoU of a linear layer on frozen feature maps, as JSON on the last line."""

    measurement: Measurement
    maps: DenseConfig
    fast: bool = False
    """In bfloat16, with folded batch norms."""

    def run(self) -> None:
        _measure("linear_segment", "linear", self)


@dataclass
class KnnDense:
    """Mean IoU of kNN of places of feature maps, as JSON on the last line."""

    measurement: Measurement
    maps: DenseConfig
    k: int = 20
    """Neighbours whose shares of classes are averaged."""
    temperature: float = 0.07
    """Temperature of their weights exp(cosine / temperature)."""
    fast: bool = False
    """In bfloat16, with folded batch norms."""

    def run(self) -> None:
        if not 0 < self.temperature < math.inf or self.k < 1:
            given = f"--k {self.k} --temperature {self.temperature}"
            raise InputError(f"{given}: expected at least 1, and a number above 0")
        _measure("knn_dense", "knn", self, self.k, self.temperature)


def _measure(
    metric: str, protocol: Literal["linear", "knn"], command: Segment | KnnDense, *nearest: Any
) -> None:
    from ..data.masks import load_masked
    from ..evaluate.dense import measure_maps

    asked = command.measurement
    how_read = reading(asked.pixel_range, asked.reader, asked.weights, asked.data)
    train = load_masked(asked.data, "train", asked.follow_links, **how_read)
    how_read["pixel_range"] = train.images.pixel_range
    val = load_masked(asked.data, "val", asked.follow_links, **how_read)
    how = asked.settings(command.fast)
    found = measure_maps(protocol, asked.model(), train, val, command.maps, how, *nearest)
    asked.report(metric, found, train.images, val=found.n)
