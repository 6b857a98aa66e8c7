"""Reads one image file from a stranger: checked before it is decoded, always 8-bit RGB after."""

import os
import stat
from pathlib import Path

from PIL import Image, ImageOps

from .errors import printable

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100 * 10**6
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


class BadImage(Exception):  # noqa: N818 - a finding, not a failure of the program
    """A file that is not a usable image; the text says why."""


def read_image(path: Path) -> Image.Image:
    """An RGB image, EXIF orientation applied, transparency composited on white, 16-bit greys scaled to 8.

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
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if not 0 < status.st_size <= MAX_BYTES:
            raise BadImage(f"{status.st_size} bytes; 1 to {MAX_BYTES} are read")
        try:
            image = Image.open(file, formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} in all are decoded")
            return _to_rgb(image)
        except BadImage:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds, ValueError and struct.error among them
            raise BadImage(f"not readable as an image: {printable(error)[:120]}") from error


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
