"""Images that are given as Python objects: paths, pictures, arrays, tensors, datasets.

Each picture is handed on as the bytes of a file, so that everything which reads files reads it.
"""

import functools
import hashlib
import io
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import BadImage, InputError, printable
from .archive import GIVEN, Archive

TAKEN = (
    "a folder, a file or an address; a list of paths, pictures or arrays; a uint8 array "
    "(N, H, W, C), a uint8 tensor (N, C, H, W), a dataset with len() and items, or an ImageSet"
)
_SAMPLED = 64  # items that tell a dataset from others
_KEYS = ("image", "img", "pixels")  # of the picture, in items that are dicts
_OF_PNG = ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")  # modes that a PNG keeps as they are


def open_object(data: Any, to_8_bits: bool = True) -> Archive:
    """The images of an object, in its order. Raises InputError for what cannot be taken.

    The digest is of all pixels of an array or tensor, and of the number of items and 64 of them,
    evenly spaced, of everything else. A dataset has to give the same image whenever asked: views
    are made here. Labels are its ``targets`` or ``labels``. ``to_8_bits`` as in `as_file`.
    """
    kind = f"{GIVEN}{type(data).__name__}"
    if isinstance(data, Mapping):
        names = printable(", ".join(map(str, data)))[:80]
        raise InputError(f"data: holds the splits {names}; give one of them")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        expected = f"expected {TAKEN}"
        if isinstance(data, Iterable):
            expected = "its images have no numbers, so that no run could resume; give a list"
        raise InputError(f"data: {printable(repr(data))[:60]}: {expected}")
    if getattr(data, "ndim", 1) == 0:
        raise InputError(f"data: a {type(data).__name__} of no dimensions; expected {TAKEN}")
    if not len(data):
        raise InputError(f"data: an empty {type(data).__name__}; give images")
    positions = list(range(len(data)))
    try:
        is_tensor = isinstance(data, Tensor)
        opener = _Items(data.numpy(force=True) if is_tensor else data, is_tensor, to_8_bits)
        opener(0).close()
    except Exception as error:  # whatever a dataset raises
        reason = printable(" ".join(str(error).split()))[:160]
        raise InputError(f"data: a {type(data).__name__}: {reason}; expected {TAKEN}") from error
    names = [f"{position:08d}" for position in positions]
    index = (names, *_labels(data), _digest(opener), positions, opener)
    stamp = "" if isinstance(opener.data, np.ndarray) else None
    return Archive(kind, *index, source=kind, stamp=stamp)


def paths_of(data: object) -> list[str] | None:
    """Full paths, if the object gives paths; None if it gives something else."""
    if not isinstance(data, Iterable) or isinstance(data, Mapping):
        return None
    items = iter(data if getattr(data, "ndim", 1) else ())
    first = next(items, None)
    if not isinstance(first, (str, os.PathLike)):
        return None
    paths = [first, *items]
    for path in paths:
        if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
            raise InputError(f"{printable(path)[:200]}: there is no such file; mend the list")
    return [os.path.abspath(path) for path in paths]


@dataclass(frozen=True)
class _Items:
    """Opens an item of an object as a file."""

    data: Any
    is_tensor: bool  # what was given, of which ``data`` is the array
    to_8_bits: bool

    def __call__(self, position: int) -> IO[bytes]:
        with _one_at_a_time(os.getpid()):
            item = self.data[position]
            if self.is_tensor:
                item = torch.from_numpy(item)
            elif isinstance(item, (tuple, list)):
                item = item[0] if item else None
            elif isinstance(item, Mapping):
                item = next((item[key] for key in _KEYS if key in item), None)
            return as_file(item, self.to_8_bits)


@functools.cache
def _one_at_a_time(_process: int) -> threading.RLock:
    """What a user gives need not be safe for threads; a lock of another process may stay taken."""
    return threading.RLock()


