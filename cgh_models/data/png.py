"""PNG files beside what Pillow does: damaged chunks that hold no pixels, rows that are missing."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from PIL import Image

from ..errors import BadImage

_START = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by IHDR's type of colour


def first_bytes(file: IO[bytes], most: int = -1) -> bytes:
    """The first bytes of a file, or all; none if it cannot be read, as of a tar that was cut."""
    try:
        file.seek(0)
        return file.read(most)
    except Exception:  # an archive of the Hub's may raise anything
        return b""


def with_fewer_chunks(file: IO[bytes]) -> IO[bytes] | None:
    """A PNG without texts and profiles; if it has none, without its rotation; else None.

    Pillow refuses a picture for such a chunk that is long or damaged, while its pixels are whole.
    """
    data = first_bytes(file)
    if not data.startswith(_START):
        return None
    for names in (_PIXELS | {b"eXIf"}, _PIXELS):
        chunks = [chunk for name, chunk in _chunks(data) if name in names]
        bare = b"".join([_START, *chunks])
        if len(bare) < len(data):
            return io.BytesIO(bare)
    return None


def check_last_row(file: IO[bytes], decoded: Image.Image) -> None:
    """Raises BadImage if the pixels of a PNG end before its last row, which Pillow shows black.

    They are counted only if a row at the edge is of one colour, as rows that are missing are.
    """
    width, height = decoded.size
    edges = ((0, height - 1, width, height), (0, 0, width, 1))  # and turned by EXIF
    edges += ((width - 1, 0, width, height), (0, 0, 1, height))
    ends = [decoded.crop(edge).convert("RGB").getextrema() for edge in edges]
    if all(any(low != high for low, high in bands) for bands in ends):  # pyright: ignore
        return
    chunks = list(_chunks(first_bytes(file)))
    header = next(chunk for name, chunk in chunks if name == b"IHDR")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[8:21])
    if interlaced:
        return
    missing = height * (1 + (width * depth * _CHANNELS[colour] + 7) // 8)
    unpack = zlib.decompressobj()
    for name, chunk in chunks:
        if name == b"IDAT" and missing:
            missing -= len(unpack.decompress(chunk[8:-4], missing))
    if missing > 0:
        raise BadImage("its pixels end before its last row; get it again")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, all its bytes) of each chunk of a PNG."""
    start = len(_START)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start:end]
        start = end
