"""The fast mode of view recipes: a batch of decoded images -> normalized views, on their device.

Every step up to solarizing is linear in the pixels, so an image needs few products: crop, resize,
flip and blur are one matrix for its rows and one for its columns; brightness, contrast, saturation,
hue and grey are one 3 x 4 matrix. What colours do to other numbers of bands is in `views`.

Differs from the exact mode: values are clamped once, at the end, and are not rounded; the hue turns
about the grey axis of RGB, not in HSV; the blur is a Gaussian whose weights stop at the edge, where
Pillow passes boxes over edge pixels that are repeated. Crops that workers cut are rounded once;
large JPEG files are decoded at a fraction of their size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..view_recipes import View
from .draws import Draws, draw
from .pixels import unit

_CPU_IMAGES = 64  # at a time on a CPU, so that they stay in its cache
_ALIGNED = 64  # bytes, as torch aligns its own tensors: their products have the same last bits
_NO_BLUR = 1e-3  # pixels: a Gaussian so narrow weighs its own pixel alone
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as in Pillow's "L"
_GREY = np.tile(_LUMA, (3, 1))
_MEAN = np.full((3, 3), 1 / 3)
_TURN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # cross product with the grey axis


class ViewRequest(NamedTuple):
    """One view to be made of each of N images."""

    view: View
    images: Tensor  # fill their type: whole ones (N, H, W, C), or crops (N, C, size, size)
    u: np.ndarray  # (N, COLUMNS) random numbers
    size: int
    box: np.ndarray | None = None  # (N, 4) of whole images, from `draws.boxes`


def fast_views(requests: Sequence[ViewRequest], mean: Tensor, std: Tensor) -> list[Tensor]:
    """Of each request, views (N, C, size, size) float32 on the device of the images.

    All parameters are made on the host and moved in one copy, so that nothing waits for the device.
    """
    params = parameters(requests, mean)
    return [apply(*one, mean, std) for one in zip(requests, params, strict=True)]


def parameters(
    requests: Sequence[ViewRequest], mean: Tensor, same_shapes: bool = False
) -> list[dict[str, Tensor]]:
    """What `apply` needs for each request, on the device of ``mean``.

    With ``same_shapes`` all images are blurred, most of them by nothing: then the parameters of
    each batch have the same shapes.
    """
    made = [_make_params(request, len(mean), same_shapes) for request in requests]
    moved = iter(to_device([array for found in made for array in found.values()], mean.device))
    return [{name: next(moved) for name in found} for found in made]


def to_device(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays on a device, in one copy that the host does not wait for.

    Each call asks torch for pinned memory, which hands it out again only when the copy is done: so
    no later step writes into what is still being copied.
    """
    sizes = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    rest = host.numpy()
    for array, size in zip(arrays, sizes, strict=True):
        rest[: array.nbytes] = array.reshape(-1).view(np.uint8)
        rest = rest[size:]
    tensors = []
    pieces = host.to(device, non_blocking=True).split(sizes)
    for array, piece in zip(arrays, pieces, strict=True):
        dtype = torch.from_numpy(array).dtype
        tensors.append(piece[: array.nbytes].view(dtype).view(array.shape))
    return tensors


def _chunks(request: ViewRequest) -> range:
    """Where the images begin that are worked on at a time."""
    count = len(request.u)
    return range(0, count, _CPU_IMAGES if request.images.device.type == "cpu" else count)


def _make_params(request: ViewRequest, channels: int, same_shapes: bool) -> dict[str, np.ndarray]:
    """What the device needs to know: of all images, and of each chunk that are blurred."""
    view = request.view
    drawn = draw(view, request.u)
    params = {"flip": drawn.flip, "solarize": drawn.solarize}
    if request.box is not None:
        params["box"] = request.box.astype(np.float32)
    if view.jitter_p or view.grey_p:
        of_pixel, of_mean = colour_matrices(drawn, channels)
        params["of_pixel"] = (of_pixel / 255).astype(np.float32)
        params["of_mean"] = (of_mean / 255).astype(np.float32)
    chunks = _chunks(request)
    for start in chunks:
        sigma = drawn.sigma[start : start + chunks.step]
        blurred = np.arange(len(sigma)) if same_shapes and view.blur_p else np.flatnonzero(sigma)
        if blurred.size:
            exponents = -0.5 / np.maximum(sigma[blurred], _NO_BLUR) ** 2
            params[f"blurred {start}"] = blurred
            params[f"exponents {start}"] = exponents.astype(np.float32)
    return params


