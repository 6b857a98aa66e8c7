"""What feature maps are worth, pixel by pixel: classes of the cells of frozen maps, as mean IoU.

A cell is a place (1, 1) of a map. Images are resized to a square as a whole. Scores of cells are
resized to the mask, where they are compared: masks are never resized.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import channels
from ..data.draws import uniform
from ..data.eval_loader import EvalDataset, eval_samples, eval_transform
from ..data.loader import order
from ..data.masks import IGNORED, MaskedImages
from ..data.reading import check_channels
from ..errors import InputError, printable
from ..progress import watched
from . import neighbours
from .embedder import Embedder, embedder_of
from .feature_maps import Features
from .probes import LBFGS_STRENGTHS, Score, best_layer, lbfgs_path
from .protocols import DenseConfig, EvalSettings, Measurement
from .splits import held_out

# L2 penalties to choose from, strong to weak; there are many more cells than channels.
STRENGTHS = LBFGS_STRENGTHS[:4]
_CELLS_STREAM = 1004  # keeps these random numbers apart from those of other uses


class _Cells(NamedTuple):
    """Cells of train/'s maps."""

    rows: np.ndarray  # (n, C) float32
    shares: np.ndarray  # (n, classes) float64: of the cell's pixels, without those ignored
    images: np.ndarray  # (n,) the index of each one's image


def measure_maps(
    protocol: Literal["linear", "knn"],
    model: nn.Module,
    train: MaskedImages,
    val: MaskedImages,
    config: DenseConfig,
    settings: EvalSettings,
    k: int = 20,
    temperature: float = 0.07,
) -> Measurement:
    """Mean IoU of val/'s pixels, of the classes that occur there, by frozen maps.

    linear: the 1x1 layer of least cross-entropy to the shares of classes in cells of train/, on
    standardized channels; its penalty has the best mean IoU of cells of held-out images. knn: the
    mean of these shares of the k nearest cells, weighted as the votes of kNN.
    """
    if len(train.images) < 2:
        raise InputError("train/ has one image: none can be held out; give more")
    network: Any = copy.copy(model)  # of the same parameters
    for split in (train, val):
        check_channels(split.images, channels(network))
    whole = {"crop_pct": 1.0, "crop_mode": "squash"}
    if config.image_size:
        whole["input_size"] = (channels(network), config.image_size, config.image_size)
    network.pretrained_cfg = {**network.pretrained_cfg, **whole}
    with embedder_of(network, settings, Features(taps=config.taps, dense=True)) as embedder:
        cells = _cells_of(network, embedder, train, config, settings)
        if protocol == "knn":
            name = "kNN of cells of frozen maps among those of train/"
            score, parameters = _nearest(cells, settings, k, temperature)
        else:
            name = "linear layer (L-BFGS) on cells of frozen maps of train/"
            score, parameters = _layer(cells, settings)
        table = np.zeros((IGNORED, IGNORED), np.int64)  # (classes, classes found)
        count = 0
        indices = np.arange(len(val.images))
        for maps, masks, _ in _maps(network, embedder, val, indices, settings.workers):
            rows = maps.permute(0, 2, 3, 1).flatten(0, 2).numpy()
            scores = torch.from_numpy(score(rows)).unflatten(0, (len(maps), *maps.shape[2:]))
            for of_image, mask in zip(scores.permute(0, 3, 1, 2), masks, strict=True):
                table += _confusion(mask, of_image)
            count += len(masks)
    occurring = np.flatnonzero(table.sum(1))
    if not len(occurring):
        raise InputError(f"{printable(val.masks[0])}: this mask and all others ignore every pixel")
    of_classes = (100 * ious(table)[occurring]).round(3).tolist()
    parameters |= {"taps": config.taps, "map": list(embedder.shape), "cells": len(cells.rows)}
    parameters |= {"iou": dict(zip(map(str, occurring), of_classes, strict=True))}
    parameters |= settings.recorded
    return Measurement(f"mean IoU of val/, {name}", parameters, 100 * mean_iou(table), count)


def _nearest(
    cells: _Cells, settings: EvalSettings, k: int, temperature: float
) -> tuple[Score, dict[str, Any]]:
    """A function from rows to scores of classes by kNN, and its parameters."""
    if k > len(cells.rows):
        raise InputError(f"--k {k}: expected 1 to {len(cells.rows)}, the number of cells of train/")
    near = {"k": k, "temperature": temperature}
    rows, shares = cells.rows, cells.shares
    score = partial(neighbours.mean_of_nearest, rows, shares, **near, device=settings.device)
    return score, {**near, "seed": settings.seed}


