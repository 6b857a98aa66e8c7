"""Pixels that fill their type: numbers in [0, 1] of them, mean and deviation, pictures."""

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import BadImage, InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

Pixels = Image.Image | np.ndarray  # 8-bit RGB, or an array (H, W, bands)
_SAMPLE = 256  # images that mean and deviation are measured on
_SHOWN = (2, 98)  # percentiles that a picture of an image shows black and white


def unit(pixels: "Tensor") -> "Tensor":
    """float32 in [0, 1] of pixels that fill their type: uint8, uint16 or float32."""
    import torch  # imported late: it takes seconds

    full = 1 if pixels.is_floating_point() else torch.iinfo(pixels.dtype).max
    return pixels.float() / full


def as_tensor(pixels: np.ndarray) -> "Tensor":
    """An image (H, W, bands) as float32 (bands, H, W) in [0, 1]."""
    import torch

    return unit(torch.from_numpy(pixels)).permute(2, 0, 1)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 of the same shape, rounded to the nearest."""
    return np.rint(255 * _unit(pixels)).astype(np.uint8)


def as_picture(pixels: Pixels) -> Image.Image:
    """Of an image (H, W, bands) its first three bands, or one, with full contrast, for people."""
    if isinstance(pixels, Image.Image):
        return pixels  # of three channels, as it is
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    low, high = np.percentile(shown, _SHOWN)
    share = (shown.astype(np.float64) - low) / max(high - low, 1e-12)
    return Image.fromarray(np.rint(255 * share.clip(0, 1)).astype(np.uint8)).convert("RGB")


def moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (bands,) of an image's values in [0, 1], and mean of their squares."""
    values = _unit(pixels).astype(np.float64)
    return values.mean((0, 1)), (values**2).mean((0, 1))


def measured(images: Any) -> tuple[list[float], list[float], int]:
    """Mean and deviation of each band over some images of a set, and of how many."""
    places = np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(int)
    found = []
    for index in places.tolist():
        with contextlib.suppress(BadImage):
            found.append(moments(images.image(index)))
    if not found:
        raise InputError(f"{printable(images.place)}: none of {len(places)} images can be used")
    mean, square = np.mean(found, 0)
    return (*statistics(mean, square), len(found))


def statistics(mean: np.ndarray, square: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation with four digits; a band of one value gets 1."""
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return _four_digits(mean), _four_digits(np.where(std < 1e-6, 1, std))


def _unit(pixels: np.ndarray) -> np.ndarray:
    """`unit` of an array."""
    full = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    return pixels.astype(np.float32) / np.float32(full)


def _four_digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
