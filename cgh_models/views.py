"""View recipes: decoded images -> normalized views, batched, every random number a function of its image.

An image's numbers depend on (seed, epoch, image index, view) alone, so a view is the same whatever batch, worker or
resumed run makes it. Crops have torchvision's distribution (RandomResizedCrop, bilinear, antialiased); colour has
torchvision's ColorJitter semantics: four operations in an order drawn per image, clamped after each.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Columns of the random numbers of one view of one image.
_TRIES = 10  # torchvision gives up after ten boxes that do not fit
_POSITION, _FLIP, _JITTER, _FACTORS, _ORDER, _GREY, _BLUR, _SIGMA, _SOLARIZE = 20, 22, 23, 24, 28, 32, 33, 34, 35
COLUMNS = 36


@dataclass(frozen=True)
class View:
    """One view's augmentation. Probabilities in [0, 1]; jitter is (brightness, contrast, saturation, hue)."""

    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, in pixels
    solarize_p: float = 0.0
    size: float = 1.0  # side, as a share of the image size

    def side(self, image_size: int) -> int:
        """Of the square view, in pixels."""
        return max(1, round(self.size * image_size))


# Source: MoCo v2's augmentation (arXiv 2003.04297) as the strong view, crop and flip as the weak one (ReSSL, CGH).
WEAK = View()
STRONG = View(jitter_p=0.8, grey_p=0.2, blur_p=0.5)
# Source: CGH's and ReSSL's released code, 192, 160, 128 and 96 pixels beside 224.
SMALL = tuple(
    dataclasses.replace(STRONG, size=size / 224, scale=scale)
    for size, scale in ((192, (0.172, 0.86)), (160, (0.143, 0.715)), (128, (0.114, 0.571)), (96, (0.086, 0.429)))
)
# Source: BYOL (arXiv 2006.07733) appendix B, the crops of LEWEL's code; without blur as solo-learn has it on CIFAR.
FIRST = View(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=1.0)
SECOND = dataclasses.replace(FIRST, blur_p=0.1, solarize_p=0.2)
RECIPES = {
    "weak_strong": (WEAK, STRONG),
    "multi_crop": (WEAK, STRONG, *SMALL),
    "two_strong": (STRONG, STRONG),
    "three_strong": (STRONG, STRONG, STRONG),
    "asymmetric": (FIRST, SECOND),
    "asymmetric_sharp": (dataclasses.replace(FIRST, blur_p=0.0), dataclasses.replace(SECOND, blur_p=0.0)),
}


