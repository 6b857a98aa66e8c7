"""kNN accuracy, and any published number measured again."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.image_set import MAX_BAD, ImageSet
from ..errors import InputError, printable
from . import neighbours
from .classifier import check_classes
from .embedder import extract_labelled
from .linear import sgd
from .protocols import EvalSettings, LinearConfig, Measurement

# In percent points: rounding moves a kNN, a layer's training a little more.
TOLERANCE = {"knn": 0.1, "linear": 0.5}


def knn(
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    settings: EvalSettings,
    k: int = 20,
    temperature: float = 0.07,
) -> Measurement:
    """Accuracy of kNN of the val embeddings over the train embeddings."""
    check_classes(train)
    memory, labels = extract_labelled(model, train, settings)
    queries, query_labels = extract_labelled(model, val, settings)
    nearest = {"k": k, "temperature": temperature}
    predicted = neighbours.knn(memory, labels, queries, **nearest, device=settings.device)
    value = 100 * float((predicted == query_labels).mean())
    protocol = "kNN top-1 of val/ against train/, votes weighted by exp(cosine / temperature)"
    parameters = {**nearest, "memory": len(memory), **settings.recorded}
    return Measurement(protocol, parameters, value, len(queries))


def knn_accuracy(
    backbone: nn.Module,
    train: ImageSet,
    val: ImageSet,
    *,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 256,
    workers: int = 2,
    device: str | torch.device = "auto",
    fast: bool = False,
    cache_dir: str | Path | None = None,
) -> float:
    """Percent of val images whose class kNN over the train embeddings (see `extract`) finds."""
    settings = EvalSettings(batch_size, workers, device, fast, cache_dir)
    return knn(backbone, train, val, settings, k, temperature).value


def remeasure(
    metric: str,
    published: dict[str, Any],
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    settings: EvalSettings,
) -> float:
    """The value that the same measurement gives now; seed and fast are those that were published.

    Args:
        metric: "knn" or "linear".
        published: the metric of a manifest row.
    """
    parameters = published["parameters"]
    config_names = ["lr", "epochs", "train_batch_size", "momentum", "nesterov"]
    counted = "memory" if metric == "knn" else "train"
    needed = ["k", "temperature"] if metric == "knn" else ["seed", *config_names]
    for name in (*needed, counted):
        if name not in parameters:
            what = f"{metric} was published without its {name}"
            raise InputError(f"{what}: it cannot be measured again")
    expected = (parameters[counted], published["n"])
    data = published["data"]
    _check_counts((len(train), len(val)), expected, data, MAX_BAD)  # some may turn out to be bad
    settings = dataclasses.replace(settings, fast=parameters.get("fast", False))
    if metric == "knn":
        found = knn(model, train, val, settings, parameters["k"], parameters["temperature"])
    else:
        settings = dataclasses.replace(settings, seed=parameters["seed"])
        config = LinearConfig(**{name: parameters[name] for name in config_names})
        found = sgd(model, train, val, config, settings)
    _check_counts((found.parameters[counted], found.n), expected, data, 0)
    return round(found.value, 3)


def _check_counts(
    found: tuple[int, int], expected: tuple[int, int], data: str, bad_share: float
) -> None:
    for count, wanted in zip(found, expected, strict=True):
        if not wanted <= count <= wanted + bad_share * count:
            what = f"{found[0]} images in train/ and {found[1]} in val/"
            published = f"{expected[0]} and {expected[1]} of {printable(data)}"
            raise InputError(f"{what}, expected {published}; give --data those")
