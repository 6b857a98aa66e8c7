"""Reads one image file: checked before it is decoded, always 8-bit RGB afterwards."""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps

from ..errors import BadImage, printable

simplejpeg: Any = None
with contextlib.suppress(ImportError):  # the extra "jpeg": the same pixels, sooner
    import simplejpeg

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
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


def read_image(path: Path, min_side: float = 0) -> Image.Image:
    """Reads an image as 8-bit RGB and applies its EXIF orientation, or raises BadImage.

    Transparent pixels show white; 16-bit greys are scaled to 8 bits. A JPEG is decoded at a half, a
    quarter or an eighth of its size, which saves most of the work, if its shorter side is then at
    least ``min_side`` > 0 pixels long.
    """
    with open_file(path) as file:
        return decode(file, min_side)


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


def decoded_bytes(file: IO[bytes]) -> int:
    """How many bytes an image takes as 8-bit RGB, by its header; 0 if that cannot be read."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return image.width * image.height * 3
    except Exception:  # as many kinds as in `decode`
        return 0


def decode(file: IO[bytes], min_side: float = 0) -> Image.Image:
    """`read_image` of an open file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not 0 < size <= MAX_BYTES:
        raise BadImage(f"{size} bytes; 1 to {MAX_BYTES} are read")
    try:
        image = Image.open(file, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            found = f"{image.width} x {image.height} pixels"
            raise BadImage(f"{found}; at most {MAX_PIXELS} in all are decoded")
        divisor = 1
        if min_side and image.format == "JPEG":  # no other format can be decoded smaller
            divisor = next((n for n in (8, 4, 2) if min(image.size) >= n * min_side), 1)
        decoded = _decode_plain_jpeg(file, image, divisor)
        if decoded:
            return decoded
        if divisor > 1:
            image.draft(None, (image.width // divisor, image.height // divisor))
        return _to_rgb(image)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds, struct.error among them
        raise BadImage(f"not readable as an image: {printable(error)[:120]}") from error


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