def as_file(picture: object, to_8_bits: bool = True) -> IO[bytes]:
    """The bytes of a file that `decode` reads as these pixels. Raises BadImage.

    A picture that PIL has opened and not yet read is its own file. With ``to_8_bits`` grey and RGB
    tensors of floats are rounded; else they are read by the range of their set, as arrays are.
    """
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "")
        is_whole = getattr(picture, "fp", None) and picture.tell() == 0  # nothing was read of it
        if is_whole and name and os.path.isfile(name):
            return open(name, "rb")
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in ("L", "RGB") or picture.has_transparency_data:
            file = io.BytesIO()
            picture.save(file, "PNG" if picture.mode in _OF_PNG else "TIFF")
            return io.BytesIO(file.getvalue())
    if isinstance(picture, Tensor):
        is_rgb = picture.ndim == 2 or (picture.ndim == 3 and len(picture) in (1, 3))
        picture = _rounded(picture) if to_8_bits and is_rgb else picture
        picture = (picture.movedim(0, -1) if picture.ndim == 3 else picture).numpy(force=True)
    if not isinstance(picture, (np.ndarray, Image.Image)):
        raise BadImage(f"a {type(picture).__name__} is no picture")
    pixels = np.ascontiguousarray(picture)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "uif":
        raise BadImage(f"{pixels.dtype} pixels of shape {pixels.shape}; expected (H, W, C)")
    if pixels.dtype != np.uint8 or channels not in (1, 3):  # with in_chans=C
        file = io.BytesIO()
        np.save(file, pixels)
        return io.BytesIO(file.getvalue())
    height, width = pixels.shape[:2]
    header = f"P{6 if channels == 3 else 5} {width} {height} 255\n"  # a PPM: the pixels as they are
    return io.BytesIO(header.encode() + pixels.tobytes())


def _rounded(pixels: Tensor) -> Tensor:
    """uint8 as it is; of floats in [0, 1], as `ToTensor` of torchvision makes them, its inverse."""
    if not pixels.is_floating_point():
        return pixels
    low, high = pixels.min().item(), pixels.max().item()
    if not 0 <= low <= high <= 1:
        what = f"a float tensor from {low:.3g} to {high:.3g}"
        raise BadImage(f"{what}; leave out what normalizes it, or give pixel_range")
    return (pixels * 255).round().to(torch.uint8)


def _digest(opener: _Items) -> str:
    data = opener.data
    if isinstance(data, np.ndarray):
        total = hashlib.sha256(f"{data.dtype} {data.shape}\n".encode())
        for image in data:
            total.update(np.ascontiguousarray(image).tobytes())
        return total.hexdigest()
    total = hashlib.sha256(f"{len(data)}\n".encode())
    for position in np.linspace(0, len(data) - 1, min(_SAMPLED, len(data))).astype(int).tolist():
        content = [_content(opener, position) for _ in range(2)]
        if content[0] != content[1]:
            what = f"data: a {type(data).__name__}: gives another image when it is asked again"
            raise InputError(f"{what}; take random transforms out of it, views are made here")
        total.update(content[0])
    return total.hexdigest()


def _content(opener: _Items, position: int) -> bytes:
    try:
        with opener(position) as file:
            return hashlib.sha256(file.read()).digest()
    except Exception:  # a bad image, which a run names
        return b"bad"


def _labels(data: Any) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and names of the classes; none if the object does not say."""
    if hasattr(data, "indices") and hasattr(data, "dataset"):  # torch's Subset
        labels, classes = _labels(data.dataset)
        return None if labels is None else labels[np.array(data.indices, int)], classes
    given = getattr(data, "targets", getattr(data, "labels", None))
    try:
        given = np.asarray([] if given is None else given)
    except (ValueError, TypeError):  # ragged, as the boxes of detection: no classes
        return None, []
    if given.shape != (len(data),) or given.dtype.kind not in "iu" or given.min() < 0:
        return None, []
    classes = getattr(data, "classes", None)
    names = list(map(str, classes)) if isinstance(classes, (list, tuple)) else []
    if len(names) <= given.max():
        names = [str(number) for number in range(given.max() + 1)]
    return given.astype(int), names
