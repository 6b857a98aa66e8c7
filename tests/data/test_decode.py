"""Reading one image file: which pixels come out, and what is refused with which words."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, __version__

from cgh_models.data import decode as images
from cgh_models.data import formats
from cgh_models.data.decode import decode_rgb, open_file
from cgh_models.errors import BadImage

PILLOW = int(__version__.split(".")[0])


def read_image(path, min_side=0) -> Image.Image:
    with open_file(path) as file:
        return decode_rgb(file, min_side)


def gradient(size=(20, 10)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def test_sixteen_bit_greys_keep_their_brightness(tmp_path):
    pixels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    read = np.array(read_image(tmp_path / "deep.png"))[:, :, 0]
    assert np.abs(read.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(tmp_path, mode):
    if mode == "P":
        image = gradient().convert("P")
        image.info["transparency"] = image.getpixel((0, 0))
    else:
        image = Image.new(mode, (20, 10), 0)
    image.save(tmp_path / "t.png")
    assert read_image(tmp_path / "t.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    ending = "tif" if mode == "CMYK" else "png"
    gradient().convert(mode).save(tmp_path / f"m.{ending}")
    assert read_image(tmp_path / f"m.{ending}").mode == "RGB"


ORIENTED = [None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"]
ORIENTED += ["ROTATE_270", "TRANSVERSE", "ROTATE_90"]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_all_eight_orientations_are_applied(tmp_path, ending):
    stored = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2)
    for number, method in enumerate(ORIENTED, start=1):
        exif = Image.Exif()
        exif[0x0112] = number
        options = {"lossless": True} if ending == "webp" else {}
        stored.save(tmp_path / f"a.{ending}", exif=exif, **options)
        plain = Image.Exif()
        plain[0x0112] = 1
        stored.save(tmp_path / f"b.{ending}", exif=plain, **options)
        expected = read_image(tmp_path / f"b.{ending}")
        if method:
            expected = expected.transpose(Image.Transpose[method])
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}"), expected)


def test_texts_and_profiles_of_any_size_do_not_cost_a_png_its_pixels():
    pixels = b"\0" + bytes(range(6))
    long, bomb = (zlib.compress(b"a" * size) for size in (2 * 2**20, 80 * 2**20))
    for extra in (
        chunk(b"zTXt", b"Comment\0\0" + long),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + long),
        chunk(b"zTXt", b"Comment\0\0" + bomb),
        chunk(b"iCCP", b"profile\0\0" + bomb),
        chunk(b"tEXt", b"Comment\0text")[:-1] + b"\0",  # its checksum is wrong
    ):
        for after in (False, True):
            read = decode_rgb(io.BytesIO(png(2, 1, 8, 2, pixels, extra, after)))
            np.testing.assert_array_equal(read, np.arange(6).reshape(1, 2, 3))
    cut = png(2, 1, 8, 2, pixels, chunk(b"zTXt", b"Comment\0\0" + long))[:-28]
    with pytest.raises(BadImage, match="not readable as an image"):
        decode_rgb(io.BytesIO(cut))


@pytest.mark.parametrize("bits, values", [(1, [0, 1]), (2, [1, 2]), (4, [5, 9]), (16, [300, 4000])])
def test_the_grey_that_a_png_says_is_transparent_shows_white(bits, values):
    row = int("".join(f"{value:0{bits}b}" for value in values).ljust(8, "0"), 2)
    pixels = b"\0" + row.to_bytes(max(1, bits // 4), "big")
    clear = chunk(b"tRNS", struct.pack(">H", values[0]))
    read = np.array(
        decode_rgb(io.BytesIO(png(2, 1, bits, 0, pixels, clear)), 0, f"0,{2**bits - 1}")
    )
    assert read[0, 0, 0] == 255
    assert read[0, 1, 0] == round(255 * values[1] / (2**bits - 1))


def saved(image: Image.Image, name: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


SAVED = ["AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "PCX"]
SAVED += ["PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP", "HEIF", "JXL"]


@pytest.mark.parametrize("name", SAVED)
def test_the_formats_of_pillow_are_read_by_their_content(tmp_path, name):
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"nothing here writes {name}")
    image = gradient((32, 32))
    (tmp_path / "a.jpg").write_bytes(saved(image, name))
    read = read_image(tmp_path / "a.jpg")
    assert read.mode == "RGB"
    read = read.resize((32, 32))  # ICNS holds larger ones
    assert np.abs(np.array(read, int) - np.array(image, int)).mean() < 4


def test_animated_files_give_their_first_picture():
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    for name in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        if name in Image.SAVE_ALL:
            data = saved(first, name, save_all=True, append_images=[second])
            red, _, blue = decode_rgb(io.BytesIO(data)).getpixel((4, 4))
            assert red > 240 and blue < 10, name


def test_what_pillow_knows_is_read_or_refused_for_a_reason():
    Image.init()
    assert set(Image.OPEN) <= {*formats.FORMATS, *formats.NOT_READ}
    assert not {*formats.FORMATS} & formats.NOT_READ
    endings = {".jpg", ".png", ".tif", ".gif", ".webp", ".jp2", ".ppm", ".mpo"}
    assert endings <= formats.EXTENSIONS and not {".eps", ".wmf", ".pdf"} & formats.EXTENSIONS


def test_cmyk_and_lab_have_pillows_colours():
    for mode, name in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF")):
        data = saved(
            Image.new(mode, (8, 8), (60, 120, 130, 20)[: 4 if mode == "CMYK" else 3]), name
        )
        with Image.open(io.BytesIO(data)) as image:
            expected = image.convert("RGB").getpixel((4, 4))
        assert image.mode == mode and decode_rgb(io.BytesIO(data)).getpixel((4, 4)) == expected
    plain = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # cyan: no red
    assert decode_rgb(io.BytesIO(saved(plain, "JPEG"))).getpixel((4, 4))[0] < 5  # Adobe's inversion


def test_an_uncompressed_ycbcr_tiff_is_read_or_refused_whatever_follows_its_pixels():
    image = Image.new("YCbCr", (8, 8), (60, 120, 130))
    for tail in (b"", bytes(4096)):
        file = io.BytesIO(saved(image, "TIFF") + tail)
        if PILLOW >= 13:
            assert decode_rgb(file).getpixel((4, 4)) == image.convert("RGB").getpixel((4, 4))
        else:  # it takes four bytes for each pixel of three
            with pytest.raises(BadImage, match="uncompressed YCbCr TIFF.* save it as RGB"):
                decode_rgb(file)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour, rows, extra=b"", after=False) -> bytes:
    """A PNG with ``extra`` chunks before or after its pixels; ``rows`` begin with a filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    middle = data + extra if after else extra + data
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IEND", b"")


