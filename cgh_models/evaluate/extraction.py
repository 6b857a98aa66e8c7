"""Embeddings of whatever images a caller has, computed or read from a cache."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backbone import channels
from ..config import check_pixel_range
from ..data.image_set import ImageSet, load
from ..errors import InputError
from ..tensors import plain_defaults
from .embedder import embeddings
from .protocols import EvalSettings


@plain_defaults()
def extract(
    model: nn.Module,
    data: object,
    *,
    indices: np.ndarray | None = None,
    batch_size: int = 256,
    workers: int = 2,
    device: str | torch.device = "auto",
    fast: bool = False,
    cache_dir: str | Path | None = None,
    pixel_range: str = "auto",
    reader: str = "",
    return_names: bool = False,
) -> Any:
    """Pooled embeddings (N, D) float32 of a headless timm module, in the set's order.

    Images pass timm's evaluation transform for the model, whose mode and device are restored.

    Args:
        model: it may be one that torch.compile returned.
        data: a folder, a list, an archive, an address, an ImageSet, or paths, pictures, an array
            or a dataset, embedded in the order in which they are given (`data.load`).
        indices: take only these images, in this order; or a mask, one bool for each image.
        fast: run a copy of the model with folded batch norms, in bfloat16 where the processor has
            it. What moves embeddings of noise to a cosine below 0.9999 is left out of the copy.
        cache_dir: a folder to keep embeddings in and read them from, by network, preprocessing, and
            the files' names, sizes and times of change; None: no cache.
        pixel_range, reader: as in TrainConfig; images have the channels that the model takes.
        return_names: return (embeddings, names), where names are paths from the root of the set.

    Raises:
        InputError: nothing to read there, a bad image, indices out of range, or a model that makes
            no embeddings of such images.
    """
    check_pixel_range(pixel_range)
    settings = EvalSettings(batch_size, workers, device, fast, cache_dir)
    images = open_images(data, pixel_range, channels(getattr(model, "_orig_mod", model)), reader)
    rows, kept = embeddings(model, images, _positions(indices, len(images)), settings)
    return (rows, [images.names[index] for index in kept]) if return_names else rows


def open_images(
    data: object, pixel_range: str = "auto", in_chans: int = 3, reader: str = ""
) -> ImageSet:
    """The ImageSet of what `extract` takes."""
    images = load(data, pixel_range=pixel_range, in_chans=in_chans, reader=reader)
    if not isinstance(data, ImageSet):
        images.report_skipped()
    return images


def _positions(indices: object, count: int) -> np.ndarray:
    """Indices (n,) of images: all, those given, or where a mask is true. Raises InputError."""
    if indices is None:
        return np.arange(count)
    try:
        given = np.asarray(indices)
    except (TypeError, ValueError):  # ragged, or a tensor on a GPU
        given = np.array("?")
    if given.dtype == bool and given.shape == (count,):
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
        shown = f"{given.dtype} of shape {given.shape}"
        expected = f"expected whole numbers (n,), or a mask of {count} bools"
        raise InputError(f"indices: {shown}; {expected}, one for each image")
    wrong = given[(given < 0) | (given >= count)] if given.size else given
    if wrong.size:
        raise InputError(f"indices: {wrong[0]} is not between 0 and {count - 1}; take it out")
    return given.astype(np.int64)
