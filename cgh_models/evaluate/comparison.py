"""Two networks on the same images: accuracies, common neighbours, speed, size; with intervals.

An interval is what 95 % of RESAMPLES bootstrap samples of the val images give, paired: both
networks see the same resampled images.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..backbone import channels
from ..data.eval_loader import eval_size
from ..data.image_set import ImageSet
from ..errors import InputError
from . import neighbours
from .classifier import check_classes
from .devices import pick_device
from .embedder import embed_function, eval_mode_on, extract_labelled
from .probes import classified
from .protocols import EvalSettings
from .splits import held_out

RESAMPLES = 10_000  # the ends of an interval then move by less than 0.1 of its length by the seed
_ROUNDS = 7  # of timed batches
_TIMED_BATCH = 64  # images


@dataclass(frozen=True)
class Interval:
    """A mean over val images, in percent or percent points, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One of the two networks."""

    knn: Interval
    linear: Interval
    images_per_second: float  # median of some batches, on this machine
    parameters: int
    bytes: int  # of parameters and buffers in memory
    width: int  # of its embeddings


@dataclass(frozen=True)
class Comparison:
    """Both networks, what B has more than A, and the share of neighbours they have in common."""

    a: Side
    b: Side
    knn: Interval  # B minus A
    linear: Interval
    common: Interval  # mean share of the k nearest training images that both networks find
    k: int
    train: int
    val: int
    seed: int
    resamples: int = RESAMPLES


def compare(
    a: nn.Module, b: nn.Module, train: ImageSet, val: ImageSet, settings: EvalSettings, k: int = 20
) -> Comparison:
    """Measures both networks on the same labelled images.

    kNN as `cgh evaluate knn`; the linear layer is that of `--protocol ridge`.

    Raises InputError for fewer than two classes, or k outside 1 to len(train).
    """
    check_classes(train)
    if not 1 <= k <= len(train):
        raise InputError(f"--k {k}: expected 1 to {len(train)}, the number of training images")
    assert train.labels is not None
    held_out(train.labels, settings.seed)  # refuses too few images before the work
    first, second = (_embedded(model, train, val, k, settings) for model in (a, b))
    speeds = _speeds([a, b], settings)
    seed = settings.seed
    return Comparison(
        a=_side(a, first, speeds[0], seed),
        b=_side(b, second, speeds[1], seed),
        knn=interval(second.voted - first.voted, seed),
        linear=interval(second.fitted - first.fitted, seed),
        common=interval(100 * neighbours.common_share(first.found, second.found), seed),
        k=k,
        train=first.memory,
        val=len(first.found),
        seed=seed,
    )


@dataclass(frozen=True)
class _Embedded:
    voted: np.ndarray  # (n,) 100 where kNN is right, else 0
    fitted: np.ndarray  # (n,) the same of the linear layer
    found: np.ndarray  # (n, k) indices of the nearest training images
    memory: int  # training images
    width: int


def _embedded(
    model: nn.Module, train: ImageSet, val: ImageSet, k: int, settings: EvalSettings
) -> _Embedded:
    memory, labels = extract_labelled(model, train, settings)
    queries, asked = extract_labelled(model, val, settings)
    voted = neighbours.knn(memory, labels, queries, k=k, device=settings.device)
    fitted, _ = classified("ridge", memory, labels, queries, settings)
    found, _ = neighbours.nearest(memory, queries, k, settings.device)
    return _Embedded(100.0 * (voted == asked), 100.0 * (fitted == asked), found, *memory.shape)


def _side(model: nn.Module, of: _Embedded, speed: float, seed: int) -> Side:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    knn = interval(of.voted, seed)
    return Side(knn, interval(of.fitted, seed), speed, parameters, size, of.width)


def interval(values: np.ndarray, seed: int) -> Interval:
    """The mean of values (n,), and the interval of its bootstrap.

    Values are few and repeat, so a resample is drawn as how often each of them comes.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), RESAMPLES)
    low, high = np.quantile(drawn @ distinct / len(values), (0.025, 0.975))
    return Interval(round(float(values.mean()), 3), round(float(low), 3), round(float(high), 3))


def _speeds(models: list[nn.Module], settings: EvalSettings) -> list[float]:
    """Images a second of each model: the median of batches that take turns, A B A B."""
    device = pick_device(settings.device)
    count = min(_TIMED_BATCH, settings.batch_size)
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(_ROUNDS + 1):
        for model, times in zip(models, seconds, strict=True):
            images = torch.rand(count, channels(model), *eval_size(model))
            with eval_mode_on(model, device):
                embed = embed_function(model, device, settings.fast)
                start = time.perf_counter()
                embed(images).cpu()  # waits for a GPU
                if turn:  # the first one warms up
                    times.append(time.perf_counter() - start)
    return [round(count / statistics.median(times), 1) for times in seconds]
