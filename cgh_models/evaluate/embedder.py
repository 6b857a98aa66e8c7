"""A network that embeds: checked, on its device, over the images of a set in its order."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import channels
from ..config import TrainConfig
from ..data.eval_loader import OnBad, eval_batches, eval_size, eval_transform
from ..data.reading import check_channels
from ..errors import InputError, out_of_memory, printable, say
from ..kept_memory import freed_memory_kept
from ..progress import bar
from . import cache
from .devices import pick_device, pick_precision
from .feature_maps import POOLED, Features, feature_function
from .inference import inference_copy
from .protocols import EvalSettings
from .splits import subset

if TYPE_CHECKING:
    from ..data.image_set import ImageSet

# What networks raise for images that they cannot take.
_REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_MOST_BYTES = 2**28  # of a batch of images, whatever size the model's description asks for


def extract_labelled(
    model: nn.Module, images: "ImageSet", settings: EvalSettings
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
    images: "ImageSet",
    indices: np.ndarray,
    settings: EvalSettings,
    on_bad: OnBad = "raise",
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) float32 and indices (n,) of the images that are not skipped as bad.

    With a ``cache_dir`` they are read from there, or written there.
    """
    plain: nn.Module = getattr(model, "_orig_mod", model)  # of what torch.compile returned
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
        how = (eval_transform(plain), embedder.batch_size, settings.workers)
        for batch, batch_indices in eval_batches(images, indices, *how, on_bad):
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
    plain: nn.Module = getattr(model, "_orig_mod", model)
    _check_headless(plain)
    device = pick_device(settings.device)
    image_bytes = channels(plain) * 4 * math.prod(eval_size(plain))
    batch_size = min(settings.batch_size, max(1, _MOST_BYTES // image_bytes))
    with eval_mode_on(plain, device):
        shape = _shape(plain, device, features)
        runs = plain if settings.fast or features != POOLED else model
        yield Embedder(embed_function(runs, device, settings.fast, features), shape, batch_size)


def _check_headless(model: object) -> None:
    kind = f"a {type(model).__name__}"
    if isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "forward_head"):
        raise InputError(f"{kind} hides the model that it wraps; give its .module")
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise InputError(f"{kind} does not say which images it takes; give the timm module itself")
    if classes := getattr(model, "num_classes", 0):
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
def _shape(model: nn.Module, device: torch.device, features: Features) -> tuple[int, ...]:
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
        with freed_memory_kept(device):
            yield
    finally:
        model.to(original_device)
        for module, mode in training.items():
            module.training = mode


def readable_images(images: "ImageSet", workers: int) -> "ImageSet":
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
