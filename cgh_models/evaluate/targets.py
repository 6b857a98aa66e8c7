"""Labels that are no classes, found from embeddings: what images have (mAP), quantities (R2)."""

import numpy as np
from torch import nn

from ..data.image_set import ImageSet
from ..errors import InputError, printable
from . import neighbours
from .embedder import extract_labelled
from .label_table import metric_of
from .probes import RIDGE_STRENGTHS, best_layer, ridge_to
from .protocols import EvalSettings, Measurement
from .splits import held_out


def measure_targets(
    protocol: str,
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    settings: EvalSettings,
    k: int = 20,
    temperature: float = 0.07,
) -> Measurement:
    """mAP or R2 on val/ of sets as of `label_table.load_labelled`, with labels (N, columns).

    ``protocol`` is "knn", the mean of the labels of the k nearest, weighted as the votes of kNN, or
    "ridge", a linear layer with the least squared error. Raises InputError for a column that has
    one value in all of val/.
    """
    assert val.labels is not None
    for name, column in zip(val.classes, val.labels.T, strict=True):
        if (column == column[0]).all():
            given = f"column {printable(name)}: is {column[0]:g} for all {len(val)} images of val"
            raise InputError(f"{given}; leave the column out, or give others too")
    measure = metric_of(train)
    rows, labels = extract_labelled(model, train, settings)
    queries, expected = extract_labelled(model, val, settings)
    parameters: dict[str, object] = {"protocol": protocol, "train": len(rows), **settings.recorded}
    if protocol == "knn":
        nearest = {"k": k, "temperature": temperature}
        found = neighbours.mean_of_nearest(rows, labels, queries, **nearest, device=settings.device)
        name = "mean of the nearest of train/, weighted by exp(cosine / temperature)"
        parameters |= nearest
    else:
        held = held_out(np.zeros(len(rows), int), settings.seed)[1]
        score, choice = best_layer(
            ridge_to,
            RIDGE_STRENGTHS,
            (rows, labels),
            np.isin(np.arange(len(rows)), held),
            (measure, lambda expected, found: value_of(measure, expected, found)[0]),
            settings,
        )
        found = score(queries)
        name = "ridge regression (closed form) on standardized embeddings of plain train/"
        parameters |= choice
    value, values = value_of(measure, expected, found)
    rounded = [round(one, 3) if np.isfinite(one) else None for one in values]
    parameters["columns"] = dict(zip(train.classes, rounded, strict=True))
    what = {"map": "mean average precision (mAP)", "r2": "R2, mean of the columns,"}[measure]
    return Measurement(f"{what} of val/, {name}", parameters, value, len(found))


def value_of(measure: str, expected: np.ndarray, found: np.ndarray) -> tuple[float, list[float]]:
    """mAP in percent, or R2, of scores (N, columns): the mean over columns, and each.

    Columns of which nothing can be said are left out of the mean, which is 0 without any.
    """
    pairs = zip(expected.T, found.T, strict=True)
    if measure == "map":
        values = [100 * average_precision(*pair) for pair in pairs]
    else:
        values = [r2(*pair) for pair in pairs]
    known = [value for value in values if np.isfinite(value)]
    return sum(known) / max(1, len(known)), values


def average_precision(expected: np.ndarray, scores: np.ndarray) -> float:
    """Of 0 or 1 (N,) by scores (N,), in [0, 1]; NaN if there is no 1.

    The precision at each distinct score, weighted by the share of all ones that it adds.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(expected[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores
    if not hits[-1]:
        return float("nan")
    precision = hits[last] / (np.flatnonzero(last) + 1)
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


def r2(expected: np.ndarray, found: np.ndarray) -> float:
    """The share of the variance of quantities (N,) that is explained; NaN if they are all equal."""
    with np.errstate(over="ignore", invalid="ignore"):
        spread = np.square(expected - expected.mean()).sum()
        return float(1 - np.square(expected - found).sum() / spread) if spread else float("nan")
