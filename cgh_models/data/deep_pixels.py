"""Pixels of more than 8 bits: their values, the range of a set of them, and 8 bits from it.

A range is a text: ``N-bit`` (0 to 2**N - 1, other values are refused), ``LOW,HIGH`` (others are
clipped to it), or ``auto``: one N-bit for the whole set, decided from some of its images.
"""

import contextlib
import re
import sys
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from ..errors import BadImage

DEPTHS = (8, 10, 12, 14, 16)  # bits that values of 16 may use
_BLOCK = 2**20  # values that are scaled at once
_ADVICE = "give --pixel-range LOW,HIGH"
# TIFF tags, and what they may say.
_BITS, _PHOTOMETRIC, _BANDS, _EXTRA, _SAMPLE_FORMAT, _SUBSAMPLING = 258, 262, 277, 338, 339, 530
_PLANES, _HEIGHT = 284, 257
_WHITE_IS_ZERO, _YCBCR = 0, 6
_UNSIGNED, _SIGNED = (1,), (2,)
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # bands, by photometric interpretation
_ALPHA = ((1,), (2,))
_PSD_MULTICHANNEL = 7
_NUMBERS = {1: "unsigned numbers", 2: "signed numbers", 3: "floats"}  # by sample format
_UNREAD = dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "a TIFF of unknown numbers")
_UNREAD |= {b"8BPS": "a PSD", b"SIMPLE": "a FITS", b"PF": "a PFM", b"v/1\1": "an OpenEXR"}
_UNREAD |= {b"#?": "a Radiance HDR"}


class Largest(NamedTuple):
    """The largest value of a deep image."""

    value: int
    kind: str  # "16-bit grey"


def check_bands(image: Any, file: IO[bytes]) -> None:
    """Raises BadImage for an opened image of which Pillow would show other bands than meant.

    A band that is neither a colour nor a declared alpha is refused.
    """
    place = file.tell()  # some formats are read on from where their header ends
    file.seek(0)
    header = file.read(4096)
    file.seek(place)
    colours = _COLOURS.get(_tag(image, _PHOTOMETRIC, -1), 0)
    bands = _tag(image, _BANDS, colours)
    has_alpha = _tag(image, _EXTRA, ()) in _ALPHA
    if image.format == "TGA" and image.mode == "RGBA":
        colours, bands, has_alpha = 3, 4, header[17] & 15 > 0
    elif image.format == "JPEG2000":
        _check_depth(image, file)
        bands = len(image.getbands())
        has_alpha = b"cdef" in header
        colours = bands - (image.mode in ("LA", "RGBA"))
    elif image.format == "PSD" and header[25] == _PSD_MULTICHANNEL:
        colours, bands = 1, header[13]
    if colours and bands != colours and not (has_alpha and bands == colours + 1):
        found = f"{bands} bands, of which {min(bands, colours)} are colours and none declared alpha"
        advice = "save it as grey or RGB, or declare the alpha"
        if image.format == "TIFF":
            advice = f"give --in-chans {bands} to take all, or {advice}"
        raise BadImage(f"{found}; {advice}")
    if bands > 1 and max(_tag(image, _BITS, (8,))) > 8 and not _is_deep_colour(image):
        raise BadImage("bands of 16 bits, one after the other; save it with interleaved bands")
    if max((tile[1][3] for tile in image.tile), default=0) < _tag(image, _HEIGHT, 0):
        raise BadImage("rows are missing; save it anew")
    if image.mode == "YCbCr" and _tag(image, _SUBSAMPLING, (2, 2)) != (1, 1):
        raise BadImage("colours of fewer pixels than the luma; save it as RGB")
    is_raw = any(tile[0] == "raw" for tile in image.tile)
    if image.mode == "RGB" and is_raw and _tag(image, _PHOTOMETRIC, -1) == _YCBCR:
        raise BadImage("an uncompressed YCbCr TIFF, misread before Pillow 13; save it as RGB")
    if image.format == "FITS" and image.mode[0] == "I":
        raise BadImage("a FITS of whole numbers, whose zero is not read; save it as a PNG")


def _check_depth(image: ImageFile.ImageFile, file: IO[bytes]) -> None:
    """Notes the bits of a JPEG 2000, or raises BadImage.

    Pillow rounds colours to 8 bits so that white, one above the largest, becomes black, and adds a
    half of the range to signed numbers.
    """
    place = file.tell()
    file.seek(0)
    codestream = file.read().partition(b"\xff\x4f\xff\x51")[2]
    file.seek(place)
    bands = codestream[38 : 38 + 3 * int.from_bytes(codestream[36:38], "big") : 3]
    depth = 1 + max((band & 127 for band in bands), default=7)
    signed = "signed " if max(bands, default=0) > 127 else ""
    if signed or depth > (16 if image.mode == "I;16" else 8):
        what = f"a JPEG 2000 of {signed}bands of {depth} bits, which is not read right"
        raise BadImage(f"{what}; save it as a PNG of 16 bits and {_ADVICE}")
    image.info["depth"] = depth


