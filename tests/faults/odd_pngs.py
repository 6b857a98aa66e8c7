"""PNG files by hand: chunks, depths that Pillow does not write, interlacing, damage."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6  # colour types
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
ADAM7 += ((0, 1, 1, 2),)  # x, y of the first pixel, steps in x and y


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    pixels: np.ndarray,
    depth: int = 8,
    colour: int = RGB,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of pixels (H, W) or (H, W, C); ``before`` and ``after``: chunks around the data."""
    height, width = pixels.shape[:2]
    parts = [pixels]
    if interlaced:
        parts = [pixels[y::down, x::right] for x, y, right, down in ADAM7]
    data = b"".join(rows(part, depth) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, colour, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(data)) + after
    return MAGIC + chunks + chunk(b"IEND", b"")


def rows(pixels: np.ndarray, depth: int) -> bytes:
    """Unfiltered rows of ``depth`` bits a value."""
    lines = []
    for row in pixels.reshape(len(pixels), -1):
        if depth == 16:
            line = row.astype(">u2").tobytes()
        elif depth == 8:
            line = row.astype(np.uint8).tobytes()
        else:
            bits = row[:, None] >> np.arange(depth - 1, -1, -1) & 1
            line = np.packbits(bits).tobytes()
        lines.append(b"\0" + line)
    return b"".join(lines)


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """A file as Pillow writes it."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
