"""Embeddings of an image set, in its order, computed or read from a cache."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.eval_loader import OnBad, eval_batches, eval_transform
from ..data.image_set import ImageSet, load
from ..errors import InputError, printable, say
from . import cache
from .devices import pick_device, pick_precision
from .inference import inference_copy
from .protocols import EvalSettings
from .splits import subset


def extract(
    model: nn.Module,
    data: str | Path | ImageSet,
    *,
    indices: np.ndarray | None = None,
    batch_size: int = 256,
    workers: int = 2,
    device: str | torch.device = "auto",
    fast: bool = False,
    cache_dir: str | Path | None = None,
) -> np.ndarray:
    """Pooled embeddings (N, D) float32 of a headless timm module, in the set's order.

    Images pass through timm's evaluation transform for the model. The model's training mode and
    device are restored.

    Args:
        data: a folder, a list of paths, or an ImageSet.
        indices: take only these images, in this order.
        fast: run a copy of the model with folded batch norms, in bfloat16 where the processor has
            it. What moves embeddings of noise to a cosine below 0.9999 is left out of the copy.
        cache_dir: a folder to keep embeddings in and read them from, by network, preprocessing, and
            the files' names, sizes and times of change; None: no cache.

    Raises:
        InputError: nothing to read there, a bad image, or a model that makes no embeddings.
    """
    images = data if isinstance(data, ImageSet) else load(data)
    if indices is None:
        indices = np.arange(len(images))
    settings = EvalSettings(batch_size, workers, device, fast, cache_dir)
    rows, _ = _extract(model, images, indices, settings, "raise")
    return rows


def extract_labelled(
    model: nn.Module, images: ImageSet, settings: EvalSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) and classes (n,) of the readable images; bad ones are named on stderr.

    Raises:
        InputError: more than 1 % of the images are bad.
    """
    assert images.labels is not None
    # In memory there are substitutes in place of images that are known to be bad.
    indices = np.setdiff1d(np.arange(len(images)), list(images.bad))
    rows, kept = _extract(model, images, indices, settings, "skip")
    return rows, images.labels[kept]


def _extract(
    model: nn.Module, images: ImageSet, indices: np.ndarray, settings: EvalSettings, on_bad: OnBad
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) and their images' indices (n,); cached if no image was left out."""
    key = ""
    if settings.cache_dir:
        key = cache.key(model, images, indices, settings.fast)
        cached = cache.read(settings.cache_dir, key, len(indices))
        if cached is not None:
            return cached, indices
    batches = list(_batches(model, images, indices, settings, on_bad))
    rows = np.concatenate([rows for rows, _ in batches])
    if settings.cache_dir and len(rows) == len(indices):
        cache.write(settings.cache_dir, key, rows)
    return rows, np.concatenate([kept for _, kept in batches])


def embeddings(
    model: nn.Module, images: ImageSet, indices: np.ndarray, *, replace: bool = False, **kwargs: Any
) -> Iterator[np.ndarray]:
    """The rows of `extract`, batch by batch, with its batch_size, workers, device and fast.

    ``replace`` substitutes other images for bad ones, as training does.
    """
    on_bad = "substitute" if replace else "raise"
    for rows, _ in _batches(model, images, indices, EvalSettings(**kwargs), on_bad):
        yield rows


def _batches(
    model: nn.Module, images: ImageSet, indices: np.ndarray, settings: EvalSettings, on_bad: OnBad
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    classes = getattr(model, "num_classes", 0)
    if classes:
        what = f"this model ends in a classifier of {classes} classes"
        raise InputError(f"{what}; build it with num_classes=0")
    if not hasattr(model, "forward_head"):
        what = f"a {type(model).__name__} makes no embeddings"
        raise InputError(f"{what}; build the model without features_only")
    device = pick_device(settings.device)
    size, workers = settings.batch_size, settings.workers
    batches = eval_batches(images, indices, eval_transform(model), size, workers, on_bad)
    with eval_mode_on(model, device):
        embed = embedder(model, device, settings.fast)
        for batch, kept in batches:
            yield embed(batch).cpu().numpy(), kept


def embedder(model: nn.Module, device: torch.device, fast: bool) -> Callable[[Tensor], Tensor]:
    """A function from images (N, 3, H, W) to embeddings (N, D) float32.

    The model has to be on ``device``, in evaluation mode.
    """
    network = inference_copy(model, pick_precision("auto", device)) if fast else model
    dtype = next(network.parameters()).dtype

    @torch.inference_mode()
    def embed(images: Tensor) -> Tensor:
        return network(images.to(device, dtype, memory_format=torch.channels_last)).float()

    return embed


@contextlib.contextmanager
def eval_mode_on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on ``device`` in evaluation mode; its device and training modes are restored."""
    original_device = next(model.parameters()).device
    training = [module.training for module in model.modules()]
    model.to(device).eval()
    try:
        yield
    finally:
        model.to(original_device)
        for module, mode in zip(model.modules(), training, strict=True):
            module.training = mode


def readable_images(images: ImageSet, workers: int) -> ImageSet:
    """The set without its bad images, which are named on stderr; in memory if it fits.

    Raises:
        InputError: more than 1 % of the images are bad.
    """
    if images.pixels is None:
        images.cache_pixels(TrainConfig().memory_gib)
    indices = np.arange(len(images))
    if images.pixels is None:  # it does not fit: read it once to find the bad ones
        for _ in eval_batches(images, indices, _discard, 256, workers, "substitute"):
            pass
    if not images.bad:
        return images
    for index, reason in images.bad.items():
        say(f"{printable(images.path(index))}: {reason}; left out")
    return subset(images, np.setdiff1d(indices, list(images.bad)))


def _discard(_image: object) -> Tensor:
    return torch.zeros(1)
