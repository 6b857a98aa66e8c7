"""Views that a function of the caller's makes: `pretrain(..., views=[function, ...])`.

A function, such as a Compose of torchvision's transforms, is given the image as PIL's RGB, and
returns a PIL image or a tensor (3, S, S), S as the view of the recipe in its place has it. With
in_chans=C other than 3 it is given a float32 tensor (C, H, W) in [0, 1], and returns a tensor (C,
S, S). What is uint8 is normalized as the run's config says, floats are taken as they are. While it
runs, the default generators of torch, NumPy and Python are seeded for this view of this image in
this epoch: a resumed run is exact if the function draws from these alone, in whatever process.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, printable, say
from ..view_recipes import OwnView, Recipe
from .pixels import Pixels, as_tensor


def own_view(view: OwnView, image: Pixels, u: np.ndarray, side: int, name: str) -> Tensor:
    """What the function makes of a copy of the image: uint8 (S, S, C), or float32 (C, S, S).

    ``u`` are the random numbers (1, COLUMNS) of the view, ``name`` is the image's. Raises
    InputError for what is no PIL image or tensor of that size, and for an error of the function.
    """
    is_picture = isinstance(image, Image.Image)
    try:
        with _seeded(int(u[0, 0] * 2**53)):
            made = view.make(image.copy() if is_picture else as_tensor(image).contiguous())
    except Exception as error:  # whatever the caller's code raises
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:160]
        raise InputError(f"the view {view.name} of image {printable(name)}: {reason}") from error
    if is_picture and isinstance(made, Image.Image):
        made = torch.from_numpy(np.array(made.convert("RGB"))).permute(2, 0, 1)
    shape = (3 if is_picture else image.shape[2], side, side)
    if not isinstance(made, Tensor) or made.shape != shape:
        given = f"a {type(made).__name__}"
        if isinstance(made, Tensor):
            given = f"a {made.dtype} tensor {tuple(made.shape)}"
        picture = f"a PIL image of {side} x {side} or " if is_picture else ""
        raise InputError(f"the view {view.name} gave {given}; expected {picture}a tensor {shape}")
    if made.dtype == torch.uint8:
        return made.permute(1, 2, 0).contiguous()
    if not made.is_floating_point():
        expected = "expected uint8, from 0 to 255, or floats that are normalized"
        raise InputError(f"the view {view.name} gave a tensor of {made.dtype}; {expected}")
    return made.detach().float()


def say_unless_normalized(recipe: Recipe, views: list[Tensor]) -> None:
    """Says which functions of a recipe gave floats that look as no normalization leaves them."""
    for view, made in zip(recipe, views, strict=True):
        if isinstance(view, OwnView) and made.is_floating_point() and made.min() >= 0:
            given = f"the view {view.name} gives floats from {made.min():.3g} to {made.max():.3g}"
            hint = "add transforms.Normalize(mean, std) with those of the config"
            say(f"{given}, which are not normalized here; {hint}")


@contextlib.contextmanager
def _seeded(number: int) -> Iterator[None]:
    """Within it, default generators give numbers that follow from ``number`` alone."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            random.seed(number)
            np.random.seed(number % 2**32)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
