"""Bands of TIFF and .npy files, and values that fill their type.

An image of bands is an array (H, W, bands), and its range goes from 0 to 255 of uint8, to 65535 of
uint16, or to 1 of float32. Nothing is rounded to 8 bits.
"""

import importlib
import io
import math
from typing import IO, Any

import numpy as np

from ..errors import BadImage, InputError
from . import deep_pixels, png

_MOST = 3 * 10**8  # values of an image
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PALETTE, _WHITE_IS_ZERO = 3, 0  # photometric interpretations


def is_tiff(file: IO[bytes]) -> bool:
    """Whether a file begins as a TIFF."""
    return png.first_bytes(file, 4) in _TIFFS


def is_npy(file: IO[bytes]) -> bool:
    """Whether a file begins as an array of numpy's."""
    return png.first_bytes(file, 6) == b"\x93NUMPY"


def _open_tiff(file: IO[bytes]) -> Any:
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        install = "`pip install tifffile imagecodecs`"
        raise InputError(f"a TIFF with --in-chans: is read by tifffile; {install}") from None
    file.seek(0)
    return tifffile.TiffFile(file, name="a TIFF")


def tiff_bytes(file: IO[bytes]) -> int:
    """Bytes of the values of the first picture, by its header."""
    with _open_tiff(file) as tiff:
        return tiff.series[0].nbytes


def of_tiff(file: IO[bytes], in_chans: int) -> np.ndarray:
    """All bands of the first picture: interleaved, in planes, or a page each. It is not turned."""
    with _open_tiff(file) as tiff:
        series = tiff.series[0]
        _check_count(series.shape)
        page = series.keyframe
        if page.photometric == _PALETTE:
            raise BadImage("a palette, whose numbers are no values; save it as grey or RGB")
        try:
            values = series.asarray(maxworkers=1)
        except Exception as error:
            if "imagecodecs" not in str(error):
                raise
            what = f"a TIFF with {page.compression.name} compression"
            raise BadImage(f"{what}; `pip install imagecodecs` to read it") from error
        if page.photometric == _WHITE_IS_ZERO and values.dtype.kind == "u":
            values = 2**page.bitspersample - 1 - values
        places = [series.axes.index(axis) for axis in "YX"]
    ordered = np.moveaxis(values, places, (0, 1))
    ordered = ordered.reshape(*ordered.shape[:2], -1)
    # A plain array (H, W, bands) is written as H pages by some.
    return ordered if ordered.shape[2] == in_chans else values


def of_npy(file: IO[bytes]) -> np.ndarray:
    """The array of a .npy file."""
    file.seek(0)
    read_header = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(file) == (1, 0):
        read_header = np.lib.format.read_array_header_1_0
    _check_count(read_header(file)[0])  # before memory is taken for it
    file.seek(0)
    return np.load(io.BytesIO(file.read()), allow_pickle=False)  # a tar's has no number


def _check_count(shape: tuple[int, ...]) -> None:
    if not 0 < math.prod(shape) <= _MOST:
        found = " x ".join(map(str, shape))
        raise BadImage(f"{found} values; 1 to {_MOST} are read: cut it into smaller images")


def bands_last(values: np.ndarray, in_chans: int) -> np.ndarray:
    """(H, W, in_chans) of (H, W), (H, W, bands) or (bands, H, W). Raises BadImage."""
    if values.dtype.kind not in "iuf" or values.ndim not in (2, 3):
        found = f"{values.dtype} of {values.ndim} dimensions"
        raise BadImage(f"{found}, expected numbers (H, W), (H, W, bands) or (bands, H, W)")
    _check_count(values.shape)
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] == in_chans:
        return values
    if values.shape[0] == in_chans:
        return values.transpose(1, 2, 0)
    count = min(values.shape[0], values.shape[2])
    found = f"{count} bands" if count > 1 else "1 band"
    found += f" ({values.dtype} of shape {values.shape})" * (in_chans == 3)
    raise BadImage(f"{found}, expected {in_chans}: give --in-chans {count}")


def filled(values: np.ndarray, pixel_range: str) -> np.ndarray:
    """The same values, filling their type. Raises BadImage for values out of range."""
    if values.dtype == np.uint8:  # beside deep images of the set, as they are
        alone = pixel_range == "auto"
        return np.array(values, order="C") if alone else values.astype(np.uint16) * 257
    if pixel_range == "auto":
        deep_pixels.check_known(values)
        raise BadImage(f"{values.dtype.name} in a set of 8 bits; give --pixel-range LOW,HIGH")
    low, high = deep_pixels.ends(values, pixel_range)
    if "," in pixel_range:
        share = (values.astype(np.float32) - low) / (high - low)
        share = np.ascontiguousarray(share.clip(0, 1), np.float32)
        whole = values.dtype.kind in "iu" and values.dtype.itemsize <= 2
        return np.rint(65535 * share).astype(np.uint16) if whole else share
    most = int(high)
    return ((values.astype(np.uint32) * 65535 + most // 2) // most).astype(np.uint16)
