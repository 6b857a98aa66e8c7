"""Pixels of more than 8 bits, and bands beyond colours: the exact values, or a reason."""

import dataclasses
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from conftest import make_images
from PIL import Image
from small_runs import QUICK, build
from test_decode import PILLOW, chunk, png, saved
from tiffs import tiff

from cgh_models.cli.evaluate import Knn, Measurement
from cgh_models.cli.flags import Machine
from cgh_models.data.decode import decode_rgb
from cgh_models.data.image_set import load, load_splits
from cgh_models.errors import BadImage, InputError
from cgh_models.evaluate import extract
from cgh_models.train.loop import pretrain

RANDOM = np.random.default_rng(0)


def values(most: int, bands: int = 1) -> np.ndarray:
    """(9, 8) or (9, 8, bands) uint16 from 0 to ``most``."""
    drawn = RANDOM.integers(0, most + 1, (9, 8, bands), dtype=np.uint16)
    drawn[0, 0], drawn[0, 1] = 0, most
    return drawn[..., 0] if bands == 1 else drawn


def scaled(deep: np.ndarray, low: float = 0, high: float = 4095) -> np.ndarray:
    """What has to come out: (H, W, 3)."""
    steps = 255 * (np.clip(deep.astype(float), low, high) - low)
    rgb = np.rint(steps / (high - low)).astype(np.uint8)
    return np.repeat(rgb[..., None], 3, 2) if rgb.ndim == 2 else rgb


def read(data: bytes, pixel_range: str = "auto") -> np.ndarray:
    return np.array(decode_rgb(io.BytesIO(data), 0, pixel_range))


def png16(deep: np.ndarray, extra: bytes = b"") -> bytes:
    bands = 1 if deep.ndim == 2 else deep.shape[2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    return png(8, 9, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], rows, extra)


def with_alpha(deep: np.ndarray, alpha: int) -> np.ndarray:
    deep = deep[..., None] if deep.ndim == 2 else deep
    return np.concatenate([deep, np.full((9, 8, 1), alpha, np.uint16)], 2)


