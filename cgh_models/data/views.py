"""The exact mode of view recipes: one decoded image -> one view, as torchvision makes it.

The other mode is `batched_views`; what is random in both is decided in `draws`.

What colours do without RGB: of one band, brightness and contrast alone are changed, as torchvision
does to a grey image; of other numbers of bands the same, by one factor for all of them, contrast
about the mean of all. Hue, saturation and turning grey do nothing. Solarizing inverts values from
128 / 255 on, where 1 is the most that the range of the pixels allows.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from ..view_recipes import View
from .draws import boxes, draw

_JITTERS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def exact_view(view: View, image: Image.Image, u: np.ndarray, size: int) -> Image.Image:
    """The view (size, size) of one RGB image for random numbers ``u`` (1, COLUMNS)."""
    top, left, height, width = boxes(view, u, image.height, image.width)[0].tolist()
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    drawn = draw(view, u)
    if drawn.jittered[0]:
        for operation in drawn.order[0]:
            image = _JITTERS[operation](image, float(drawn.factors[0, operation]))
    if drawn.grey[0]:
        image = image.convert("L").convert("RGB")
    if drawn.sigma[0]:
        image = image.filter(ImageFilter.GaussianBlur(float(drawn.sigma[0])))
    if drawn.solarize[0]:
        image = ImageOps.solarize(image, 128)
    return ImageOps.mirror(image) if drawn.flip[0] else image


def exact_view_of_bands(view: View, image: Tensor, u: np.ndarray, size: int) -> Tensor:
    """The view (bands, size, size) of an image (bands, H, W) in [0, 1], as torchvision makes it.

    ``u`` as in `exact_view`. Nothing is rounded. Brightness, contrast and solarizing take the bands
    below each other for one grey image.
    """
    top, left, height, width = boxes(view, u, *image.shape[1:])[0].tolist()
    x = TF.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    drawn = draw(view, u)
    grey = x.reshape(1, -1, size)
    if drawn.jittered[0]:
        for operation in drawn.order[0]:
            if operation in (0, 1):
                grey = _JITTERS[operation](grey, float(drawn.factors[0, operation]))
    x = grey.view(x.shape)
    if drawn.sigma[0]:
        sigma = float(drawn.sigma[0])
        radius = min(int(np.ceil(4 * sigma)), size - 1)  # beyond, weights are below 1e-3
        x = TF.gaussian_blur(x, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
    if drawn.solarize[0]:
        x = torch.where(x >= 128 / 255, 1 - x, x)
    return x.flip(2) if drawn.flip[0] else x
