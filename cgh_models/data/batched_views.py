"""The fast mode of view recipes: a batch of decoded images -> normalized views, on their device.

Every step up to solarizing is linear in the pixels, so an image needs few products: crop, resize, flip and blur are one
matrix for its rows and one for its columns; brightness, contrast, saturation, hue and grey are one 3 x 4 matrix.

Differs from the exact mode: values are clamped once, at the end, and are not rounded; the hue turns about the grey axis
of RGB, not in HSV; the blur is a Gaussian whose weights stop at the edge, where Pillow passes boxes over edge pixels
that are repeated. Crops that workers cut are rounded once; large JPEG files are decoded at a fraction of their size.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..view_recipes import View
from .views import Draws, draw

_IN_CACHE = 64  # images at a time on a CPU
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as in Pillow's "L"
_GREY = np.tile(_LUMA, (3, 1))
_MEAN = np.full((3, 3), 1 / 3)
_TURN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # cross product with the grey axis


def fast_views(
    view: View, images: Tensor, u: np.ndarray, size: int, mean: Tensor, std: Tensor, box: np.ndarray | None = None
) -> Tensor:  # fmt: skip
    """Views (N, 3, size, size) float32. Nothing here waits for the device: decisions are made on the host, from ``u``.

    Args:
        images: uint8: whole ones (N, H, W, 3) with ``box``, without it what `crop` made of them (N, 3, size, size).
        u: random numbers (N, COLUMNS).
        mean, std: (3,) of the normalization, on the images' device.
        box: (N, 4) as `views.boxes` gives them.
    """
    drawn = draw(view, u)
    colours = colour_matrices(drawn) if view.jitter_p or view.grey_p else None
    views = torch.empty(len(u), 3, size, size, device=images.device)
    black, white = _normalized(0, mean, std), _normalized(1, mean, std)
    step = _IN_CACHE if images.device.type == "cpu" else len(u)
    for start in range(0, len(u), step):
        part = slice(start, start + step)
        x = _shape(view, images[part], drawn.of(part), size, None if box is None else box[part])
        x = _colour(x.flatten(2), colours and tuple(matrices[part] for matrices in colours), mean, std)
        if view.solarize_p:
            chosen = _to(images, drawn.solarize[part])[:, None, None]
            x = torch.where(chosen & (x >= _normalized(128 / 255, mean, std)), black + white - x, x)
        torch.clamp(x, black, white, out=views[part].flatten(2))
    return views


def crop(pixels: Tensor, box: np.ndarray, size: int) -> Tensor:
    """One crop of an image uint8 (H, W, 3), resized: uint8 (3, size, size), within one step of Pillow's bilinear."""
    top, left, height, width = map(int, box)
    part = pixels[top : top + height, left : left + width].permute(2, 0, 1)
    return functional.interpolate(part[None], (size, size), mode="bilinear", antialias=True)[0]