WRITERS = {
    "png": png16,
    "tiff": lambda deep: tiff(deep, 1 if deep.ndim == 2 else 2),
    "big-endian tiff": lambda deep: tiff(deep, 1 if deep.ndim == 2 else 2, big=True),
    "packed tiff": lambda deep: tiff(deep, 1 if deep.ndim == 2 else 2, packed=True),
    "big packed tiff": lambda deep: tiff(deep, 1 if deep.ndim == 2 else 2, big=True, packed=True),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("bands", [1, 3])
def test_sixteen_bits_are_read_in_their_range_to_the_last_bit(writer, bands):
    write = WRITERS[writer]
    for bits in (8, 10, 12, 14):
        deep = values(2**bits - 1, bands)
        expected = scaled(deep, 0, 2**bits - 1)
        np.testing.assert_array_equal(read(write(deep), f"{bits}-bit"), expected)
        np.testing.assert_array_equal(read(write(deep), f"0,{2**bits - 1}"), expected)
    deep = values(4095, bands)
    np.testing.assert_array_equal(read(write(deep), "100.5,3000"), scaled(deep, 100.5, 3000))
    full = values(65535, bands)
    eight = (full // 257 if bands == 1 else full >> 8).astype(np.uint8)
    eight = np.repeat(eight[..., None], 3, 2) if bands == 1 else eight
    for pixel_range in ("16-bit", "auto"):
        np.testing.assert_array_equal(read(write(full), pixel_range), eight)


def test_what_a_range_cannot_hold_is_refused_and_names_the_flag():
    dark, bright = values(4095), values(5000)
    for data, pixel_range, reason in (
        (png16(dark), "auto", "values to 4095 of 16 bits, in an unknown range"),
        (png16(values(4095, 3)), "auto", "values to 4095 of 16 bits, in an unknown range"),
        (png16(bright), "12-bit", "values to 5000, where its set is 12-bit"),
        (tiff(dark.astype(np.float32)), "auto", "floating-point pixels have no known range"),
        (tiff(dark.astype(np.float32)), "12-bit", "floating-point pixels have no known range"),
        (tiff(dark.astype(np.int16) - 9), "auto", "values from -9 to 4086 have no known range"),
        (tiff(np.full((9, 8), 2**20, np.int32)), "auto", "values from 1048576 to 1048576"),
        (tiff(np.full((9, 8), -3, np.int8)), "auto", "values from -3 to -3 have no known range"),
    ):
        with pytest.raises(BadImage, match=f"^{reason}.*; give --pixel-range LOW,HIGH$"):
            read(data, pixel_range)
    holes = dark.astype(np.float32)
    holes[3, 3] = np.nan
    with pytest.raises(BadImage, match="not finite"):
        read(tiff(holes), "0,4095")


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32", "float32"])
@pytest.mark.parametrize("big", [False, True])
def test_any_kind_of_number_is_read_in_a_range_that_is_given(kind, big):
    if kind == "uint32" and big:
        pytest.skip("Pillow reads no such TIFF")
    low = 0 if kind == "uint32" else -100
    deep = RANDOM.integers(low, 120, (9, 8)).astype(kind)
    data = tiff(deep, big=big)
    np.testing.assert_array_equal(read(data, f"{low},100"), scaled(deep, low, 100))
    upside_down = tiff(deep, photometric=0)
    if kind == "float32" and not big:
        np.testing.assert_array_equal(read(upside_down, "-100,100"), 255 - scaled(deep, -100, 100))


def test_files_that_state_their_range_need_none():
    twelve = values(4095)
    pairs = twelve.reshape(-1, 2).astype(int)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
    )
    data = tiff(twelve, bits=12)
    start = data.index(twelve.astype("<u2").tobytes())
    data = data[:start] + packed.T.astype(np.uint8).tobytes().ljust(144, b"\0")
    np.testing.assert_array_equal(read(data), scaled(twelve))
    header = b"P5\n8 9\n4095\n"
    grey = read(header + twelve.astype(">u2").tobytes())
    assert np.abs(grey.astype(int) - scaled(twelve)).max() <= 1


@pytest.mark.parametrize("bands", [1, 3])
def test_deep_transparency_is_composited_only_if_it_is_known(bands):
    full, dark = values(65535, bands), values(4095, bands)
    assert (read(png16(with_alpha(full, 0)), "16-bit") == 255).all()
    for opaque in (4095, 65535):
        found = read(png16(with_alpha(dark, opaque)), "12-bit")
        np.testing.assert_array_equal(found, scaled(dark))
    unknown = with_alpha(dark, 4095)
    unknown[0, 0, -1] = 7
    with pytest.raises(BadImage, match="a transparency of unknown range"):
        read(png16(unknown), "12-bit")
    clear = chunk(b"tRNS", np.array(dark[3, 3]).astype(">u2").tobytes())
    expected = scaled(dark)
    is_clear = dark == dark[3, 3]
    expected[is_clear if bands == 1 else is_clear.all(2)] = 255
    np.testing.assert_array_equal(read(png16(dark, clear), "12-bit"), expected)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "bands, photometric, extra",
    [
        *((2, 1, None), (2, 1, (0,)), (4, 2, None), (4, 2, (0,)), (5, 2, (0, 0)), (5, 2, (2, 0))),
        *((4, 1, (0, 0, 0)), (5, 1, (0,) * 4), (5, 5, (0,))),
    ],
)
def test_bands_that_are_no_colours_and_no_declared_alpha_are_refused(
    bands, photometric, extra, depth
):
    deep = RANDOM.integers(0, 255, (9, 8, bands)).astype(depth)
    for planes in (False, True):
        with pytest.raises(BadImage, match="(?i)bands.*save it as grey or RGB"):
            read(tiff(deep, photometric, extra, planes=planes))


def test_other_formats_have_to_declare_their_alpha_too():
    clear = Image.new("RGBA", (8, 9), (10, 20, 30, 0))
    targa, codestream = bytearray(saved(clear, "TGA")), saved(clear, "JPEG2000", no_jp2=True)
    assert (read(bytes(targa)) == 255).all() and (read(saved(clear, "JPEG2000")) == 255).all()
    targa[17] &= 0xF0
    for data in (bytes(targa), codestream):
        with pytest.raises(
            BadImage, match="4 bands, of which 3 are colours and none declared alpha"
        ):
            read(data)


def test_a_tiff_whose_strips_end_too_soon_is_bad():
    tall = bytearray(tiff(values(65535)))
    place = tall.index(struct.pack("<HHII", 257, 4, 1, 9)) + 8
    tall[place : place + 4] = struct.pack("<I", 20)
    with pytest.raises(BadImage, match="rows are missing"):
        read(bytes(tall))