def apply(request: ViewRequest, params: dict[str, Tensor], mean: Tensor, std: Tensor) -> Tensor:
    """The views (N, C, size, size) by their parameters."""
    view, images, u, size, box = request
    width = size**2 if images.device.type == "cpu" else 1  # clamp repeats bounds slowly there
    black, white = (_normalized(v, mean, std).expand(-1, width).contiguous() for v in (0, 1))
    views = torch.empty(len(u), len(mean), size, size, device=images.device)
    chunks = _chunks(request)
    for start in chunks:
        chunk = slice(start, start + chunks.step)
        flip = params["flip"][chunk]
        blur = None
        if f"blurred {start}" in params:
            blur = params[f"blurred {start}"], _blur_weights(params[f"exponents {start}"], size)
        if box is None:
            x = _flip_and_blur(images[chunk], flip, blur)
        else:
            x = _crop_flip_and_blur(images[chunk], params["box"][chunk], flip, blur, size)
        x = x.flatten(2)  # (n, C, pixels) in [0, 255]
        if "of_pixel" in params:
            x = _colour(x, params["of_pixel"][chunk], params["of_mean"][chunk], mean, std)
        else:
            x = x.sub_(255 * mean[:, None]).div_(255 * std[:, None])
        if view.solarize_p:
            bright = x >= _normalized(128 / 255, mean, std)
            inverted = params["solarize"][chunk, None, None] & bright
            x = torch.where(inverted, black + white - x, x)
        torch.clamp(x, black, white, out=views[chunk].flatten(2))
    return views


def crop(pixels: Tensor, box: np.ndarray, size: int) -> Tensor:
    """A resized crop (C, size, size) of an image (H, W, C): uint8 of uint8, else float32.

    Within one step of 255 of Pillow's bilinear resizing.
    """
    top, left, height, width = box.tolist()
    part = pixels[top : top + height, left : left + width].permute(2, 0, 1)
    if part.dtype != torch.uint8:
        part = unit(part)
    return F.interpolate(part[None], (size, size), mode="bilinear", antialias=True)[0]


def _to_255(pixels: Tensor) -> Tensor:
    """float32 in [0, 255] of pixels that fill their type."""
    return pixels.float() if pixels.dtype == torch.uint8 else unit(pixels) * 255


def _flip_and_blur(crops: Tensor, flip: Tensor, blur: tuple[Tensor, Tensor] | None) -> Tensor:
    """(N, C, size, size) -> float32 in [0, 255]. ``blur``: which (n,), and their weights."""
    x = _to_255(torch.where(flip[:, None, None, None], crops.flip(3), crops))
    if blur is not None:
        places, weights = blur[0], blur[1][:, None]
        x.index_copy_(0, places, weights @ x.index_select(0, places) @ weights.transpose(2, 3))
    return x


def _crop_flip_and_blur(
    images: Tensor, box: Tensor, flip: Tensor, blur: tuple[Tensor, Tensor] | None, size: int
) -> Tensor:
    """(N, H, W, C) -> float32 (N, C, size, size), by a matrix for rows and for columns."""
    count, height, width, channels = images.shape
    top, left, box_height, box_width = box.unbind(1)
    place = torch.arange(size, device=images.device) + 0.5
    mirrored = torch.where(flip[:, None], size - place, place)
    rows = _resize_weights(top, box_height, place, height)
    columns = _resize_weights(left, box_width, mirrored, width)
    if blur is not None:
        for weights in (rows, columns):
            weights.index_copy_(0, blur[0], blur[1] @ weights.index_select(0, blur[0]))
    pixels = _to_255(images.reshape(count, height, width * channels))
    x = torch.bmm(rows, pixels)  # (N, size, W * C)
    x = x.view(count, size, width, channels).permute(0, 3, 1, 2)
    x = x.reshape(count, channels * size, width)
    return torch.bmm(x, columns.transpose(1, 2)).view(count, channels, size, size)


