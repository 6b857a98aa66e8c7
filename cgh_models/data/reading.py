"""How the images of a set are read: as 8-bit RGB, or as bands; in which range of values."""

import contextlib
import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from ..config import MOST_CHANNELS, check_pixel_range, check_reader
from ..errors import BadImage, InputError, printable, say
from . import bands, deep_pixels
from .decode import decode_bands, decode_rgb, dimensions, open_image, or_bad_image
from .file_names import ARCHIVES
from .formats import EXPECTED, EXTENSIONS
from .pixels import Pixels, as_picture, to_8_bits

if TYPE_CHECKING:
    from .image_set import ImageSet

_ARRAYS = frozenset({".npy"})  # that are read as bands alone
_SAMPLE = 32  # images of a set that decide its range
_NEVER_DEEP = (".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # such names are not opened for that


def endings(pixel_range: str, in_chans: int, reader: str) -> Collection[str] | None:
    """Endings of files that may hold images; None: all of them may. Raises InputError."""
    check_pixel_range(pixel_range)
    check_reader(reader)
    if type(in_chans) is not int or not 1 <= in_chans <= MOST_CHANNELS:
        raise InputError(f"in_chans={in_chans!r}: expected a whole number of 1 to {MOST_CHANNELS}")
    if reader:
        user_function(reader)
        return None
    return EXTENSIONS if in_chans == 3 else EXTENSIONS | _ARRAYS


def expected_endings(skipped: Collection[str]) -> str:
    """What is expected of a folder without images, in which these endings were found."""
    expected = EXPECTED
    if _ARRAYS & set(skipped):
        expected += ", or .npy arrays with --in-chans other than 3"
    if ARCHIVES & set(skipped):
        expected += ", or archives of one kind and nothing else: unpack them"
    return expected


@functools.cache
def user_function(reader: str) -> Callable[[Path], object]:
    """The user's MODULE:FUNCTION, from a path to an array. Raises InputError without it."""
    module, _, name = reader.partition(":")
    if os.getcwd() not in sys.path:  # as `python FILE` has it, but not the command `cgh`
        sys.path.append(os.getcwd())
    try:
        function: object = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # the user's module may raise anything
        what = f"cannot be imported ({type(error).__name__}: {printable(error)[:120]})"
        where = "the module has to lie in this folder or on PYTHONPATH"
        raise InputError(f"--reader {reader}: {what}; {where}") from error
    if not callable(function):
        raise InputError(f"--reader {reader}: is no function; give one that makes an array")
    return function


@or_bad_image
def decode_image(file: IO[bytes], images: "ImageSet", index: int, min_side: float) -> Pixels:
    """An image of an ImageSet from its bytes, as `ImageSet.image` gives it. Raises BadImage.

    It is 8-bit RGB where three channels are asked for, also of a user's reader; else an array (H,
    W, in_chans) that fills its type.
    """
    if _is_plain(images, file):
        return decode_rgb(file, min_side, images.pixel_range)
    pixels = bands.filled(_values(file, images, index), images.pixel_range)
    return Image.fromarray(to_8_bits(pixels)) if images.in_chans == 3 else pixels


def _values(file: IO[bytes], images: "ImageSet", index: int) -> np.ndarray:
    """The numbers (H, W, in_chans) as they are in the file."""
    if images.reader:
        function = user_function(images.reader)
        try:
            values = np.asarray(function(images.path(index)))
        except Exception as error:  # the user's function may raise anything
            reason = f"{type(error).__name__}: {printable(error)[:120]}"
            raise BadImage(f"--reader {images.reader}: {reason}") from error
    elif bands.is_tiff(file):
        values = bands.of_tiff(file, images.in_chans)
    elif bands.is_npy(file):
        values = bands.of_npy(file)
        if values.ndim == 2 and images.in_chans == 3:  # grey, given in Python
            values = np.dstack([values] * 3)
    else:
        values = decode_bands(file)
    return bands.bands_last(values, images.in_chans)


def decoded_bytes(images: "ImageSet", index: int) -> int:
    """About the bytes of an image's pixels, by its header; 0 if that cannot be read."""
    with contextlib.suppress(BadImage), images.open(index) as file:
        if _is_plain(images, file):
            width, height = dimensions(file)
            return width * height * 3
        with contextlib.suppress(Exception):  # whatever is wrong is said when it is read
            if bands.is_tiff(file):
                return bands.tiff_bytes(file)
            image = open_image(file)
            bytes_a_value = 2 if deep_pixels.is_deep(image) else 1
            return image.width * image.height * images.in_chans * bytes_a_value
        return file.seek(0, os.SEEK_END)
    return 0


def format_of(file: IO[bytes]) -> str:
    """The format of an image of bands that can be read, for people."""
    if bands.is_tiff(file):
        return "TIFF"
    return "npy" if bands.is_npy(file) else open_image(file).format or ""


def check_channels(images: "ImageSet", channels: int) -> None:
    """Raises InputError for images of other channels than a model takes."""
    if images.in_chans != channels:
        found = f"{printable(images.place)}: images of {images.in_chans} channels"
        raise InputError(f"{found}, for a model of {channels}; give weights of such images")


def picture(images: "ImageSet", index: int, min_side: float = 0) -> Image.Image:
    """An image of an ImageSet for people, as 8-bit RGB. Raises BadImage."""
    return as_picture(images.image(index, min_side))


def _is_plain(images: "ImageSet", file: IO[bytes]) -> bool:
    """Whether an image becomes 8-bit RGB by `decode_rgb`."""
    return images.in_chans == 3 and not images.reader and not bands.is_npy(file)


@or_bad_image
def _largest(file: IO[bytes], images: "ImageSet", index: int) -> deep_pixels.Largest | None:
    """What an image shows of the range of its set; None if it has 8 bits. Raises BadImage."""
    if _is_plain(images, file):
        return deep_pixels.largest(open_image(file), file)
    values = _values(file, images, index)
    if values.dtype == np.uint8:
        return None
    deep_pixels.check_known(values)
    kind = f"{values.shape[2]} bands of {values.dtype.name}"
    return deep_pixels.Largest(int(values.max()), kind)


def decide_range(images: "ImageSet") -> "ImageSet":
    """An ImageSet, whose range of deep pixels is decided if it is "auto".

    It becomes N-bit by the largest value of some of the images, the same ones at every load, and is
    said on stderr; it stays auto if none of those is deep. Raises InputError if none can be used.
    """
    if images.pixel_range != "auto":
        return images
    names = images.names
    may_be_deep = (not name.lower().endswith(_NEVER_DEEP) for name in names)
    candidates = np.flatnonzero(np.fromiter(may_be_deep, bool, len(names)))
    places = np.linspace(0, len(candidates) - 1, min(_SAMPLE, len(candidates))).astype(int)
    found: list[deep_pixels.Largest] = []
    reasons: list[str] = []
    for index in candidates[places].tolist():
        try:
            with images.open(index) as file:
                found += filter(None, [_largest(file, images, index)])
        except BadImage as reason:
            reasons.append(str(reason))
        if found and found[-1].value >= 2 ** deep_pixels.DEPTHS[-2]:
            break  # no more bits are possible
    if reasons and len(reasons) == len(places) and len(candidates) > len(names) / 2:
        first = printable(images.where(candidates[0]))
        raise InputError(f"{first}: {reasons[0]} (none of {len(places)} images can be used)")
    if found:
        value, kind = max(found)
        bits = next(bits for bits in deep_pixels.DEPTHS if value < 2**bits)
        rule = f"{kind}, values to {value}: read as {bits}-bit"
        say(f"{printable(images.place)}: {rule}; --pixel-range LOW,HIGH says otherwise")
        images.pixel_range = f"{bits}-bit"
    return images


def read_as(images: "ImageSet", asked: str) -> "ImageSet":
    """An ImageSet with the range that is asked for, if it is not that of the set already."""
    if asked in ("auto", images.pixel_range):
        return images
    if images.pixels is not None and images.pixel_range != "auto":
        what = f"pixel_range={asked}: the images are in memory as {images.pixel_range}"
        raise InputError(f"{what}; load them with the pixel_range that is wanted")
    return dataclasses.replace(images, pixel_range=asked)
