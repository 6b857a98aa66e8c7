"""Reading one image file: which pixels come out, and what is refused with which words."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from cgh_models.data import decode as images
from cgh_models.data.decode import read_image
from cgh_models.errors import BadImage


def gradient(size=(20, 10)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "bmp"])
def test_the_listed_formats_are_read_as_rgb(tmp_path, ending):
    gradient().save(tmp_path / f"a.{ending}")
    read = read_image(tmp_path / f"a.{ending}")
    assert read.mode == "RGB" and read.size == (20, 10)


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


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(tmp_path / "o.jpg", exif=exif)
    assert read_image(tmp_path / "o.jpg").size == (10, 20)
    assert ImageOps.exif_transpose(Image.open(tmp_path / "o.jpg")).size == (10, 20)


def png_with_text_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    text = b"Comment\0\0" + zlib.compress(b"a" * (80 * 2**20))
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"zTXt", text), (b"IDAT", zlib.compress(b"\0" * 4)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def bad_files(folder):
    """(name, what the reason must contain) of unusable files made in ``folder``."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    gradient().save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "vector.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    gradient().save(folder / "film.gif")
    (folder / "film.gif").rename(folder / "film.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((4, 4), 2**20, np.int32)).save(folder / "wide.tif")
    (folder / "bomb.png").write_bytes(png_with_text_bomb())
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    return {
        "empty.jpg": "0 bytes",
        "text.jpg": "not readable as an image",
        "cut.jpg": "(?i)truncated",
        "vector.png": "not readable as an image",
        "film.png": "not readable as an image",
        "float.tif": "floating-point",
        "wide.tif": "32-bit",
        "bomb.png": "not readable as an image",
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
