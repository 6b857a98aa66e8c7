"""Images of any number of bands: what the files hold arrives, in full precision, or is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from cgh_models.data.image_set import load
from cgh_models.data.pixels import measured, unit
from cgh_models.data.reading import picture
from cgh_models.errors import BadImage, InputError

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 4096, (20, 24, 13)).astype(np.uint16)
CHW = np.ascontiguousarray(VALUES.transpose(2, 0, 1))


def write_tiff(path, values, **how):
    tifffile.imwrite(path, values, photometric="minisblack", **how)


LAYOUTS = {
    "interleaved.tif": lambda path: write_tiff(path, VALUES, planarconfig="contig"),
    "packed.tif": lambda path: write_tiff(path, VALUES, planarconfig="contig", compression="zlib"),
    "planes.tif": lambda path: write_tiff(path, CHW, planarconfig="separate"),
    "pages.tif": lambda path: write_tiff(path, CHW),
    "big_endian.tif": lambda path: write_tiff(path, CHW, byteorder=">"),
    "bare_pages.tiff": lambda path: write_tiff(path, CHW, metadata=None),
    "a_row_a_page.tif": lambda path: write_tiff(path, VALUES),
    "hwc.npy": lambda path: np.save(path, VALUES),
    "chw.npy": lambda path: np.save(path, CHW),
    "signed.npy": lambda path: np.save(path, VALUES.astype(np.int32)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_thirteen_bands_of_12_bits_arrive_in_every_layout(tmp_path, name, capsys):
    LAYOUTS[name](tmp_path / name)
    images = load(tmp_path, in_chans=13)
    pixels = images.image(0)
    assert pixels.dtype == np.uint16 and pixels.shape == VALUES.shape
    np.testing.assert_allclose(pixels / 65535, VALUES / 4095, atol=0.5 / 65535)
    assert np.array_equal(np.rint(pixels / 65535 * 4095), VALUES)  # nothing was lost
    assert images.pixel_range == "12-bit"
    assert "13 bands of" in (said := capsys.readouterr().err) and "read as 12-bit" in said


def saved(pixels, form, **more):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **more)
    return file.getvalue()


def test_what_pillow_reads_arrives_with_all_its_bands(tmp_path):
    eight = RNG.integers(0, 256, (9, 8, 4)).astype(np.uint8)
    (tmp_path / "1").mkdir()
    (tmp_path / "4").mkdir()
    (tmp_path / "1" / "a.png").write_bytes(saved(eight[..., 0], "PNG"))
    (tmp_path / "4" / "a.png").write_bytes(saved(eight, "PNG"))
    write_tiff(tmp_path / "4" / "b.tif", eight, planarconfig="contig")
    np.save(tmp_path / "4" / "c.npy", eight)
    grey = load(tmp_path / "1", in_chans=1)
    assert grey.image(0).dtype == np.uint8
    np.testing.assert_array_equal(grey.image(0)[..., 0], eight[..., 0])
    four = load(tmp_path / "4", in_chans=4)
    for index in range(3):
        np.testing.assert_array_equal(four.image(index), eight)
    four.cache_pixels(1)
    assert four.pixels.dtype == torch.uint8 and np.array_equal(four.image(1), eight)
    assert load(tmp_path / "4").names == ["a.png", "b.tif"]  # arrays are no RGB images


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.webp"])
def test_black_and_white_of_one_bit_is_0_and_255(tmp_path, name):
    pixels = np.zeros((6, 8), bool)
    pixels[2:, 3] = True
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    if name == "a.webp":  # has no grey
        with pytest.raises(BadImage, match="3 bands, expected 1"):
            load(tmp_path, in_chans=1).image(0)
    else:
        assert np.array_equal(load(tmp_path, in_chans=1).image(0)[..., 0], 255 * pixels)


def test_exif_turns_a_grey_photograph_and_8_bits_beside_16_keep_their_place(tmp_path):
    grey = RNG.integers(0, 256, (8, 16)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(saved(grey, "PNG", exif=exif))
    images = load(tmp_path, in_chans=1)
    np.testing.assert_array_equal(images.image(0)[..., 0], np.rot90(grey, -1))
    (tmp_path / "b.png").write_bytes(saved(grey.astype(np.uint16) * 257, "PNG"))
    images = load(tmp_path, in_chans=1)
    assert images.pixel_range == "16-bit"
    np.testing.assert_array_equal(images.image(0), np.rot90(images.image(1), -1))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint16, np.int16])
def test_a_stated_range_becomes_0_to_1_and_is_not_rounded_to_8_bits(tmp_path, kind):
    values = RNG.uniform(-100 if kind != np.uint16 else 0, 1100, (9, 8, 2)).astype(kind)
    np.save(tmp_path / "a.npy", values)
    images = load(tmp_path, in_chans=2, pixel_range="0,1000")
    pixels = images.image(0)
    whole = np.issubdtype(kind, np.integer)
    assert pixels.dtype == (np.uint16 if whole else np.float32)
    expected = values.astype(float).clip(0, 1000) / 1000
    found = unit(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found, expected, atol=1 / 131070 if whole else 1e-6)


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path):
    values = RNG.integers(0, 4096, (5, 20, 24, 13)).astype(np.uint16)
    values[..., 3] = 7
    for number, image in enumerate(values):
        np.save(tmp_path / f"{number}.npy", image)
    mean, std, count = measured(load(tmp_path, in_chans=13))
    assert count == 5 and std[3] == 1  # else a band of one value could not be divided by it
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)) / 4095, rtol=1e-3)
    others = np.arange(13) != 3
    expected = values.std((0, 1, 2)) / 4095
    np.testing.assert_allclose(np.array(std)[others], expected[others], rtol=1e-3)


def test_a_picture_for_people_shows_bands_that_use_little_of_their_range(tmp_path):
    np.save(tmp_path / "a.npy", VALUES // 64)
    images = load(tmp_path, in_chans=13, pixel_range="16-bit")
    shown = np.asarray(picture(images, 0))
    assert shown.shape == (20, 24, 3) and shown.min() == 0 and shown.max() == 255
    assert shown.std() > 50


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values, **how):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **how)
    return file.getvalue()


PALETTE = io.BytesIO()
EIGHT = VALUES[..., 0].astype(np.uint8)
Image.fromarray(EIGHT).convert("P").save(PALETTE, "PNG")
PALETTE = PALETTE.getvalue()
COLOURS = np.zeros((3, 256), np.uint16)
FLOATS = VALUES.astype(np.float32)
REFUSED = [
    (npy(VALUES), 4, "auto", "13 bands, expected 4: give --in-chans 13"),
    (saved(VALUES[..., :3].astype(np.uint8), "PNG"), 1, "auto", "3 bands, expected 1"),
    (saved(VALUES[..., 0], "PNG"), 2, "auto", "1 band, expected 2"),
    (npy(FLOATS), 13, "auto", "floating-point.*--pixel-range LOW,HIGH"),
    (npy(FLOATS), 13, "12-bit", "floating-point"),
    (npy(VALUES), 13, "10-bit", "values to 409.*where its set is 10-bit"),
    (npy(-VALUES.astype(np.int16)), 13, "auto", "values from -409.* have no known range"),
    (npy(FLOATS * np.nan), 13, "0,1", "not finite"),
    (npy(VALUES > 7), 13, "auto", "bool of 3 dimensions, expected numbers"),
    (npy(VALUES[None]), 13, "auto", "uint16 of 4 dimensions, expected numbers"),
    (npy(VALUES)[:999], 13, "auto", "not readable as an image"),
    (saved(EIGHT, "PNG")[:200], 1, "auto", "not readable|last row"),
    (PALETTE, 1, "auto", "a palette, whose numbers are no values"),
    (
        tiff(VALUES[..., 0].astype(np.uint8), photometric="palette", colormap=COLOURS),
        1,
        "auto",
        "a palette",
    ),
    (tiff(CHW, photometric="minisblack")[:3000], 13, "auto", "not readable"),
    (b"", 13, "auto", "0 bytes|not readable"),
]


@pytest.mark.parametrize("content, in_chans, pixel_range, reason", REFUSED)
def test_what_cannot_be_read_as_these_bands_says_why(
    tmp_path, content, in_chans, pixel_range, reason
):
    path = tmp_path / ("a.npy" if content.startswith(b"\x93") else "a.tif")
    path.write_bytes(content)
    images = load(tmp_path, in_chans=in_chans, pixel_range="12-bit")
    images.pixel_range = pixel_range
    with pytest.raises(BadImage, match=reason):
        images.image(0)


def test_an_array_that_says_it_is_huge_takes_no_memory(tmp_path):
    header = {"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**6, 13)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    images = load(tmp_path, in_chans=13, pixel_range="12-bit")
    with pytest.raises(BadImage, match="1000000 x 1000000 x 13 values; 1 to"):
        images.image(0)


def test_an_image_of_more_bands_than_rgb_names_the_flag(tmp_path):
    four = VALUES[..., :4].astype(np.uint8)
    write_tiff(tmp_path / "a.tif", four, planarconfig="contig")
    with pytest.raises(InputError, match="give --in-chans 4"):
        load(tmp_path)
    write_tiff(tmp_path / "a.tif", VALUES, planarconfig="contig")
    with pytest.raises(InputError, match="13 bands, expected 3 bands: give --in-chans 13"):
        load(tmp_path)
    (tmp_path / "a.tif").unlink()
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(InputError, match=r"1 x \.npy found.*\.npy arrays with --in-chans"):
        load(tmp_path)
    for wrong in (0, 17, 3.0, True):
        with pytest.raises(InputError, match=r"in_chans=.*1 to 16"):
            load(tmp_path, in_chans=wrong)


def test_a_reader_gets_the_path_and_its_array_becomes_bands_or_rgb(tmp_path, monkeypatch):
    (tmp_path / "my_reader.py").write_text(
        "import json\nimport numpy as np\n\n\ndef read(path):\n"
        "    return np.array(json.loads(path.read_text()), 'u2')\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for number in range(3):
        values = VALUES[..., :3].tolist() if number else VALUES[:9, :8, :3].tolist()
        (tmp_path / "set" / f"{number}.odd").write_text(json.dumps(values))
    images = load("set", in_chans=3, reader="my_reader:read")
    expected = np.rint(255 / 4095 * VALUES[..., :3])
    assert images.image(1).mode == "RGB" and images.pixel_range == "12-bit"
    assert np.abs(np.asarray(images.image(1), int) - expected).max() <= 1
    (tmp_path / "set" / "1.odd").write_text("{")
    assert "--reader my_reader:read: JSONDecodeError" in images.why_bad(1)
    wrong = load("set", in_chans=3, reader="my_reader:read", pixel_range="10-bit")
    assert "where its set is 10-bit" in wrong.why_bad(2)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add("set")
    with pytest.raises(InputError, match="takes paths of files; unpack"):
        load("set.tar", reader="my_reader:read")
    for name, reason in (
        ("my_reader:absent", "has no attribute 'absent'"),
        ("no_such_module:read", "No module named.*in this folder or on PYTHONPATH"),
        ("my_reader:json.decoder", "is no function"),
        ("my_reader.py", "expected MODULE:FUNCTION"),
    ):
        with pytest.raises(InputError, match=reason):
            load("set", reader=name)