def _resize_weights(start: Tensor, length: Tensor, place: Tensor, pixels: int) -> Tensor:
    """(N, size, pixels) weights of an antialiased bilinear resize of [start, start + length).

    ``place`` (size) or (N, size): centres of the pixels that are made, in pixels of the result.
    """
    scale = (length / place.shape[-1])[:, None]
    end = (start + length)[:, None]
    centre = place * scale + start[:, None]  # (N, size)
    pixel = torch.arange(pixels, device=start.device) + 0.5
    distance = (pixel - centre[:, :, None]).abs_()
    weights = distance.div_(-scale.clamp(min=1)[:, :, None]).add_(1).clamp_(min=0)
    inside = (pixel > start[:, None]) & (pixel < end)  # (N, pixels)
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def _blur_weights(exponents: Tensor, size: int) -> Tensor:
    """(n, size, size) weights of Gaussian blurs over the pixels there are, normalized.

    ``exponents`` (n,): -1 / (2 sigma^2).
    """
    place = torch.arange(size, device=exponents.device)
    exponent = (place[:, None] - place) ** 2 * exponents[:, None, None]
    weights = exponent.clamp_(min=-80).exp_()  # below, where float32 ends, exp is slow
    return weights.div_(weights.sum(2, keepdim=True))


def _colour(x: Tensor, of_pixel: Tensor, of_mean: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Jitter, grey and normalization of (N, C, pixels) in [0, 255]."""
    pixel = of_pixel / std[:, None]
    average = of_mean / std[:, None]
    added = torch.baddbmm(_normalized(0, mean, std), average, x.mean(2, keepdim=True))
    return torch.baddbmm(added, pixel, x)


def _normalized(value: float, mean: Tensor, std: Tensor) -> Tensor:
    return ((value - mean) / std)[:, None]


def colour_matrices(drawn: Draws, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(N, C, C) A and B with which a pixel x of an image whose mean is m becomes A x + B m.

    B comes from contrast, which moves pixels away from the mean of the image's luma, or of all its
    bands where they are not RGB.
    """
    count = len(drawn.flip)
    eye = np.eye(channels)
    is_rgb = channels == 3
    luma = _GREY if is_rgb else np.full((channels, channels), 1 / channels)
    factors = drawn.factors[:, :, None, None]
    angle = 2 * np.pi * factors[:, 3]
    brightness = factors[:, 0] * eye
    contrast = factors[:, 1] * eye
    saturation = hue = np.tile(eye, (count, 1, 1))
    if is_rgb:
        saturation = factors[:, 2] * eye + (1 - factors[:, 2]) * _GREY
        hue = np.cos(angle) * (eye - _MEAN) + np.sin(angle) * _TURN + _MEAN
    matrices = np.stack([brightness, contrast, saturation, hue], 1)  # (N, 4, C, C)
    of_pixel = np.tile(eye, (count, 1, 1))  # A so far
    of_mean = np.zeros((count, channels, channels))  # B so far
    for operation in drawn.order.T:  # (N,): which of the four comes next for each image
        chosen = matrices[np.arange(count), operation]
        step = np.where(drawn.jittered[:, None, None], chosen, eye)
        contrasted = (drawn.jittered & (operation == 1))[:, None, None]
        grey_mean = (1 - factors[:, 1]) * luma @ (of_pixel + of_mean)
        of_pixel = step @ of_pixel
        of_mean = step @ of_mean + np.where(contrasted, grey_mean, 0)
    grey = np.where(drawn.grey[:, None, None] & is_rgb, luma, eye)
    return grey @ of_pixel, grey @ of_mean
