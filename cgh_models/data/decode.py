"""Reads one image file from a stranger: checked before it is decoded, always 8-bit RGB after."""

import contextlib
import os
import stat
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps

from ..errors import printable

simplejpeg: Any = None
with contextlib.suppress(ImportError):  # the extra "jpeg": the same pixels, sooner
    import simplejpeg

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100 * 10**6
_ORIENTATION = 0x0112  # of EXIF; 1: as it is
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


class BadImage(Exception):  # noqa: N818 - a finding, not a failure of the program
    """A file that is not a usable image; the text says why."""


def read_image(path: Path, least: float = 0) -> Image.Image:
    """An RGB image, EXIF orientation applied, transparency composited on white, 16-bit greys scaled to 8.

    Args:
        least: a JPEG whose shorter side stays this long is decoded at a half, a quarter or an eighth of its size, which
            saves most of the work; 0: whole.

    Raises:
        BadImage: not a regular file, not one of JPEG PNG WEBP TIFF BMP whatever its name says, too large, damaged, or
            of floating-point pixels.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(handle, "rb")
    except OSError as error:
        raise BadImage(f"cannot be opened: {error.strerror}") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadImage("not a regular file")
        return decode(file, least)


def decode(file: IO[bytes], least: float = 0) -> Image.Image:
    """`read_image` of a file that is open."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 0 < size <= MAX_BYTES:
        raise BadImage(f"{size} bytes; 1 to {MAX_BYTES} are read")
    try:
        image = Image.open(file, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} in all are decoded")
        part = _part(image, least)
        if quick := _quickly(file, image, part):
            return quick
        if part > 1:
            image.draft(None, (image.width // part, image.height // part))
        return _to_rgb(image)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds, ValueError and struct.error among them
        raise BadImage(f"not readable as an image: {printable(error)[:120]}") from error


def _part(image: Image.Image, least: float) -> int:
    """1, 2, 4 or 8: what each side can be divided by; only a JPEG can be decoded smaller."""
    if not least or image.format != "JPEG":
        return 1
    return next((part for part in (8, 4, 2) if min(image.size) >= part * least), 1)


def _quickly(file: IO[bytes], image: Image.Image, part: int) -> Image.Image | None:
    """A plain JPEG without Pillow in between: the same library, the same pixels; None where Pillow has to look."""
    if not simplejpeg or (image.format, image.mode) != ("JPEG", "RGB") or image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    file.seek(0)
    height, width = -(-image.height // part), -(-image.width // part)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), "RGB", min_height=height, min_width=width)
    except ValueError:
        file.seek(0)
        return None
    return Image.fromarray(pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # pyright: ignore[reportOperatorIssue]
            raise BadImage("32-bit pixels have no known range; save it with 8 or 16 bits")
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")
