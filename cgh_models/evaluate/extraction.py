"""Embeddings of an image set, in its order, computed or read from a cache."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

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
    if isinstance(data, ImageSet):
        images = data
    else:
        images = load(data)
        images.report_skipped()
    if indices is None:
        indices = np.arange(len(images))
    settings = EvalSettings(batch_size, workers, device, fast, cache_dir)
    return embeddings(model, images, indices, settings)[0]


def extract_labelled(
    model: nn.Module, images: ImageSet, settings: EvalSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) and classes (n,) of the readable images; bad ones are named on stderr."""
    assert images.labels is not None
    # In memory there are substitutes in place of images that are known to be bad.
    indices = np.setdiff1d(np.arange(len(images)), list(images.bad))
    rows, kept = embeddings(model, images, indices, settings, "skip")
    return rows, images.labels[kept]


def embeddings(
    model: nn.Module,
    images: ImageSet,
    indices: np.ndarray,
    settings: EvalSettings,
    on_bad: OnBad = "raise",
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) float32 and indices (n,) of the images that are not skipped as bad.

    With a ``cache_dir`` they are read from there or, if none is skipped, written there.
    """
    key = ""
    if settings.cache_dir:
        key = cache.key(model, images, indices, settings.fast)
        cached = cache.read(settings.cache_dir, key)
        if cached is not None:
            return cached, indices
    _check_headless(model)
    device = pick_device(settings.device)
    transform = eval_transform(model)
    parts = []
    kept = []
    with eval_mode_on(model, device):
        embed = embedder(model, device, settings.fast)
        for batch, batch_indices in eval_batches(
            images, indices, transform, settings.batch_size, settings.workers, on_bad
        ):
            parts.append(embed(batch).cpu().numpy())
            kept.append(batch_indices)
    rows = np.concatenate(parts)
    if settings.cache_dir and len(rows) == len(indices):
        cache.write(settings.cache_dir, key, rows)
    return rows, np.concatenate(kept)


def _check_headless(model: nn.Module) -> None:
    classes = getattr(model, "num_classes", 0)
    if classes:
        what = f"this model ends in a classifier of {classes} classes"
        raise InputError(f"{what}; build it with num_classes=0")
    if not hasattr(model, "forward_head"):
        what = f"a {type(model).__name__} makes no embeddings"
        raise InputError(f"{what}; build the model without features_only")


def embedder(model: nn.Module, device: torch.device, fast: bool) -> Callable[[Tensor], Tensor]:
    """A function from images (N, 3, H, W) to embeddings (N, D); the model is in eval mode."""
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
    training = {module: module.training for module in model.modules()}
    model.to(device).eval()
    try:
        yield
    finally:
        model.to(original_device)
        for module, mode in training.items():
            module.training = mode


def readable_images(images: ImageSet, workers: int) -> ImageSet:
    """The set without its bad images, which are named on stderr; in memory if it fits."""
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
