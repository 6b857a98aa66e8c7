"""Convolutions whose outputs have few pixels: on a CPU products with their patches, and faster."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_HAS_TILES = getattr(torch.cpu, "_is_amx_tile_supported", bool)  # a processor's, for products


@contextlib.contextmanager
def small_outputs_by_products(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, the network's convolutions on a CPU are products where oneDNN's are slower.

    Those pass along an output's pixels; of 4 their time goes elsewhere. What is slower was measured
    (benchmarks/README.md). Results differ by rounding.
    """
    modules = network.modules() if device.type == "cpu" else ()
    changed = [conv for conv in modules if type(conv) is nn.Conv2d and _is_plain(conv)]
    for conv in changed:
        setattr(conv, "_conv_forward", partial(_convolve, conv))  # noqa: B010 - a method
    try:
        yield
    finally:
        for conv in changed:
            del conv._conv_forward


def _is_plain(conv: nn.Conv2d) -> bool:
    square = all(height == width for height, width in (conv.kernel_size, conv.stride))
    even = not isinstance(conv.padding, str) and conv.padding[0] == conv.padding[1]
    whole = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return square and even and whole


def _convolve(conv: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What ``conv`` makes of images (N, C, H, W)."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        images, weight = images.to(dtype), weight.to(dtype)
    side, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    height, width = ((size + 2 * padding - side) // stride + 1 for size in images.shape[2:])
    channels = conv.in_channels * conv.out_channels
    few = height * width <= (64 if side == 1 else 4)
    tiled = height * width <= 16 and images.dtype == torch.bfloat16 and _HAS_TILES()
    if channels < 2**14 or not (few or tiled):
        return F.conv2d(images, weight, bias, stride, padding)
    forward = few or channels >= 2**17
    output = _Products.apply(images, weight, stride, padding, forward)
    return output if bias is None else output + bias.to(output.dtype)[:, None, None]


class _Products(torch.autograd.Function):
    """The weight's gradient is a product; with ``forward`` that and the images' gradient, too."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int, forward: bool):
        ctx.save_for_backward(images, weight)
        ctx.how = stride, padding, forward
        if not forward:
            return F.conv2d(images, weight, None, stride, padding)
        return _product(images, weight, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight = ctx.saved_tensors
        stride, padding, forward = ctx.how
        side = weight.shape[2]
        of_images = None
        if ctx.needs_input_grad[0] and forward and stride == 1:
            turned = weight.flip(2, 3).transpose(0, 1)
            of_images = _product(gradient, turned, 1, side - 1 - padding)
        elif ctx.needs_input_grad[0]:
            of_images = conv2d_input(images.shape, weight, gradient, stride, padding)
        patches = _patches(images, side, stride, padding)
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        of_weight = rows.t() @ patches.reshape(len(rows), -1)
        of_weight = of_weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
        return of_images, of_weight, None, None, None


def _product(images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution of images (N, C, H, W) with a weight (D, C, K, K): (N, D, height, width)."""
    patches = _patches(images, weight.shape[2], stride, padding)
    pixels = patches.shape[:3]
    rows = patches.reshape(pixels.numel(), -1) @ weight.permute(0, 2, 3, 1).flatten(1).t()
    return rows.unflatten(0, pixels).permute(0, 3, 1, 2)


def _patches(images: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """(N, C, H, W) -> (N, height, width, side, side, C): what each pixel of the output sees."""
    images = images.permute(0, 2, 3, 1)
    if padding:
        images = F.pad(images, (0, 0, *4 * (padding,)))
    patches = images.unfold(1, side, stride).unfold(2, side, stride)
    return patches.permute(0, 1, 2, 4, 5, 3)
