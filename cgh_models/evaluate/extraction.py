"""Embeddings of an image set, in its order, made or read from a cache."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..data.image_set import ImageSet, load
from ..data.loader import eval_batches, eval_transform
from ..errors import InputError
from . import cache
from .inference import inference_copy


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

    Images pass through timm's evaluation transform for the model. The model's training mode and device are restored.

    Args:
        data: a folder, a list of paths, or an ImageSet.
        indices: take only these images, in this order.
        fast: run a copy of the model with folded batch norms, in bfloat16 where the processor has it; what of it moves
            embeddings of noise to a cosine below 0.9999 is left out.
        cache_dir: a folder to keep them in and read them from, by network, preprocessing, and names, sizes and times
            of change of the files; None: no cache.

    Raises:
        InputError: nothing to read there, a bad image, or a model that makes no embeddings.
    """
    images = data if isinstance(data, ImageSet) else load(data)
    indices = np.arange(len(images)) if indices is None else indices
    key = ""
    if cache_dir:
        key = cache.key(model, images, indices, fast)
        if (kept := cache.read(cache_dir, key, len(indices))) is not None:
            return kept
    parts = embeddings(model, images, indices, batch_size=batch_size, workers=workers, device=device, fast=fast)
    found = np.concatenate(list(parts))
    if cache_dir:
        cache.write(cache_dir, key, found)
    return found


def embeddings(
    model: nn.Module,
    images: ImageSet,
    indices: np.ndarray,
    *,
    batch_size: int = 256,
    workers: int = 2,
    device: str | torch.device = "auto",
    fast: bool = False,
    replace: bool = False,
) -> Iterator[np.ndarray]:
    """The rows of `extract`, batch after batch; ``replace`` takes other images for bad ones, as training does."""
    check(batch_size, workers)
    _check_headless(model)
    with borrowed(model, place := pick_device(device)):
        run = forward(model, place, fast)
        for batch in eval_batches(images, indices, eval_transform(model), batch_size, workers, replace):
            yield run(batch).cpu().numpy()


def _check_headless(model: nn.Module) -> None:
    if classes := getattr(model, "num_classes", 0):
        raise InputError(f"this model ends in a classifier of {classes} classes; build it with num_classes=0")
    if not hasattr(model, "forward_head"):
        raise InputError(f"a {type(model).__name__} makes no embeddings; build the model without features_only")


def forward(model: nn.Module, device: torch.device, fast: bool) -> Callable[[Tensor], Tensor]:
    """What makes embeddings (N, D) float32 of images (N, 3, H, W) with a model in evaluation mode on ``device``."""
    run = inference_copy(model, pick_precision("auto", device)) if fast else model
    kind = next(run.parameters()).dtype

    @torch.inference_mode()
    def embed(images: Tensor) -> Tensor:
        return run(images.to(device, kind, memory_format=torch.channels_last)).float()

    return embed


def check(batch_size: int = 256, workers: int = 2) -> None:
    """Raises InputError for what `embeddings` cannot use."""
    if batch_size < 1 or workers < 0:
        raise InputError(f"batch size {batch_size}, workers {workers}: expected at least 1 and at least 0")


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on ``device``, in evaluation mode; afterwards its device and training modes are what they were."""
    home, training = next(model.parameters()).device, [m.training for m in model.modules()]
    model.to(device).eval()
    try:
        yield
    finally:
        model.to(home)
        for module, mode in zip(model.modules(), training, strict=True):
            module.training = mode


def pick_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Raises InputError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The networks' precision; "auto" is bfloat16 where the processor has instructions for it, never float16."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    native = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False),
    }
    return torch.bfloat16 if native.get(device.type, lambda: False)() else torch.float32
