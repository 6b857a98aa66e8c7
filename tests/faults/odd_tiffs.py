"""TIFF files by hand: any number and type of bands, byte order, planes, damage."""

import struct

import numpy as np

KINDS = {"u": 1, "i": 2, "f": 3}  # SampleFormat by numpy's kind
GREY, RGB = 1, 2  # photometric interpretations
SHORT, LONG = 3, 4


def tiff(
    pixels: np.ndarray,
    photometric: int,
    extra: int | None = None,
    order: str = "<",
    separate: bool = False,
    orientation: int = 1,
    offset: int = 0,
) -> bytes:
    """An uncompressed TIFF of pixels (H, W) or (H, W, C) in one strip.

    ``extra``: what the band after the colours is said to be (1, 2: alpha); ``separate``: one band
    after the other; ``offset``: added to where the pixels are said to lie.
    """
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    planes = pixels.transpose(2, 0, 1) if separate else pixels
    data = np.ascontiguousarray(planes).tobytes()
    bits = pixels.dtype.itemsize * 8
    strips = bands if separate else 1
    plane = len(data) // strips
    tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * bands),
        259: (SHORT, [1]),
        262: (SHORT, [photometric]),
        273: (LONG, [8 + offset + plane * n for n in range(strips)]),
        274: (SHORT, [orientation]),
        277: (SHORT, [bands]),
        278: (LONG, [height]),
        279: (LONG, [plane] * strips),
        284: (SHORT, [2 if separate else 1]),
        339: (SHORT, [KINDS[pixels.dtype.kind]] * bands),
    }
    if extra is not None:
        tags[338] = (SHORT, [extra])
    start = 8 + len(data) + len(data) % 2
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    body = data + b"\0" * (len(data) % 2)
    return header + body + _directory(tags, order, start)


def _directory(tags: dict[int, tuple[int, list[int]]], order: str, start: int) -> bytes:
    entries = b""
    beside = b""  # values that do not fit into four bytes
    after = start + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack(order + "I", after + len(beside))
            beside += packed + b"\0" * (len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + place
    return struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0" + beside
