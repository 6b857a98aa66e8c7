"""Embeddings of an image set, in its order, computed or read from a cache."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import channels
from ..config import TrainConfig, check_pixel_range
from ..data.eval_loader import OnBad, eval_batches, eval_size, eval_transform
from ..data.image_set import ImageSet, load
from ..data.reading import check_channels
from ..errors import InputError, out_of_memory, printable, say
from ..progress import bar
from ..tensors import plain_defaults
from . import cache
from .devices import pick_device, pick_precision
from .feature_maps import POOLED, Features, feature_function
from .inference import inference_copy
from .protocols import EvalSettings
from .splits import subset

# What networks raise for images that they cannot take.
_REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_MOST_BYTES = 2**28  # of a batch of images, whatever size the model's description asks for


@plain_defaults()
def extract(
    model: nn.Module,
    data: Any,
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

    Images pass through timm's evaluation transform for the model. The model's training mode and
    device are restored.

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
    in_chans = channels(getattr(model, "_orig_mod", model))
    images = open_images(data, pixel_range, in_chans, reader)
    rows, kept = embeddings(model, images, _positions(indices, len(images)), settings)
    return (rows, [images.names[index] for index in kept]) if return_names else rows


def open_images(
    data: Any, pixel_range: str = "auto", in_chans: int = 3, reader: str = ""
) -> ImageSet:
    """The ImageSet of what `extract` takes."""
    images = load(data, pixel_range=pixel_range, in_chans=in_chans, reader=reader)
    if not isinstance(data, ImageSet):
        images.report_skipped()
    return images


def _positions(indices: Any, count: int) -> np.ndarray:
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


def extract_labelled(
    model: nn.Module, images: ImageSet, settings: EvalSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) and classes (n,) of the readable images; bad ones are named on stderr.

    Raises InputError for embeddings that are not finite.
    """
    assert images.labels is not None
    # In memory there are substitutes in place of images that are known to be bad.
    indices = np.setdiff1d(np.arange(len(images)), list(images.bad))
    rows, kept = embeddings(model, images, indices, settings, "skip")
    check_finite(rows)
    return rows, images.labels[kept]


def check_finite(rows: np.ndarray) -> None:
    """Raises InputError for embeddings (N, D) that are not finite."""
    if rows.size and not (np.isfinite(rows.min()) and np.isfinite(rows.max())):
        what = "the embeddings are not finite"
        raise InputError(f"{what}; give other weights, these diverged in training")


def embeddings(
    model: nn.Module,
    images: ImageSet,
    indices: np.ndarray,
    settings: EvalSettings,
    on_bad: OnBad = "raise",
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) float32 and indices (n,) of the images that are not skipped as bad.

    With a ``cache_dir`` they are read from there, or written there.
    """
    plain: Any = getattr(model, "_orig_mod", model)  # of what torch.compile returned
    _check_headless(plain)
    check_channels(images, channels(plain))
    key = ""
    if settings.cache_dir:
        key = cache.key(plain, images, indices, settings.fast)
        cached = cache.read(settings.cache_dir, key, images, indices)
        if cached is not None and (on_bad == "skip" or len(cached[1]) == len(indices)):
            return cached
    with embedder_of(model, settings) as embedder, bar(len(indices), "embedding") as shown:
        count = 0
        kept = np.empty(len(indices), np.int64)
        rows = np.empty((len(indices), *embedder.shape), np.float32)
        batch_size, workers = embedder.batch_size, settings.workers
        for batch, batch_indices in eval_batches(
            images, indices, eval_transform(plain), batch_size, workers, on_bad
        ):
            end = count + len(batch)
            rows[count:end] = embedder.embed(batch).cpu().numpy()
            kept[count:end] = batch_indices
            count = end
            shown.update(len(batch))
    if settings.cache_dir:
        cache.write(settings.cache_dir, key, rows[:count], kept[:count])
    return rows[:count], kept[:count]


class Embedder(NamedTuple):
    """A network that is ready to embed."""

    embed: Callable[[Tensor], Tensor]  # images (N, C, H, W) -> embeddings (N, ...) float32
    shape: tuple[int, ...]  # of an image's embedding
    batch_size: int  # images that it takes at once


@contextlib.contextmanager
def embedder_of(
    model: nn.Module, settings: EvalSettings, features: Features = POOLED
) -> Iterator[Embedder]:
    """Within it, the network on its device in evaluation mode. Raises InputError, as `extract`."""
    plain: Any = getattr(model, "_orig_mod", model)
    _check_headless(plain)
    device = pick_device(settings.device)
    image_bytes = channels(plain) * 4 * math.prod(eval_size(plain))
    batch_size = min(settings.batch_size, max(1, _MOST_BYTES // image_bytes))
    with eval_mode_on(plain, device):
        shape = _shape(plain, device, features)
        runs = plain if settings.fast or features != POOLED else model
        yield Embedder(embed_function(runs, device, settings.fast, features), shape, batch_size)


def _check_headless(model: Any) -> None:
    kind = f"a {type(model).__name__}"
    if isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "forward_head"):
        raise InputError(f"{kind} hides the model that it wraps; give its .module")
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise InputError(f"{kind} does not say which images it takes; give the timm module itself")
    classes = getattr(model, "num_classes", 0)
    if classes:
        what = f"this model ends in a classifier of {classes} classes"
        raise InputError(f"{what}; build it with num_classes=0")
    if not hasattr(model, "forward_head"):
        raise InputError(f"{kind} makes no embeddings; build the model without features_only")
    if not getattr(model, "pretrained_cfg", None):
        raise InputError(f"{kind} has no pretrained_cfg, which says what images it takes; give one")
    tensors = [*model.parameters(), *model.buffers()]
    if not tensors or any(tensor.is_meta for tensor in tensors):
        raise InputError(f"{kind} has no weights: it is empty or on the meta device; load some")


@torch.inference_mode()
def _shape(model: Any, device: torch.device, features: Features) -> tuple[int, ...]:
    """The shape of the embedding of an image, one of zeros. Raises InputError."""
    size = eval_size(model)
    count = channels(model)
    image = torch.zeros(1, count, *size, device=device, dtype=next(model.parameters()).dtype)
    take = feature_function(model, features)
    try:
        shape = tuple(take(image).shape)
    except _REFUSALS as error:
        if out_of_memory(error):
            raise
        reason = printable(" ".join(str(error).split()))[:120]
        what = f"a {type(model).__name__} cannot take images of {' x '.join(map(str, size))}"
        advice = f"build it for {count} channels and that size"
        raise InputError(f"{what} ({reason}); {advice}") from error
    if len(shape) != (4 if features.dense else 2):
        what = f"a {type(model).__name__} makes {shape[1:]} of an image, not one embedding"
        raise InputError(f"{what}; build it with pooling (global_pool)")
    return shape[1:]


def embed_function(
    model: nn.Module, device: torch.device, fast: bool, features: Features = POOLED
) -> Callable[[Tensor], Tensor]:
    """A function from images (N, C, H, W) to embeddings (N, D); the model is in eval mode."""
    network = inference_copy(model, pick_precision("auto", device)) if fast else model
    dtype = next(network.parameters()).dtype
    take = feature_function(network, features)

    @torch.inference_mode()
    def embed(images: Tensor) -> Tensor:
        return take(images.to(device, dtype, memory_format=torch.channels_last)).float()

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
        say(f"{printable(images.where(index))}: {reason}; left out")
    return subset(images, np.setdiff1d(indices, list(images.bad)))


def _discard(_image: object) -> Tensor:
    return torch.zeros(1)
