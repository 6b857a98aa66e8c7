"""The fast mode of view recipes: a batch of decoded images -> normalized views, on their device.

Every step up to solarizing is linear in the pixels, so an image needs few products: crop, resize, flip and blur are one
matrix for its rows and one for its columns; brightness, contrast, saturation, hue and grey are one 3 x 4 matrix.

Differs from the exact mode: values are clamped once, at the end, and are not rounded; the hue turns about the grey axis
of RGB, not in HSV; the blur is a Gaussian whose weights stop at the edge, where Pillow passes boxes over edge pixels
that are repeated.
"""

import numpy as np
import torch
from torch import Tensor

from .views import Draws, View, draw

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as in Pillow's "L"
_GREY = np.tile(_LUMA, (3, 1))
_MEAN = np.full((3, 3), 1 / 3)
_TURN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # cross product with the grey axis


def fast_views(
    view: View, images: Tensor, u: np.ndarray, size: int, mean: Tensor, std: Tensor, box: np.ndarray | None = None
) -> Tensor:  # fmt: skip
    """Views (N, 3, size, size) float32. Nothing here waits for the device: decisions are made on the host, from ``u``.

    Args:
        images: uint8 (N, H, W, 3): whole ones with ``box``, without it crops (N, size, size, 3).
        u: random numbers (N, COLUMNS).
        mean, std: (3,) of the normalization, on the images' device.
        box: (N, 4) as `views.boxes` gives them.
    """
    drawn, device = draw(view, u), images.device
    if box is None:
        x = _planes(images, torch.from_numpy(drawn.flip).to(device, non_blocking=True))
        if view.blur_p and (chosen := np.flatnonzero(drawn.sigma)).size:
            places = torch.from_numpy(chosen).to(device, non_blocking=True)
            blur = _gaussian(drawn.sigma[chosen], size, device)
            x.index_copy_(0, places, blur[:, None] @ x.index_select(0, places) @ blur.transpose(1, 2)[:, None])
    else:
        x = _separable(images, *_weights(drawn, box, size, images.shape[1], images.shape[2], device))
    x = _colour(view, drawn, x.flatten(2)).clamp_(0, 1).unflatten(2, (size, size))
    if view.solarize_p:
        chosen = torch.from_numpy(drawn.solarize).to(device, non_blocking=True)[:, None, None, None]
        x = torch.where(chosen & (x >= 128 / 255), 1 - x, x)
    return x.sub_(mean[:, None, None]).div_(std[:, None, None])


def _planes(crops: Tensor, flip: Tensor) -> Tensor:
    """uint8 (N, S, S, 3) -> float32 (N, 3, S, S), some of them mirrored."""
    crops = torch.where(flip[:, None, None, None], crops.flip(2), crops)
    return crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _weights(
    drawn: Draws, box: np.ndarray, size: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For each image the matrices (size, height) and (size, width) that crop, resize, mirror and blur it."""
    corners = torch.from_numpy(box.astype(np.float32)).to(device, non_blocking=True)
    flip = torch.from_numpy(drawn.flip).to(device, non_blocking=True)
    rows = _triangle(corners[:, 0], corners[:, 2], size, height)
    columns = _triangle(corners[:, 1], corners[:, 3], size, width)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    if (chosen := np.flatnonzero(drawn.sigma)).size:
        places = torch.from_numpy(chosen).to(device, non_blocking=True)
        blur = _gaussian(drawn.sigma[chosen], size, device)
        for weights in (rows, columns):
            weights.index_copy_(0, places, blur @ weights.index_select(0, places))
    return rows, columns


def _triangle(start: Tensor, length: Tensor, size: int, pixels: int) -> Tensor:
    """(N, size, pixels) weights of an antialiased bilinear resize of the interval [start, start + length)."""
    scale, end = (length / size)[:, None, None], (start + length)[:, None]
    centre = (torch.arange(size, device=start.device) + 0.5)[:, None] * scale + start[:, None, None]  # (N, size, 1)
    pixel = torch.arange(pixels, device=start.device) + 0.5
    weights = (pixel - centre).abs_().div_(-scale.clamp(min=1)).add_(1).clamp_(min=0)
    inside = (pixel > start[:, None]) & (pixel < end)  # (N, pixels)
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def _gaussian(sigma: np.ndarray, size: int, device: torch.device) -> Tensor:
    """(N, size, size) weights of a Gaussian blur over the pixels there are, normalized."""
    place = torch.arange(size, device=device)
    width = torch.from_numpy(sigma.astype(np.float32)).to(device, non_blocking=True)[:, None]
    weights = torch.exp(-0.5 * (place / width) ** 2)[:, (place[:, None] - place).abs()]
    return weights.div_(weights.sum(2, keepdim=True))


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T per image and channel: uint8 (N, H, W, 3) -> float32 (N, 3, size, size)."""
    count, height, width, _ = images.shape
    size = rows.shape[1]
    x = torch.bmm(rows, images.reshape(count, height, width * 3).float())  # (N, size, W * 3)
    x = x.view(count, size, width, 3).permute(0, 3, 1, 2).reshape(count, 3 * size, width)
    return torch.bmm(x, columns.transpose(1, 2)).view(count, 3, size, size)


def _colour(view: View, drawn: Draws, x: Tensor) -> Tensor:
    """Jitter and grey of (N, 3, pixels) in [0, 255], then over 255."""
    if not (view.jitter_p or view.grey_p):
        return x.div_(255)
    of_pixel, of_mean = (
        torch.from_numpy((matrix / 255).astype(np.float32)).to(x.device, non_blocking=True)
        for matrix in colour_matrices(drawn)
    )
    return torch.baddbmm(torch.bmm(of_mean, x.mean(2, keepdim=True)), of_pixel, x)


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