def bad_files(folder):
    """(name, what the reason must contain) of unusable files made in ``folder``."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    gradient().save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "vector.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "no_rows.png").write_bytes(png(4, 0, 8, 0, b""))
    (folder / "heic.heic").write_bytes(b"\0\0\0\x18ftypnone" + b"\0" * 40)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    return {
        "empty.jpg": "0 bytes",
        "text.jpg": "not readable as an image",
        "cut.jpg": "(?i)truncated",
        "vector.png": "not readable as an image",
        "no_rows.png": "not readable as an image|4 x 0 pixels",
        "heic.heic": "pip install pillow-heif",
        "pipe.jpg": "not a regular file",
        "folder.jpg": "cannot be opened|not a regular file",
        "missing.jpg": "cannot be opened",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_bad_files_are_refused_with_a_reason_and_nothing_hangs(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(BadImage, match=reason):
            read_image(tmp_path / name)


def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    gradient().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(BadImage, match="20 x 10 pixels; 1 to 100"):
        read_image(tmp_path / "a.png")


def test_few_bytes_of_a_format_that_is_decoded_slowly_cannot_be_many_pixels():
    bomb = bytearray(saved(gradient(), "DDS"))
    bomb[12:20] = struct.pack("<II", 5000, 5000)  # Pillow's loop in Python would take minutes
    with pytest.raises(BadImage, match="5000 x 5000 pixels; 1 to 3"):
        decode_rgb(io.BytesIO(bomb))
    icon = bytearray(saved(gradient((64, 64)), "ICO", sizes=[(64, 64)]))
    icon[6:8] = b"\x20\x20"  # the header says 32 x 32
    assert decode_rgb(io.BytesIO(icon)).size == (64, 64)


# --- faster ways to the same pixels


def photo(size=(640, 480), seed=0) -> Image.Image:
    low = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)


quick = pytest.mark.skipif(images.simplejpeg is None, reason="the jpeg extra is not installed")


@quick
@pytest.mark.parametrize(
    "options", [{}, {"quality": 60}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}]
)
@pytest.mark.parametrize("min_side", [0, 100])
def test_the_jpeg_extra_changes_no_pixel(tmp_path, monkeypatch, options, min_side):
    photo((641, 479)).save(tmp_path / "a.jpg", **options)
    with_it = np.array(read_image(tmp_path / "a.jpg", min_side))
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(with_it, np.array(read_image(tmp_path / "a.jpg", min_side)))


@quick
@pytest.mark.parametrize("mode, exif", [("L", 1), ("CMYK", 1), ("RGB", 6), ("RGB", 3)])
def test_what_needs_more_than_decoding_goes_through_pillow(tmp_path, monkeypatch, mode, exif):
    tags = Image.Exif()
    tags[0x0112] = exif
    photo().convert(mode).save(tmp_path / "a.jpg", exif=tags)
    with_it = read_image(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(np.array(with_it), np.array(read_image(tmp_path / "a.jpg")))
    assert with_it.size == ((480, 640) if exif == 6 else (640, 480))


@pytest.mark.parametrize("extra", [pytest.param(True, marks=quick), False])
def test_a_damaged_jpeg_is_bad_with_and_without_the_extra(tmp_path, monkeypatch, extra):
    if not extra:
        monkeypatch.setattr(images, "simplejpeg", None)
    photo().save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    for length in (4, 300, len(data) // 2):
        (tmp_path / "a.jpg").write_bytes(data[:length])
        with pytest.raises(BadImage, match="not readable as an image"):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("extra", [pytest.param(True, marks=quick), False])
@pytest.mark.parametrize(
    "min_side, part", [(0, 1), (481, 1), (241, 1), (240, 2), (121, 2), (120, 4), (60, 8), (10, 8)]
)
def test_a_large_photo_is_decoded_as_small_as_it_may_be(
    tmp_path, monkeypatch, extra, min_side, part
):
    if not extra:
        monkeypatch.setattr(images, "simplejpeg", None)
    photo().save(tmp_path / "a.jpg", quality=95)
    small = read_image(tmp_path / "a.jpg", min_side)
    assert small.size == (640 // part, 480 // part)
    whole = read_image(tmp_path / "a.jpg").resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.array(small, int) - np.array(whole, int)).mean() < 2


def test_only_jpegs_come_smaller(tmp_path):
    photo().save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 60).size == (640, 480)
