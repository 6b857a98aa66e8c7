"""Reads one image file: checked before it is decoded, always 8-bit RGB afterwards."""

import contextlib
import functools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ..errors import BadImage, InputError, printable
from . import deep_pixels, png
from .formats import DENSE, FORMATS

P = ParamSpec("P")
T = TypeVar("T")

simplejpeg: Any = None
with contextlib.suppress(ImportError):  # the extra "jpeg": the same pixels, sooner
    import simplejpeg

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100 * 10**6
_ORIENTATION = 0x0112  # EXIF tag; 1: upright
BACKGROUND = (255, 255, 255)  # behind transparent pixels


@dataclass(frozen=True)
class BadFile:
    """An image of a set that cannot be used, and why."""

    index: int
    reason: str


def open_file(path: Path) -> IO[bytes]:
    """A regular file, opened; never waits for a pipe. Raises BadImage."""
    try:
        file = os.fdopen(os.open(path, _OPEN_FLAGS), "rb")
    except OSError as error:
        raise BadImage(f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadImage("not a regular file")
    return file


def or_bad_image(
    read: Callable[Concatenate[IO[bytes], P], T],
) -> Callable[Concatenate[IO[bytes], P], T]:
    """A decorator: whatever ``read(file, ...)`` raises becomes a BadImage, but for an InputError.

    A PNG is read once more without the chunks that it fails on.
    """

    @functools.wraps(read)
    def checked(file: IO[bytes], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(file, *args, **kwargs)
        except (BadImage, InputError):
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds, struct.error among them
            if bare := png.with_fewer_chunks(file):
                return checked(bare, *args, **kwargs)
            raise _unreadable(file, error) from error

    return checked


@or_bad_image
def describe(file: IO[bytes]) -> tuple[str, str, int, tuple[int, int]]:
    """Format, mode, bits a band, and (width, height) of an image, by its header, or BadImage."""
    image = open_image(file)
    return image.format or "", image.mode, deep_pixels.bits(image), image.size


@or_bad_image
def dimensions(file: IO[bytes]) -> tuple[int, int]:
    """(width, height) of an image, by its header, before it is turned upright; or BadImage."""
    return open_image(file).size


@or_bad_image
def orientation(file: IO[bytes]) -> int:
    """How an image is turned, by EXIF's numbers; 1: it is upright. Raises BadImage."""
    return open_image(file).getexif().get(_ORIENTATION, 1)


@or_bad_image
def decode_rgb(file: IO[bytes], min_side: float = 0, pixel_range: str = "auto") -> Image.Image:
    """Reads an image as 8-bit RGB and applies its EXIF orientation, or raises BadImage.

    Of an animated one, the first picture. Transparent pixels show white; colour profiles are not
    applied; pixels of more than 8 bits are scaled as `deep_pixels` says. A JPEG is decoded at a
    half, a quarter or an eighth of its size, which saves most of the work, if its shorter side is
    then at least ``min_side`` > 0 pixels long.
    """
    image = open_image(file)
    divisor = 1
    if min_side and image.format == "JPEG":  # no other format can be decoded smaller
        divisor = next((n for n in (8, 4, 2) if min(image.size) >= n * min_side), 1)
    if decoded := _decode_plain_jpeg(file, image, divisor):
        return decoded
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    rgb = _to_rgb(image, file, pixel_range)
    if image.format == "PNG":
        png.check_last_row(file, rgb)
    return rgb


def open_image(file: IO[bytes]) -> ImageFile.ImageFile:
    """An opened image whose pixels are not read; raises whatever Pillow does, or BadImage."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 0 < size <= MAX_BYTES:
        raise BadImage(f"{size} bytes; 1 to {MAX_BYTES} are read")
    image = Image.open(file, formats=FORMATS)
    most = MAX_PIXELS if image.format in DENSE else min(MAX_PIXELS, 2**18 + 128 * size)
    _check_pixels(image, most)
    deep_pixels.check_bands(image, file)
    return image


def _check_pixels(image: Image.Image, most: int) -> None:
    if not 0 < image.width * image.height <= most:
        raise BadImage(f"{image.width} x {image.height} pixels; 1 to {most} in all are decoded")


def _unreadable(file: IO[bytes], error: Exception) -> BadImage:
    start = png.first_bytes(file, 16)
    if isinstance(error, Image.UnidentifiedImageError) or start.startswith(b"SIMPLE"):  # a FITS
        if unread := deep_pixels.describe_unread(start, file):
            return BadImage(unread)
        if start[4:8] == b"ftyp":
            return BadImage("not readable as an image; if it is a HEIC, `pip install pillow-heif`")
        if start[:2] == b"\xff\x0a" or start[4:8] == b"JXL ":
            return BadImage("a JPEG XL; `pip install pillow-jxl-plugin` to read it")
    reason = printable(error).replace(printable(file), "its bytes")[:120]
    return BadImage(f"not readable as an image: {reason}")


def _decode_plain_jpeg(file: IO[bytes], image: Image.Image, divisor: int) -> Image.Image | None:
    """The pixels that Pillow would give, from the same library; None if Pillow is needed."""
    is_plain = image.format == "JPEG" and image.mode == "RGB"
    if not simplejpeg or not is_plain or image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    file.seek(0)
    height = -(-image.height // divisor)
    width = -(-image.width // divisor)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), "RGB", min_height=height, min_width=width)
    except ValueError:
        file.seek(0)
        return None
    return Image.fromarray(pixels)


def _to_rgb(opened: ImageFile.ImageFile, file: IO[bytes], pixel_range: str) -> Image.Image:
    if deep_pixels.is_deep(opened):
        image = deep_pixels.to_8_bits(opened, file, pixel_range)
    else:
        deep_pixels.scale_transparency(opened)
        opened.load()
        _check_pixels(opened, MAX_PIXELS)  # an icon holds larger pictures than its header says
        image = ImageOps.exif_transpose(opened)
    if image.mode == "La":  # Pillow has no way from it to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_bands(file: IO[bytes]) -> np.ndarray:
    """The values (H, W) or (H, W, bands) of an image, upright, its alpha among the bands."""
    image = open_image(file)
    if image.mode == "P":
        raise BadImage("a palette, whose numbers are no values; save it as grey or RGB")
    if deep_pixels.is_deep(image):
        values, alpha = deep_pixels.values_of(image, file)
        values = values if alpha is None else np.dstack([values, alpha])
    else:
        image.load()
        upright = ImageOps.exif_transpose(image)
        values = np.asarray(upright.convert("L") if upright.mode == "1" else upright)
    if image.format == "PNG":
        high = values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
        first = high if high.ndim == 2 else high[..., 0]
        png.check_last_row(file, Image.fromarray(first))
    return values
