"""Pixels that fill their type as tensors of numbers in [0, 1]."""

import numpy as np
import torch
from torch import Tensor


def unit(pixels: Tensor) -> Tensor:
    """float32 in [0, 1] of pixels that fill their type: uint8, uint16 or float32."""
    full = 1 if pixels.is_floating_point() else torch.iinfo(pixels.dtype).max
    return pixels.float() / full


def as_tensor(pixels: np.ndarray) -> Tensor:
    """An image (H, W, bands) as float32 (bands, H, W) in [0, 1]."""
    return unit(torch.from_numpy(pixels)).permute(2, 0, 1)