def test_declared_alpha_and_three_bands_are_read():
    rgb = RANDOM.integers(0, 255, (9, 8, 3)).astype(np.uint8)
    for photometric, order in ((2, rgb), (1, rgb[..., 0])):
        np.testing.assert_array_equal(
            read(tiff(order, photometric)), rgb if photometric == 2 else rgb[..., :1].repeat(3, 2)
        )
    solid = np.full((9, 8, 1), 255, np.uint8)
    for extra in ((1,), (2,)):
        found = read(tiff(np.concatenate([rgb, solid], 2), 2, extra))
        np.testing.assert_array_equal(found, rgb)
        assert (read(tiff(np.concatenate([rgb, 0 * solid], 2), 2, extra)) == 255).all()
        grey = tiff(np.concatenate([rgb[..., :1], solid], 2), 1, extra)
        if extra == (1,) and PILLOW < 13:  # it knows no grey with premultiplied alpha
            with pytest.raises(BadImage, match="save it as grey or RGB"):
                read(grey)
        else:
            np.testing.assert_array_equal(read(grey), rgb[..., :1].repeat(3, 2))
    planes = tiff(rgb.astype(np.uint16) * 257, 2, planes=True)  # Pillow mixes their bytes up
    with pytest.raises(BadImage, match="save it with interleaved bands"):
        read(planes, "16-bit")
    packed = tiff(rgb.astype(np.uint16) * 257, 2, planes=True, packed=True)
    np.testing.assert_array_equal(read(packed, "16-bit"), rgb)
    with pytest.raises(BadImage, match="values to .* in a TIFF of 16 bits, in an unknown range"):
        read(tiff(rgb.astype(np.uint16), 2, planes=True, packed=True), "12-bit")


def jpeg2000(pixels: np.ndarray, depth: int, **options) -> bytes:
    """A lossless JPEG 2000 of the values, whose bands say that they have ``depth`` bits."""
    own = 8 * pixels.itemsize
    shifted = pixels.astype(int) + 2 ** (own - 1) - 2 ** ((depth & 127) - 1)
    data = bytearray(saved(Image.fromarray(shifted.astype(pixels.dtype)), "JPEG2000", **options))
    bands = data.index(b"\xff\x4f\xff\x51") + 4 + 36
    count = int.from_bytes(data[bands : bands + 2], "big")
    for band in range(count):
        data[bands + 2 + 3 * band] = depth - 1
    return bytes(data)


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_grey_jpeg_2000_states_its_range(bits, options):
    deep = values(2**bits - 1)
    data = jpeg2000(deep, bits, **options)
    for pixel_range in ("auto", "16-bit"):
        np.testing.assert_array_equal(read(data, pixel_range), scaled(deep, 0, 2**bits - 1))
    np.testing.assert_array_equal(read(data, "50,200"), scaled(deep, 50, 200))
    full = values(65535)
    eight = np.repeat((full // 257).astype(np.uint8)[..., None], 3, 2)
    np.testing.assert_array_equal(read(jpeg2000(full, 16, **options)), eight)


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}])
@pytest.mark.parametrize(
    "shape, depth, kind",
    [
        *(((9, 8, 3), depth, f"bands of {depth} bits") for depth in (9, 10, 12, 16)),
        ((9, 8, 2), 12, "bands of 12 bits"),
        ((9, 8, 4), 16, "bands of 16 bits"),
        ((9, 8), 128 + 12, "signed bands of 12 bits"),
        ((9, 8, 3), 128 + 8, "signed bands of 8 bits"),
    ],
)
def test_a_jpeg_2000_whose_white_pillow_shows_black_is_refused(shape, depth, kind, options):
    deep = np.full(shape, 128, np.uint16 if len(shape) == 2 else np.uint8)
    with pytest.raises(
        BadImage,
        match=f"^a JPEG 2000 of {kind}, which is not read right; "
        "save it as a PNG of 16 bits and give --pixel-range LOW,HIGH$",
    ):
        read(jpeg2000(deep, depth, **options))