def scale_transparency(image: ImageFile.ImageFile) -> None:
    """Pillow scales greys of 2 or 4 bits to 8, but not the one that a PNG says is transparent."""
    clear = image.info.get("transparency")
    if image.format == "PNG" and isinstance(clear, int):
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)


def describe_unread(start: bytes, file: IO[bytes]) -> str:
    """What a file holds whose numbers Pillow does not read, and what to do; "" for other files."""
    what = next((what for magic, what in _UNREAD.items() if start.startswith(magic)), "")
    with contextlib.suppress(Exception):  # the tags of a TIFF, which may be damaged
        tags = TiffImagePlugin.ImageFileDirectory_v2(start if start[2] == 43 else start[:8])
        file.seek(tags.next)
        tags.load(file)
        numbers = _NUMBERS.get(tags.get(_SAMPLE_FORMAT, _UNSIGNED)[0], "numbers")
        bands = tags.get(_BANDS, 1)
        what = f"a TIFF of {max(tags[_BITS])}-bit {numbers}" + f" in {bands} bands" * (bands > 1)
        if bands not in (1, 3):
            return f"{what}, expected 3 bands: give --in-chans {bands}, or save it as grey or RGB"
    expected = f"save it as a TIFF of one band of 32-bit floats and {_ADVICE}"
    expected += ", or save it as grey or RGB of 8 or 16 bits"
    return f"{what}, which is not read; {expected}" if what else ""


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is opened, but not loaded, has pixels of more than 8 bits."""
    signed_bytes = image.mode == "L" and _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _SIGNED
    return image.mode[0] in "IF" or signed_bytes or _is_deep_colour(image)


def bits(image: ImageFile.ImageFile) -> int:
    """Bits of a band of an image that is opened, but not loaded, as far as its header says."""
    stated = image.info["depth"] if image.format == "JPEG2000" else max(_tag(image, _BITS, (0,)))
    packed = re.match(r"(?:L|LA|P|I|F|RGB|RGBA|CMYK);(\d+)", _raw_mode(image))
    of_mode = {"1": 1, "I": 16, "F": 32}.get(image.mode[0], 8)
    return stated or (int(packed[1]) if packed else of_mode)


def largest(image: ImageFile.ImageFile, file: IO[bytes]) -> Largest | None:
    """What an image shows of the range of its set; None if it has 8 bits or states its own."""
    if not is_deep(image) or _stated_range(image):
        return None
    values, _ = values_of(image, file)
    check_known(values)
    bands = "grey" if values.ndim == 2 else image.mode.removesuffix("A")
    return Largest(int(values.max()), f"{max(_tag(image, _BITS, (16,)))}-bit {bands}")


def to_8_bits(image: ImageFile.ImageFile, file: IO[bytes], pixel_range: str) -> Image.Image:
    """A deep image upright, with 8 bits a band. Raises BadImage for values out of range.

    16-bit: greys are divided by 257, colours keep their upper 8 bits, as Pillow reads them. Values
    of other ranges are rounded to the nearest of 256 steps.
    """
    if "," not in pixel_range:
        pixel_range = _stated_range(image) or pixel_range
    clear = image.info.get("transparency")
    if pixel_range == "16-bit" and _is_deep_colour(image) and clear is None:
        return ImageOps.exif_transpose(image)
    values, alpha = values_of(image, file)
    scaled = _scaled(values, pixel_range)
    if _tag(image, _PHOTOMETRIC, -1) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    mode = "L" if values.ndim == 2 else image.mode.removesuffix("A")
    upright = Image.frombytes(mode, scaled.shape[1::-1], scaled.tobytes())
    if clear is not None:
        is_clear = values == np.array(clear, values.dtype)
        alpha = np.where(is_clear if values.ndim == 2 else is_clear.all(2), 0, 65535)
    elif alpha is not None and alpha.max() < 2**15:
        if not alpha.min() == alpha.max() > 0:
            raise BadImage("a transparency of unknown range; save it without")
        alpha = None  # all is opaque
    if alpha is not None:
        upright.putalpha(Image.fromarray((alpha // 257).astype(np.uint8)))
    return upright


def _scaled(values: np.ndarray, pixel_range: str) -> np.ndarray:
    """uint8 of the same shape."""
    if pixel_range == "auto":  # no image that decided for the set was deep
        check_known(values)
        if values.max() < 2**14:
            raise BadImage(f"values to {values.max()} of 16 bits, in an unknown range; {_ADVICE}")
        pixel_range = "16-bit"
    low, high = ends(values, pixel_range)
    if pixel_range == "16-bit":
        return (values >> 8 if values.ndim == 3 else values // 257).astype(np.uint8)
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _BLOCK // values[0].size)
    for start in range(0, len(values), rows):
        part = np.clip(values[start : start + rows].astype(np.float64), low, high)
        scaled[start : start + rows] = np.rint((part - low) * 255 / (high - low))
    return scaled


def ends(values: np.ndarray, pixel_range: str) -> tuple[float, float]:
    """What becomes black and white by LOW,HIGH or N-bit. Raises BadImage for other values."""
    if "," in pixel_range:
        low, high = map(float, pixel_range.split(","))
        if not np.isfinite(values).all():
            raise BadImage("holds values that are not finite; save it without")
        return low, high
    check_known(values)
    most = 2 ** int(pixel_range.removesuffix("-bit")) - 1
    if values.max() > most:
        raise BadImage(f"values to {values.max()}, where its set is {pixel_range}; {_ADVICE}")
    return 0, most


def check_known(values: np.ndarray) -> None:
    """Raises BadImage for values that are not whole numbers of at most 16 bits."""
    if values.dtype.kind == "f":
        raise BadImage(f"floating-point pixels have no known range; {_ADVICE}")
    least, most = values.min(), values.max()
    if least < 0 or most > 65535:
        raise BadImage(f"values from {least} to {most} have no known range; {_ADVICE}")


def _tag(image: ImageFile.ImageFile, number: int, default: object) -> Any:
    """What a tag of a TIFF says; other formats have none."""
    return getattr(image, "tag_v2", {}).get(number, default)


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How Pillow unpacks the pixels of an image that is not loaded: "RGB;16B"."""
    codec, _, _, args = image.tile[0] if image.tile else ("", (), 0, "")
    if codec == "SGI16":
        return f"{image.mode};16"
    return args if isinstance(args, str) else str(args[0] if args else "")


