"""The random numbers of orders and views, and what they decide.

They are a function of (seed, epoch, image index, view) alone, so a view is the same whatever batch,
worker or resumed run makes it; `views` and `batched_views` make it. This module imports no torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..view_recipes import View

# Columns of the random numbers of one view of one image; the first ones are of crop boxes.
_TRIES = 10  # torchvision gives up after ten boxes that do not fit
_POSITION = 20
_FLIP = 22
_JITTER = 23
_FACTORS = slice(24, 28)
_ORDER = slice(28, 32)
_GREY = 32
_BLUR = 33
_SIGMA = 34
_SOLARIZE = 35
COLUMNS = 36


def uniform(
    seed: int, epoch: int, indices: np.ndarray, columns: int, stream: int = 0
) -> np.ndarray:
    """(len(indices), columns) float64 in [0, 1): a hash of (seed, epoch, index, stream, column).

    Source: the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), once per word of the key.
    """
    key = np.asarray(indices).astype(np.uint64)[:, None]
    for word in (seed, epoch, stream, np.arange(columns)):
        step = np.atleast_1d(word).astype(np.uint64) + np.uint64(1)
        key = _mix(key + np.uint64(0x9E3779B97F4A7C15) * step)
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def boxes(
    view: "View", u: np.ndarray, height: int | np.ndarray, width: int | np.ndarray
) -> np.ndarray:
    """Crop boxes (N, 4) as int (top, left, height, width) for random numbers ``u`` (N, COLUMNS).

    The first of ten random boxes that fits; if none does, the largest centred box of an allowed
    ratio. Source: torchvision's RandomResizedCrop.
    """
    height = np.broadcast_to(height, len(u)).astype(np.int64)
    width = np.broadcast_to(width, len(u)).astype(np.int64)
    share = view.scale[0] + (view.scale[1] - view.scale[0]) * u[:, 0 : 2 * _TRIES : 2]
    area = (height * width)[:, None] * share  # (N, tries)
    low, high = np.log(view.ratio)
    ratio = np.exp(low + (high - low) * u[:, 1 : 2 * _TRIES : 2])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = (np.arange(len(u)), fits.argmax(1))
    none = ~fits.any(1)
    widest = np.minimum(width, np.rint(height * view.ratio[1])).clip(1)
    highest = np.minimum(height, np.rint(width / view.ratio[0])).clip(1)
    w = np.where(none, widest, w[first]).astype(np.int64)  # (N,)
    h = np.where(none, highest, h[first]).astype(np.int64)
    random_top = (u[:, _POSITION] * (height - h + 1)).astype(np.int64)
    random_left = (u[:, _POSITION + 1] * (width - w + 1)).astype(np.int64)
    top = np.where(none, (height - h) // 2, random_top)
    left = np.where(none, (width - w) // 2, random_left)
    return np.stack([top, left, h, w], 1)


@dataclass(frozen=True)
class Draws:
    """The random decisions of one view of N images."""

    flip: np.ndarray  # (N,) bool
    jittered: np.ndarray  # (N,) bool
    factors: np.ndarray  # (N, 4): brightness, contrast, saturation; turn of the hue, in circles
    order: np.ndarray  # (N, 4): which of the four comes first, second, ...
    grey: np.ndarray  # (N,) bool
    sigma: np.ndarray  # (N,) of the blur in pixels, 0 where there is none
    solarize: np.ndarray  # (N,) bool


def draw(view: "View", u: np.ndarray) -> Draws:
    """The decisions, crop boxes aside, for random numbers ``u`` (N, COLUMNS).

    Source: torchvision's ColorJitter for the ranges of the factors.
    """
    strength = np.array(view.jitter)
    low = np.maximum(1 - strength, 0)
    high = 1 + strength
    low[3] = -strength[3]
    high[3] = strength[3]
    sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * u[:, _SIGMA]
    return Draws(
        flip=u[:, _FLIP] < view.flip,
        jittered=u[:, _JITTER] < view.jitter_p,
        factors=low + (high - low) * u[:, _FACTORS],
        order=u[:, _ORDER].argsort(1),
        grey=u[:, _GREY] < view.grey_p,
        sigma=np.where(u[:, _BLUR] < view.blur_p, sigma, 0.0),
        solarize=u[:, _SOLARIZE] < view.solarize_p,
    )