@pytest.mark.parametrize(
    "data, found",
    [
        (tiff(np.zeros((9, 8), np.float16)), "a TIFF of 16-bit floats"),
        (tiff(np.zeros((9, 8), np.float64), big=True), "a TIFF of 64-bit floats"),
        (tiff(np.zeros((9, 8, 3), np.float32), 2), "a TIFF of 32-bit floats in 3 bands"),
        (tiff(np.zeros((9, 8), np.uint64)), "a TIFF of 64-bit unsigned numbers"),
        (tiff(np.zeros((9, 8), np.int64)), "a TIFF of 64-bit signed numbers"),
        (tiff(np.zeros((9, 8, 3), np.uint32), 2), "a TIFF of 32-bit unsigned numbers in 3 bands"),
        (b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x09\0\0\0\x08\0\x10\0\3" + bytes(99), "a PSD"),
        (b"PF\n8 9\n-1.0\n" + bytes(864), "a PFM"),
        (b"\x76\x2f\x31\x01" + bytes(99), "an OpenEXR"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9 +X 8\n" + bytes(288), "a Radiance HDR"),
        (
            b"".join(
                line.encode().ljust(80)
                for line in (
                    "SIMPLE  = T",
                    "BITPIX  = 64",
                    "NAXIS   = 2",
                    "NAXIS1  = 8",
                    "NAXIS2  = 9",
                    "END",
                )
            ).ljust(2880)
            + bytes(2880),
            "a FITS",
        ),
    ],
)
def test_numbers_that_pillow_does_not_read_are_named_with_what_to_type(data, found):
    expected = "save it as a TIFF of one band of 32-bit floats and give --pixel-range LOW,HIGH, or "
    with pytest.raises(
        BadImage, match=f"^{found}, which is not read; {expected}save it as grey or"
    ):
        read(data)


# --- the range of a set


def deep_set(folder, most=4095, count=40, write=png16, ending="png"):
    for index in range(count):
        (folder / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{index % 2}" / f"{index:02}.{ending}").write_bytes(write(values(most)))
    return folder


def test_the_range_of_a_set_is_decided_said_once_and_the_same_for_each_image(tmp_path, capsys):
    root = deep_set(tmp_path / "train")
    (root / "class0" / "00.png").write_bytes(png16(values(200)))  # a dark one
    images = load(root)
    rule = (
        "train: 16-bit grey, values to 4095: read as 12-bit; --pixel-range LOW,HIGH says otherwise"
    )
    assert capsys.readouterr().err.count(rule) == 1 and images.pixel_range == "12-bit"
    assert np.array(images.image(0)).max() == round(200 * 255 / 4095)
    deep_set(tmp_path / "val", most=1000)
    train, val = load_splits(tmp_path)
    assert train.pixel_range == val.pixel_range == "12-bit"  # not 10-bit
    assert capsys.readouterr().err.count("read as") == 1
    assert load(root, pixel_range="0,1000").pixel_range == "0,1000"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, "a")
    (tmp_path / "list.txt").write_text("".join(f"train/{name}\n" for name in images.names))
    for data in (tmp_path / "a.tar", tmp_path / "list.txt"):
        other = load(data)
        assert "values to 4095: read as 12-bit" in capsys.readouterr().err
        np.testing.assert_array_equal(other.image(0), images.image(0))
    assert load(make_images(tmp_path / "plain", 4)).pixel_range == "auto"
    assert not capsys.readouterr().err
    with pytest.raises(InputError, match="^--pixel-range 4095: expected auto, LOW,HIGH"):
        load(root, pixel_range="4095")


@pytest.mark.parametrize("most, bits", [(255, 8), (256, 10), (16383, 14), (16384, 16)])
def test_the_fewest_bits_that_hold_the_values_are_taken(tmp_path, most, bits):
    assert load(deep_set(tmp_path, most, 4)).pixel_range == f"{bits}-bit"


def test_what_all_images_of_a_set_are_is_one_sentence(tmp_path):
    floats = deep_set(tmp_path / "a", write=lambda v: tiff(v.astype(np.float32)), ending="tif")
    expected = (
        r"00.tif: floating-point pixels have no known range; give --pixel-range LOW,HIGH \(none"
    )
    with pytest.raises(InputError, match=expected):
        load(floats)
    assert np.array(load(floats, pixel_range="0,4095").image(0)).max() == 255
    four = deep_set(tmp_path / "b", write=lambda v: tiff(np.stack([v] * 4, 2), 2), ending="tif")
    with pytest.raises(InputError, match="4 bands, of which 3 are colours and none declared alpha"):
        load(four)


def test_a_run_keeps_its_range_and_its_weights_are_measured_in_it(tmp_path, capsys):
    root = deep_set(tmp_path / "train", count=32)
    config = dataclasses.replace(QUICK, epochs=1, eval_every=-1)
    pretrain(build(), root, config, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    assert '"pixel_range": "12-bit"' in text
    capsys.readouterr()
    pretrain(build(), root, config, tmp_path / "run", resume=True)
    assert "read as" not in capsys.readouterr().err
    changed = dataclasses.replace(config, pixel_range="0,1000")
    with pytest.raises(InputError, match="pixel_range: 12-bit -> 0,1000 changes the images"):
        pretrain(build(), root, changed, tmp_path / "run", resume=True)

    deep_set(tmp_path / "val", most=1000, count=10)
    machine = Machine(workers=0)
    Knn(Measurement(str(tmp_path / "run"), str(tmp_path), machine=machine)).run()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["pixel_range"] == "12-bit"
    ranges = {value: load(tmp_path / "val", pixel_range=value) for value in ("12-bit", "10-bit")}
    rows = [extract(build().student.backbone, images) for images in ranges.values()]
    assert not np.allclose(*rows)  # the range reaches the network, and the cache tells them apart
    by_flag = extract(
        build().student.backbone, tmp_path / "val", pixel_range="12-bit", cache_dir=tmp_path / "c"
    )
    np.testing.assert_array_equal(by_flag, rows[0])
    model = build().student.backbone
    again = extract(model, ranges["10-bit"], cache_dir=tmp_path / "c")
    np.testing.assert_array_equal(again, rows[1])