def _layer(cells: _Cells, settings: EvalSettings) -> tuple[Score, dict[str, Any]]:
    """A function from rows to scores of classes by the linear layer, and how it was chosen."""

    def iou_of_cells(expected: np.ndarray, found: np.ndarray) -> float:
        classes = found.argmax(1)
        table = [expected[classes == number].sum(0) for number in range(expected.shape[1])]
        return 100 * mean_iou(np.stack(table, 1))

    drawn = np.unique(cells.images)
    if len(drawn) < 2:
        what = f"--cells: {len(cells.rows)} of one image, of which none can be held out"
        raise InputError(f"{what}; give more cells or images")
    _, held = held_out(np.zeros(len(drawn), int), settings.seed)
    score, parameters = best_layer(
        lambda x, y, strengths: lbfgs_path(x, y, y.shape[1], strengths),
        STRENGTHS,
        (cells.rows, cells.shares),
        np.isin(cells.images, drawn[held]),
        ("iou", iou_of_cells),
        settings,
    )
    choice = parameters["choice"]
    choice |= {"held_out_cells": choice["held_out_images"], "held_out_images": len(held)}
    return score, parameters


def _maps(
    network: nn.Module, embedder: Embedder, masked: MaskedImages, indices: np.ndarray, workers: int
) -> Iterator[tuple[Tensor, list[np.ndarray], np.ndarray]]:
    """Maps (N, C, h, w) of batches of images, their masks [(H, W)] and their indices (N,)."""
    dataset = EvalDataset(masked.images, eval_transform(network), False, describe=True)
    batches = eval_samples(dataset, indices, embedder.batch_size, workers, "skip")
    total = -(-len(indices) // embedder.batch_size)
    for batch in watched(batches, "feature maps", total, "batch"):
        images, sizes, _ = batch.tensors
        sizes_of = zip(batch.indices.tolist(), sizes[:, :2].tolist(), strict=True)
        masks = [masked.mask(index, *size) for index, size in sizes_of]
        yield embedder.embed(images).cpu(), masks, batch.indices


def _cells_of(
    network: nn.Module,
    embedder: Embedder,
    train: MaskedImages,
    config: DenseConfig,
    settings: EvalSettings,
) -> _Cells:
    """As many cells of each image, drawn among those that have a pixel with a class."""
    _, height, width = embedder.shape
    chosen = np.sort(order(settings.seed, 0, len(train.images))[: config.cells])
    of_image = config.cells // len(chosen)
    rows, shares, images = [], [], []
    for maps, masks, indices in _maps(network, embedder, train, chosen, settings.workers):
        draws = uniform(settings.seed, 0, indices, height * width, _CELLS_STREAM)
        for cells, mask, u, index in zip(maps, masks, draws, indices, strict=True):
            counts = class_counts(mask, height, width)  # (h * w, 255)
            total = counts.sum(1)
            taken = np.argsort(np.where(total > 0, u, 2))[: min(of_image, (total > 0).sum())]
            rows.append(cells.flatten(1).t()[taken].numpy())
            shares.append((counts[taken] / total[taken, None]).astype(np.float32))
            images.append(np.full(len(taken), index))
    found = np.concatenate(shares) if shares else np.zeros((0, IGNORED))
    classes = np.flatnonzero(found.any(0))
    if len(classes) < 2:
        what = f"{printable(train.masks[0].parent)}: has the classes {classes.tolist()}"
        raise InputError(f"{what}; expected two or more in 0 to 254 ({IGNORED} is ignored)")
    found = found[:, : classes[-1] + 1].astype(np.float64)
    return _Cells(np.concatenate(rows), found, np.concatenate(images))


def class_counts(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """How many pixels (h * w, 255) of each class of a mask (H, W) lie in each cell of a map."""
    top = np.arange(mask.shape[0]) * height // mask.shape[0]
    left = np.arange(mask.shape[1]) * width // mask.shape[1]
    place = (top[:, None] * width + left) * 256 + mask
    counts = np.bincount(place.ravel(), minlength=height * width * 256)
    return counts.reshape(height * width, 256)[:, :IGNORED]


def _confusion(mask: np.ndarray, scores: Tensor) -> np.ndarray:
    """Pixels (255, 255) by class and by the class with the largest score (classes, h, w)."""
    resized = F.interpolate(scores[None], mask.shape, mode="bilinear")[0]
    found = resized.argmax(0).numpy()
    known = mask != IGNORED
    pairs = mask[known].astype(np.int64) * IGNORED + found[known]
    return np.bincount(pairs, minlength=IGNORED**2).reshape(IGNORED, IGNORED)


def ious(table: np.ndarray) -> np.ndarray:
    """The IoU (C,) of each class of a table (C, C) of pixels, by class and by class found."""
    both = np.diag(table)
    return both / np.maximum(table.sum(0) + table.sum(1) - both, 1e-12)


def mean_iou(table: np.ndarray) -> float:
    """Mean IoU, in [0, 1], of the classes that occur; see `ious`."""
    occurring = table.sum(1) > 0
    return float(ious(table)[occurring].mean()) if occurring.any() else 0.0
