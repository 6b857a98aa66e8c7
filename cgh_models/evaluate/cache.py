"""Embeddings kept on disk: a safetensors file per (network, preprocessing, images), its sha256 in a file beside it."""

import hashlib
import json
import re
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import files
from ..data.image_set import ImageSet
from ..errors import DiskError, InputError, IntegrityError, printable
from ..tensors import read_tensors, write_tensors

# What of timm's pretrained_cfg the evaluation transform is made from.
_PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_PACKAGES = ("torch", "timm", "torchvision", "pillow")  # another version may compute or resize otherwise


def key(model: nn.Module, images: ImageSet, indices: np.ndarray, fast: bool = False) -> str:
    """Hex sha256 of all that decides embeddings but the device: network, preprocessing, images, library versions.

    Images are told apart by name, size and time of change, not by their bytes.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    parts = {
        "structure": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),  # activations and strides are no tensors
        "settings": [*_settings(model), f"fast={fast}"],
        "tensors": _hash_of_state(model),
        "preprocessing": {name: str(cfg.get(name)) for name in _PREPROCESSING},
        "images": [images.digest, _times(images, indices)],
        "indices": hashlib.sha256(np.asarray(indices, "<i8").tobytes()).hexdigest(),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _times(images: ImageSet, indices: np.ndarray) -> str:
    """Of the last change of each image."""
    times = [images.changed(index) for index in indices]
    return hashlib.sha256(np.array(times, "<i8").tobytes()).hexdigest()


def _settings(model: nn.Module) -> list[str]:
    """What modules keep in plain attributes: a ViT's pooling, the number of tokens that are no patches."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        f"{name}.{key}={value}"
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, plain) and key != "training"
    ]


def _hash_of_state(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def read(folder: str | Path, key: str, count: int) -> np.ndarray | None:
    """The embeddings (count, D) float32 that were kept; None if there are none, or if their file is damaged.

    Raises:
        InputError: the folder cannot be made: said before the work, not after it.
    """
    path = _make(folder) / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        said = files.read_json(path.with_suffix(".json"), "the sha256 of kept embeddings")
        rows = read_tensors(path, str(said.get("sha256"))).get("embeddings")
    except (InputError, IntegrityError, DiskError):
        rows = None
    if rows is None or rows.dtype != torch.float32 or rows.ndim != 2 or len(rows) != count:
        warnings.warn(f"{printable(path)}: kept embeddings are damaged and are made again", stacklevel=3)
        return None
    return rows.numpy()


def write(folder: str | Path, key: str, embeddings: np.ndarray) -> None:
    """Keeps embeddings (N, D). A full disk is a warning: the work is done, and they are worth more than their copy."""
    path = _make(folder) / f"{key}.safetensors"
    try:
        write_tensors(path, {"embeddings": torch.from_numpy(embeddings)})
        files.write_json(path.with_suffix(".json"), {"sha256": files.sha256(path), "shape": list(embeddings.shape)})
    except DiskError as error:
        warnings.warn(f"the embeddings are not kept: {error}", stacklevel=3)


def _make(folder: str | Path) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise InputError(f"{printable(path)}: cannot keep embeddings ({reason}); give --cache a folder") from error
    return path