def _is_deep_colour(image: ImageFile.ImageFile) -> bool:
    """Whether the bands of an image that is not loaded have 16 bits; Pillow gives the upper 8."""
    return image.mode[0] not in "IF" and re.search(";16[BLN]?$", _raw_mode(image)) is not None


def _stated_range(image: ImageFile.ImageFile) -> str:
    """The range that the file itself states; empty if it does not."""
    if _tag(image, _BITS, ()) == (12,):
        return "12-bit"
    if image.format == "JPEG2000" and image.info["depth"] < 16:
        return f"{image.info['depth']}-bit"
    scaled_by_pillow = image.format == "PPM" and image.mode == "I" and image.tile[0][0] != "raw"
    return "16-bit" if scaled_by_pillow else ""


def values_of(image: ImageFile.ImageFile, file: IO[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """The file's values (H, W) or (H, W, bands), upright; its alpha (H, W), if any."""
    if not _is_deep_colour(image):
        values = _upright(image)
        if image.format == "JPEG2000":  # Pillow scales them to 16 bits
            return values >> (16 - image.info["depth"]), None
        if values.dtype == np.uint8:
            return values.view(np.int8), None
        is_unsigned = _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED
        if _tag(image, _BITS, ()) == (32,) and is_unsigned and values.dtype == np.int32:
            return values.view(np.uint32), None
        return values, None
    raw = _raw_mode(image)
    if raw == "LA;16B":
        four = _upright(_opened_as(image, file, "RGBA")).astype(np.uint16)
        return four[..., 0] << 8 | four[..., 1], four[..., 2] << 8 | four[..., 3]
    upper = _upright(image)
    if raw in _OTHER_BYTE and _tag(image, _PLANES, 1) == 1:
        lower = _upright(_opened_as(image, file, _OTHER_BYTE[raw]))
    elif upper[..., :3].max() >= 64:  # surely 16 bits, and no more than the upper 8 are needed
        lower = upper
    else:
        what = f"values to {256 * int(upper[..., :3].max()) + 255} in a {image.format} of 16 bits"
        raise BadImage(f"{what}, in an unknown range; save it as a PNG")
    values = upper.astype(np.uint16) << 8 | lower
    return (values[..., :3], values[..., 3]) if image.mode == "RGBA" else (values, None)


# Unpacking with the other order of bytes gives the lower one of each band.
_SWAPPED = "B" if sys.byteorder == "little" else "L"
_OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBA", "CMYK")
    for order, other in (("L", "B"), ("B", "L"), ("N", _SWAPPED))
}


def _upright(image: Image.Image) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(image))


def _opened_as(image: ImageFile.ImageFile, file: IO[bytes], raw_mode: str) -> ImageFile.ImageFile:
    """The same image, which another raw mode will unpack."""
    file.seek(0)
    opened: Any = Image.open(file, formats=[image.format or ""])
    for number, tile in enumerate(opened.tile):
        args = raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:])
        opened.tile[number] = tile._replace(args=args)
    return opened
