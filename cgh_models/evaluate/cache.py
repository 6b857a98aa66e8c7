"""Embeddings cached on disk: a safetensors file each, and its sha256 in a JSON file beside it."""

import hashlib
import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .. import files
from ..errors import DiskError, InputError, IntegrityError, os_error_as, printable, say
from ..hashing import sha256
from ..tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from ..data.image_set import ImageSet

# The fields of timm's pretrained_cfg that the evaluation transform is made from.
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def key(model: nn.Module, images: "ImageSet", indices: np.ndarray, fast: bool = False) -> str:
    """Hex sha256 of all that decides embeddings: network, preprocessing, images, library versions.

    Files are identified by name, size and time of change, not by their bytes.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    times = np.array([images.changed(index) for index in indices], "<i8")
    content = images.archive.content() if images.archive else images.digest
    parts = {
        # Shows activations and strides, which are no tensors.
        "structure": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        "settings": [*_plain_attributes(model), f"fast={fast}"],
        "tensors": state_sha256(model),
        "preprocessing": {name: str(cfg.get(name)) for name in _PREPROCESSING},
        "images": [images.pixel_range, content, hashlib.sha256(times.tobytes()).hexdigest()]
        + [images.reader] * bool(images.reader),
        "indices": hashlib.sha256(np.asarray(indices, "<i8").tobytes()).hexdigest(),
        "versions": library_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries of which another may compute or resize differently."""
    return {name: version(name) for name in ("torch", "timm", "torchvision", "pillow")}


def _plain_attributes(model: nn.Module) -> list[str]:
    """Attributes of modules that are not tensors, such as a ViT's pooling."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        f"{name}.{attribute}={value}"
        for name, module in model.named_modules()
        for attribute, value in sorted(vars(module).items())
        if isinstance(value, plain) and attribute != "training"
    ]


def state_sha256(model: nn.Module) -> str:
    """Hex sha256 of a network's tensors, with their names, types and shapes."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(memoryview(raw.numpy()))
    return total.hexdigest()


def read(
    folder: str | Path, key: str, images: "ImageSet", indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cached embeddings (n, D) and indices (n,) of the images that can be read; None if not kept.

    ``indices`` are those of all images. What was left out of them is tried again: chmod does not
    change the time of a file. A damaged file is named, and then counts as none.
    """
    with os_error_as(InputError, folder, "cannot keep embeddings", "give --cache a folder"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        described = files.read_json(path.with_suffix(".json"), "the sha256 of cached embeddings")
        tensors = read_tensors(path, str(described["sha256"]))
        kept = tensors["kept"].numpy() if "kept" in tensors else indices
        missing = np.setdiff1d(indices, kept)
        if not all(images.why_bad(int(index)) for index in missing):
            return None
        if missing.size:
            say(f"{printable(path)}: of images of which {missing.size} could not be read; left out")
        return tensors["embeddings"].numpy(), kept
    except (InputError, IntegrityError, DiskError, KeyError):
        message = f"{printable(path)}: cached embeddings are damaged and are computed again"
        warnings.warn(message, stacklevel=3)
        return None


def write(folder: str | Path, key: str, embeddings: np.ndarray, kept: np.ndarray) -> None:
    """Caches embeddings (n, D) of these images (n,). A full disk is a warning: the work is done."""
    path = Path(folder) / f"{key}.safetensors"
    tensors = {"embeddings": torch.from_numpy(embeddings), "kept": torch.from_numpy(kept)}
    try:
        write_tensors(path, tensors)
        described = {"sha256": sha256(path), "shape": list(embeddings.shape)}
        files.write_json(path.with_suffix(".json"), described)
    except DiskError as error:
        warnings.warn(f"the embeddings are not cached: {error}", stacklevel=3)
