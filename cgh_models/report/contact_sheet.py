"""A sheet of images and their views, as the first epoch of a training has them."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..backbone import skeleton
from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..data.loader import batches
from ..data.pixels import as_picture
from ..errors import printable
from ..files import atomic
from ..methods import METHODS
from ..view_recipes import View, kind_of, recipe_of

_CELL = 160  # pixels of a side of a cell
_GAP = 8
_LINE = 16  # height of a line of text


def views_of(method: str, config: Any, changes: tuple[str, ...] = ()) -> tuple[View, ...]:
    """The views that a method of this name and Config asks for, with changes as `recipe_of`'s."""
    with torch.device("meta"):
        built = METHODS[method](skeleton("resnet18_cifar_w16").to("meta"), config)
    return recipe_of(built.view_recipe, changes)


def draw_views(
    path: Path, images: ImageSet, views: tuple[View, ...], config: TrainConfig, rows: int = 8
) -> None:
    """Writes a PNG with the first images of a training, a row each: the image, then its views.

    They are those of epoch 0 for the config's seed. Needs two images or more. Raises InputError
    for too many bad images, DiskError if it cannot be written.
    """
    made, indices = first_views(config, images, views, rows)
    rows = len(indices)
    width = _GAP + (1 + len(views)) * (_CELL + _GAP)
    height = _GAP + _LINE + rows * (_CELL + _LINE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    captions = ["image"]
    for number, view in enumerate(views, 1):
        captions.append(f"{number}: {kind_of(view)}, {view.side(config.image_size)} px")
    for column, caption in enumerate(captions):
        pen.text((_GAP + column * (_CELL + _GAP), _GAP // 2), caption, "black", font)
    largest = max(view.side(config.image_size) for view in views)
    for row, index in enumerate(indices.tolist()):
        top = _GAP + _LINE + row * (_CELL + _LINE + _GAP)
        image = as_picture(images.load_or_substitute(index)[0])
        scale = _CELL / max(image.size)
        _paste(sheet, image, _GAP, top, scale)
        for column, view in enumerate(made, start=1):
            shown = picture_of(view[row], config)
            _paste(sheet, shown, _GAP + column * (_CELL + _GAP), top, _CELL / largest)
        name = f"{printable(images.names[index])[-60:]}, {image.width} x {image.height}"
        pen.text((_GAP, top + _CELL), name, "black", font)
    with atomic(path) as temporary:
        sheet.save(temporary, "PNG")


def first_views(
    config: TrainConfig, images: ImageSet, views: tuple[View, ...], count: int
) -> tuple[list[Tensor], np.ndarray]:
    """The views [(n, 3, S, S)], normalized, of the first images of a run's epoch 0, their indices.

    Order and views depend on seed, epoch and index alone: a smaller batch begins with the same.
    Those of a run that begins with smaller views have the size of its last.
    """
    count = min(count, len(images))
    small = {"batch_size": count, "accumulate": 1, "workers": 0, "device": "cpu"}
    config = dataclasses.replace(config, **small, size_schedule="")
    with contextlib.closing(batches(images, views, config, 0, 1, torch.device("cpu"))) as loader:
        return next(loader)


def picture_of(view: Tensor, config: TrainConfig) -> Image.Image:
    """The picture that a normalized view (C, H, W) shows."""
    colours = view.permute(1, 2, 0) * torch.tensor(config.std) + torch.tensor(config.mean)
    if config.in_chans != 3:
        return as_picture(colours.clamp(0, 1).numpy())
    pixels = colours.clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().numpy())


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int, scale: float) -> None:
    """The image in the middle of a cell; small ones are enlarged by whole pixels."""
    size = [max(1, round(side * scale)) for side in image.size]
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    shown = image.resize((size[0], size[1]), way)
    sheet.paste(shown, (left + (_CELL - size[0]) // 2, top + (_CELL - size[1]) // 2))