def uniform(seed: int, epoch: int, indices: np.ndarray, columns: int, stream: int = 0) -> np.ndarray:
    """(len(indices), columns) float64 in [0, 1): a hash of (seed, epoch, index, stream, column).

    Source: the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied once per word of the key.
    """
    key = np.asarray(indices).astype(np.uint64)[:, None]
    for word in (seed, epoch, stream, np.arange(columns)):
        key = _mix(key + np.uint64(0x9E3779B97F4A7C15) * (np.atleast_1d(word).astype(np.uint64) + np.uint64(1)))
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def boxes(view: View, u: np.ndarray, height: int | np.ndarray, width: int | np.ndarray) -> np.ndarray:
    """Crop boxes (N, 4) as int (top, left, height, width) for random numbers ``u`` (N, COLUMNS).

    The first of ten random boxes that fits; if none does, the largest centred box of an allowed ratio.
    """
    height, width = (np.broadcast_to(side, len(u)).astype(np.int64) for side in (height, width))
    area = (height * width)[:, None] * (view.scale[0] + (view.scale[1] - view.scale[0]) * u[:, 0 : 2 * _TRIES : 2])
    low, high = np.log(view.ratio)
    ratio = np.exp(low + (high - low) * u[:, 1 : 2 * _TRIES : 2])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)  # (N, tries)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    rows, first = np.arange(len(u)), fits.argmax(1)
    none = ~fits.any(1)
    w = np.where(none, np.minimum(width, np.rint(height * view.ratio[1])), w[rows, first]).astype(np.int64)
    h = np.where(none, np.minimum(height, np.rint(width / view.ratio[0])), h[rows, first]).astype(np.int64)
    top = np.where(none, (height - h) // 2, (u[:, _POSITION] * (height - h + 1)).astype(np.int64))
    left = np.where(none, (width - w) // 2, (u[:, _POSITION + 1] * (width - w + 1)).astype(np.int64))
    return np.stack([top, left, h, w], 1)


def crop_image(image: Image.Image, box: np.ndarray, size: int) -> Tensor:
    """One crop of one image, resized: uint8 (3, size, size)."""
    top, left, height, width = map(int, box)
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def crop_batch(images: Tensor, box: np.ndarray, size: int) -> Tensor:
    """The same for a batch of equally large images: uint8 (N, H, W, 3) -> float32 (N, 3, size, size) in [0, 255].

    Two batched matrix products per image; within one step of Pillow's result.
    """
    box_t = torch.from_numpy(box.astype(np.float32)).to(images.device, non_blocking=True)
    rows = _triangle(box_t[:, 0], box_t[:, 2], size, images.shape[1])  # (N, size, H)
    columns = _triangle(box_t[:, 1], box_t[:, 3], size, images.shape[2])  # (N, size, W)
    return _separable(images.permute(0, 3, 1, 2).float(), rows, columns)


def _triangle(start: Tensor, length: Tensor, size: int, pixels: int) -> Tensor:
    """(N, size, pixels) weights of an antialiased bilinear resize of the interval [start, start + length)."""
    scale = (length / size)[:, None, None]
    centre = (torch.arange(size, device=start.device)[None, :, None] + 0.5) * scale  # within the crop
    pixel = torch.arange(pixels, device=start.device)[None, None, :] + 0.5 - start[:, None, None]
    weights = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T per image: (N, 3, H, W), (N, H', H), (N, W', W) -> (N, 3, H', W')."""
    return rows[:, None] @ (images @ columns.transpose(1, 2)[:, None])


def finish(view: View, crops: Tensor, u: np.ndarray, mean: Tensor, std: Tensor) -> Tensor:
    """Flip, jitter, grey, blur, solarize, normalize: crops (N, 3, S, S) in [0, 255] -> float32 views (N, 3, S, S).

    Nothing here waits for the device: which images take part is decided on the host, from ``u``.
    """
    x = crops.float() / 255
    x = torch.where(_column(x, u[:, _FLIP] < view.flip), x.flip(3), x)
    if view.jitter_p:
        _jitter(view, x, u)
    if view.grey_p:
        x = torch.where(_column(x, u[:, _GREY] < view.grey_p), _grey(x), x)
    if view.blur_p:
        _blur(view, x, u)
    if view.solarize_p:
        solarized = _column(x, u[:, _SOLARIZE] < view.solarize_p) & (x >= 128 / 255)
        x = torch.where(solarized, 1 - x, x)
    return (x - mean[:, None, None]) / std[:, None, None]


def _column(x: Tensor, values: np.ndarray) -> Tensor:
    """Per-image values on x's device, shaped (N, 1, 1, 1)."""
    return torch.from_numpy(values).to(x.device, non_blocking=True)[:, None, None, None]


def _change(x: Tensor, chosen: np.ndarray, function, *values: np.ndarray) -> None:
    """x[chosen] = function(x[chosen], values[chosen]...), in place."""
    if chosen.any():
        places = torch.from_numpy(np.flatnonzero(chosen)).to(x.device, non_blocking=True)
        given = [_column(x, v[chosen].astype(np.float32)) for v in values]
        x.index_copy_(0, places, function(x.index_select(0, places), *given))


def _jitter(view: View, x: Tensor, u: np.ndarray) -> None:
    strength = np.array(view.jitter)
    low, high = np.maximum(1 - strength, 0), 1 + strength
    low[3], high[3] = -strength[3], strength[3]
    factors = low + (high - low) * u[:, _FACTORS : _FACTORS + 4]  # (N, 4)
    order = u[:, _ORDER : _ORDER + 4].argsort(1)  # (N, 4): the operation at each turn
    jittered = u[:, _JITTER] < view.jitter_p
    for turn in range(4):
        for operation, function in enumerate((_brightness, _contrast, _saturation, _hue)):
            _change(x, jittered & (order[:, turn] == operation), function, factors[:, operation])


def _grey(x: Tensor) -> Tensor:
    """ITU-R 601 luma, the weights Pillow's "L" uses."""
    return 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).mean((2, 3), keepdim=True).expand_as(x), x, factor).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).expand_as(x), x, factor).clamp(0, 1)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue by ``turn`` of a full circle, by way of HSV."""
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = (value - low).clamp(min=1e-8)
    sextant = torch.where(
        value == red,
        (green - blue) / chroma,
        torch.where(value == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma),
    )
    sextant = sextant + 6 * turn[:, 0]
    channels = []
    for offset in (5, 3, 1):
        k = (sextant + offset) % 6
        channels.append(value - (value - low) * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _blur(view: View, x: Tensor, u: np.ndarray) -> None:
    sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * u[:, _SIGMA]
    _change(x, u[:, _BLUR] < view.blur_p, _gaussian, sigma)


def _gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, edges repeated as if the image stopped there: weights over the pixels there are, normalized."""
    matrices = []
    for side in x.shape[2:]:
        place = torch.arange(side, device=x.device, dtype=x.dtype)
        weights = torch.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * sigma[:, 0] ** 2))  # (N, side, side)
        matrices.append(weights / weights.sum(2, keepdim=True))
    return _separable(x, *matrices)
