"""What `cgh check` keeps of an image."""

import numpy as np


def row_type(channels: int) -> np.dtype:
    """What a row says of an image: which it is, its bytes, and what its pixels are."""
    return np.dtype(
        [
            ("key", "V16"),  # hash of name, bytes and time of change
            ("sha256", "V32"),  # of its bytes
            ("phash", "<u8"),  # perceptual hash of 64 bits
            ("kind", "S32"),  # format, mode and bits, with spaces between them
            ("bytes", "<i8"),
            ("size", "<i4", 2),  # width and height, upright
            ("mean", "<f8", channels),  # of each channel, in [0, 1]
            ("square", "<f8", channels),  # mean of each channel's squares
        ]
    )