def _to(like: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(like.device, non_blocking=True)


def _shape(view: View, images: Tensor, drawn: Draws, size: int, box: np.ndarray | None) -> Tensor:
    """What moves pixels: crop, resize, flip and blur. float32 (N, 3, size, size) in [0, 255]."""
    if box is not None:
        return _separable(images, *_weights(drawn, box, size, images))
    x = torch.where(_to(images, drawn.flip)[:, None, None, None], images.flip(3), images).float()
    if view.blur_p and (chosen := np.flatnonzero(drawn.sigma)).size:
        places, blur = _to(images, chosen), _gaussian(drawn.sigma[chosen], size, images)
        x.index_copy_(0, places, blur[:, None] @ x.index_select(0, places) @ blur.transpose(1, 2)[:, None])
    return x


def _weights(drawn: Draws, box: np.ndarray, size: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """For each image the matrices (size, height) and (size, width) that crop, resize, mirror and blur it."""
    corners = _to(images, box.astype(np.float32))
    place = torch.arange(size, device=images.device) + 0.5
    mirrored = torch.where(_to(images, drawn.flip)[:, None], size - place, place)
    rows = _triangle(corners[:, 0], corners[:, 2], place, images.shape[1])
    columns = _triangle(corners[:, 1], corners[:, 3], mirrored, images.shape[2])
    if (chosen := np.flatnonzero(drawn.sigma)).size:
        places, blur = _to(images, chosen), _gaussian(drawn.sigma[chosen], size, images)
        for weights in (rows, columns):
            weights.index_copy_(0, places, blur @ weights.index_select(0, places))
    return rows, columns


def _triangle(start: Tensor, length: Tensor, place: Tensor, pixels: int) -> Tensor:
    """(N, size, pixels) weights of an antialiased bilinear resize of the interval [start, start + length).

    ``place`` (size) or (N, size): centres of the pixels that are made, in pixels of the result.
    """
    scale, end = (length / place.shape[-1])[:, None], (start + length)[:, None]
    centre = place * scale + start[:, None]  # (N, size)
    pixel = torch.arange(pixels, device=start.device) + 0.5
    weights = (pixel - centre[:, :, None]).abs_().div_(-scale.clamp(min=1)[:, :, None]).add_(1).clamp_(min=0)
    inside = (pixel > start[:, None]) & (pixel < end)  # (N, pixels)
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def _gaussian(sigma: np.ndarray, size: int, like: Tensor) -> Tensor:
    """(N, size, size) weights of a Gaussian blur over the pixels there are, normalized."""
    place = torch.arange(size, device=like.device)
    narrow = _to(like, (-0.5 / sigma**2).astype(np.float32))[:, None, None]
    weights = ((place[:, None] - place) ** 2 * narrow).clamp_(min=-80).exp_()  # where float32 ends exp is slow
    return weights.div_(weights.sum(2, keepdim=True))


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T per image and channel: uint8 (N, H, W, 3) -> float32 (N, 3, size, size)."""
    count, height, width, _ = images.shape
    size = rows.shape[1]
    x = torch.bmm(rows, images.reshape(count, height, width * 3).float())  # (N, size, W * 3)
    x = x.view(count, size, width, 3).permute(0, 3, 1, 2).reshape(count, 3 * size, width)
    return torch.bmm(x, columns.transpose(1, 2)).view(count, 3, size, size)


def _colour(x: Tensor, matrices: tuple[np.ndarray, ...] | None, mean: Tensor, std: Tensor) -> Tensor:
    """Jitter, grey and normalization of (N, 3, pixels) in [0, 255]."""
    if not matrices:
        return x.sub_(255 * mean[:, None]).div_(255 * std[:, None])
    of_pixel, of_mean = (_to(x, (matrix / 255).astype(np.float32)).div_(std[:, None]) for matrix in matrices)
    added = torch.baddbmm(_normalized(0, mean, std), of_mean, x.mean(2, keepdim=True))
    return torch.baddbmm(added, of_pixel, x)


def _normalized(value: float, mean: Tensor, std: Tensor) -> Tensor:
    return ((value - mean) / std)[:, None]


def colour_matrices(drawn: Draws) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3, 3) A and B with which a pixel x of an image whose mean is m becomes A x + B m.

    B comes from contrast, which moves pixels away from the mean of the image's luma.
    """
    count, eye = len(drawn.flip), np.eye(3)
    factors, turn = drawn.factors[:, :, None, None], 2 * np.pi * drawn.factors[:, 3, None, None]
    hue = np.cos(turn) * (eye - _MEAN) + np.sin(turn) * _TURN + _MEAN
    brightness, contrast = factors[:, 0] * eye, factors[:, 1] * eye
    saturation = factors[:, 2] * eye + (1 - factors[:, 2]) * _GREY
    operations = np.stack([brightness, contrast, saturation, hue], 1)  # (N, 4, 3, 3)
    pixel, mean = np.tile(eye, (count, 1, 1)), np.zeros((count, 3, 3))
    for now in drawn.order.T:
        matrix = np.where(drawn.jittered[:, None, None], operations[np.arange(count), now], eye)
        contrasted = (drawn.jittered & (now == 1))[:, None, None]
        added = np.where(contrasted, (1 - factors[:, 1]) * _GREY @ (pixel + mean), 0)
        pixel, mean = matrix @ pixel, matrix @ mean + added
    matrix = np.where(drawn.grey[:, None, None], _GREY, eye)
    return matrix @ pixel, matrix @ mean
