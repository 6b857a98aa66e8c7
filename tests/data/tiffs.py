"""TIFF files with any tags, as Pillow cannot write them."""

import struct
import zlib

import numpy as np


def tiff(values, photometric=1, extra=None, planes=False, packed=False, big=False, **tags):
    """The bytes of a TIFF of values (H, W) or (H, W, bands) of any type.

    ``tags`` replace entries: bits=12, sample_format=2, orientation=6.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, bands = values.shape
    order = ">" if big else "<"
    values = values.astype(values.dtype.newbyteorder(order))
    strips = [values.tobytes()]
    if planes:
        strips = [np.ascontiguousarray(values[..., band]).tobytes() for band in range(bands)]
    if packed:
        strips = [zlib.compress(strip) for strip in strips]
    entries = {
        256: [width],
        257: [height],
        258: [tags.get("bits", 8 * values.dtype.itemsize)] * bands,
        259: [8 if packed else 1],
        262: [photometric],
        273: [0] * len(strips),
        274: [tags.get("orientation", 1)],
        277: [bands],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planes else 1],
        339: [tags.get("sample_format", {"u": 1, "i": 2, "f": 3}[values.dtype.kind])] * bands,
    }
    if extra is not None:
        entries[338] = list(extra)
    start = 8 + 2 + 12 * len(entries) + 4
    start += sum(4 * len(value) for value in entries.values() if len(value) > 1)
    for strip in strips:
        entries[273] = [*entries[273][1:], start]
        start += len(strip)
    directory, outside = b"", b""
    for tag, value in sorted(entries.items()):
        packed_value = struct.pack(f"{order}{len(value)}I", *value)
        directory += struct.pack(f"{order}HHI", tag, 4, len(value))
        if len(value) > 1:
            directory += struct.pack(f"{order}I", 8 + 2 + 12 * len(entries) + 4 + len(outside))
            outside += packed_value
        else:
            directory += packed_value
    header = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}IH", 8, len(entries))
    return header + directory + b"\0\0\0\0" + outside + b"".join(strips)
