"""Feature maps measured pixel by pixel, on images that the tests make."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from conftest import PACKAGED
from masked_images import make_masked_images
from PIL import Image

from cgh_models.backbone import create
from cgh_models.data.masks import load_masked
from cgh_models.errors import InputError
from cgh_models.evaluate.dense import class_counts, ious, mean_iou, measure_maps
from cgh_models.evaluate.protocols import DenseConfig, EvalSettings
from cgh_models.hub.registry import create_model

SETTINGS = EvalSettings(workers=0, device="cpu", batch_size=16)
CONFIG = DenseConfig(taps=2, image_size=96, cells=4000)
PROTOCOLS = {"segment": "linear", "knn-dense": "knn"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_masked_images(tmp_path_factory.mktemp("masked") / "set", train=48, val=16)


def splits(root):
    return load_masked(str(root), "train"), load_masked(str(root), "val")


@pytest.fixture
def copy(root, tmp_path):
    """The set as the test's own, to be changed."""
    return shutil.copytree(root, tmp_path / "set")


def change(root, how):
    """Changes the ids of all masks."""
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(how(np.array(Image.open(path)))).save(path)


@pytest.mark.parametrize("command", PROTOCOLS)
def test_trained_maps_beat_random_ones_and_these_beat_one_class_everywhere(
    root, command, in_process
):
    torch.manual_seed(0)
    model = create_model("resnet18_cifar_w16", pretrained=False)
    random = measure_maps(PROTOCOLS[command], model, *splits(root), CONFIG, SETTINGS)
    words = [
        "evaluate",
        command,
        PACKAGED,
        "--data",
        root,
        "--taps",
        2,
        "--image-size",
        96,
        "--cells",
        4000,
    ]
    found = json.loads(in_process(*words, "--workers", 0, "--device", "cpu").out)
    assert found["metric"] == {"segment": "linear_segment", "knn-dense": "knn_dense"}[command]
    masks = np.stack([np.array(Image.open(path)) for path in sorted(root.glob("val/masks/*.png"))])
    one_class = 100 * (masks == 0).sum() / (masks != 255).sum() / 3
    assert found["value"] > random.value + 3 > one_class + 15
    assert (found["map"], found["val"], found["cells"]) == ([384, 12, 12], 16, 48 * (4000 // 48))
    trained = measure_maps(
        PROTOCOLS[command], create_model(PACKAGED), *splits(root), CONFIG, SETTINGS
    )
    assert (
        trained.to_json()["value"] == found["value"] and trained.parameters["iou"] == found["iou"]
    )
    assert found["value"] == pytest.approx(np.mean([*found["iou"].values()]), abs=2e-3)


def test_what_classes_are_called_changes_no_iou(root, copy):
    numbers = np.full(256, 255, np.uint8)
    numbers[:3] = (7, 0, 254)
    change(copy, lambda ids: numbers[ids])
    model = create_model(PACKAGED)
    plain, renamed = (
        measure_maps("knn", model, *splits(of), CONFIG, SETTINGS) for of in (root, copy)
    )
    expected = {"7": "0", "0": "1", "254": "2"}
    assert renamed.parameters["iou"] == {n: plain.parameters["iou"][o] for n, o in expected.items()}
    assert renamed.value == pytest.approx(plain.value)


def test_pixels_without_a_class_count_nowhere(root, copy):
    def left(ids):
        ids[:, 48:] = 255
        return ids

    change(copy, left)
    model = create_model(PACKAGED)
    train, val = splits(copy)
    found = measure_maps("knn", model, train, val, DenseConfig(taps=2, image_size=96), SETTINGS)
    assert found.parameters["cells"] == 48 * 72
    change(copy, lambda ids: np.full_like(ids, 255))
    with pytest.raises(
        InputError, match=r"train.masks: has the classes \[\]; expected two or more"
    ):
        measure_maps("knn", model, train, val, CONFIG, SETTINGS)
    with pytest.raises(InputError, match="this mask and all others ignore every pixel"):
        measure_maps("knn", model, splits(root)[0], val, CONFIG, SETTINGS)


def test_a_sample_of_cells_is_bounded_and_drawn_by_the_seed(root):
    model = create_model(PACKAGED)
    config = DenseConfig(image_size=96, cells=500)
    found = measure_maps("knn", model, *splits(root), config, SETTINGS)
    assert found.parameters["cells"] == 48 * (500 // 48)
    assert found == measure_maps("knn", model, *splits(root), config, SETTINGS)
    other = measure_maps(
        "knn", model, *splits(root), config, EvalSettings(workers=0, device="cpu", seed=1)
    )
    assert found.value != other.value
    few = measure_maps("knn", model, *splits(root), DenseConfig(image_size=96, cells=20), SETTINGS)
    assert few.parameters["cells"] == 20


def test_iou_is_that_of_sets_of_pixels():
    rng = np.random.default_rng(0)
    expected, found = rng.integers(0, 4, 900), rng.integers(0, 5, 900)
    table = np.zeros((6, 6), int)
    np.add.at(table, (expected, found), 1)
    values = []
    for number in range(4):
        of_class, of_found = (
            set(np.flatnonzero(expected == number)),
            set(np.flatnonzero(found == number)),
        )
        values.append(len(of_class & of_found) / len(of_class | of_found))
    np.testing.assert_allclose(ious(table)[:4], values)
    assert mean_iou(table) == pytest.approx(np.mean(values))  # 4 and 5 do not occur
    assert mean_iou(np.diag([3, 0, 5])) == 1 and mean_iou(np.zeros((2, 2))) == 0


@pytest.mark.parametrize("shape", [(12, 12), (30, 41), (3, 5)])
def test_the_pixels_of_a_mask_are_counted_once_in_the_cell_they_lie_in(shape):
    mask = np.random.default_rng(0).choice(np.array([0, 3, 254, 255], np.uint8), shape)
    counts = class_counts(mask, 4, 6)
    expected = np.zeros((4, 6, 255), int)
    for y, x in np.ndindex(*shape):
        if mask[y, x] != 255:
            expected[int(y / shape[0] * 4 + 1e-9), int(x / shape[1] * 6 + 1e-9), mask[y, x]] += 1
    assert np.array_equal(counts.reshape(4, 6, 255), expected)


def test_masks_are_read_as_ids_whatever_holds_one_band(root, copy):
    ids = np.array(Image.open(root / "val" / "masks" / "000.png"))
    path = copy / "val" / "masks" / "000.png"
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel())
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    for image in (palette, Image.fromarray(ids.astype(np.uint16))):
        image.save(path)
        assert np.array_equal(splits(copy)[1].mask(0, 96, 96), ids)
    Image.fromarray(ids == 1).save(path)
    assert np.array_equal(splits(copy)[1].mask(0, 96, 96), ids == 1)


def mask(root):
    return root / "train" / "masks" / "007.png"


def saved(image):
    return lambda root: image.save(mask(root))


def turned(root):
    """A half turn, which no size shows."""
    path = root / "train" / "images" / "007.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


def bomb(root):
    Image.new("1", (20_000, 20_000)).save(mask(root))


def black_and_white(ids):
    return (ids > 0).astype(np.uint8) * 255


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda root: shutil.rmtree(root / "val"), "has no val/ folder"),
        (lambda root: shutil.rmtree(root / "val/masks"), "val: has no masks/ folder; expected t"),
        (lambda root: mask(root).unlink(), "007.png: has no mask; expected .*masks.007"),
        (lambda root: mask(root).write_text("x"), "007.png: no mask .*; mend or remove it"),
        (saved(Image.new("RGB", (96, 96))), "007.png: bands RGB, .*; expected one band of cl"),
        (saved(Image.new("I;16", (96, 96), 300)), "007.png: bands I, uint16 from 300 to 300; "),
        (saved(Image.new("L", (96, 95))), "the mask is 96 x 95, its image 96 x 96; give a mask"),
        (turned, "007.png: is turned by its EXIF orientation 3, .*; save the image turned"),
        (bomb, "007.png: no mask .*exceeds limit.*; mend or remove it"),
        (lambda root: change(root, black_and_white), r"has the classes \[0\]; expected two"),
    ],
)
def test_a_set_that_cannot_be_measured_is_refused_in_a_sentence(copy, damage, expected):
    damage(copy)
    with pytest.raises(InputError, match=expected):
        measure_maps("knn", create_model(PACKAGED), *splits(copy), DenseConfig(), SETTINGS)


def test_what_is_chosen_on_is_counted_in_images_and_in_cells(root):
    config = DenseConfig(cells=480)
    found = measure_maps("linear", create_model(PACKAGED), *splits(root), config, SETTINGS)
    choice = found.parameters["choice"]
    assert found.parameters["cells"] == 480
    assert (choice["held_out_images"], choice["held_out_cells"]) == (4, 40)  # a tenth of 48 images


def test_more_neighbours_than_cells_and_cells_of_one_image_are_refused(root, copy):
    model, config = create_model(PACKAGED), DenseConfig(cells=48)
    with pytest.raises(InputError, match="--k 49: expected 1 to 48, the number of cells of train/"):
        measure_maps("knn", model, *splits(root), config, SETTINGS, k=49)
    change(copy, lambda ids: (np.indices(ids.shape).sum(0) % 2).astype(np.uint8))
    with pytest.raises(InputError, match="--cells: .* of one image, of which none can be held out"):
        measure_maps("linear", model, *splits(copy), DenseConfig(cells=1), SETTINGS)


def test_maps_that_a_network_does_not_have_are_refused(root):
    with pytest.raises(InputError, match="--taps 9: expected 1 to 5"):
        measure_maps("linear", create_model(PACKAGED), *splits(root), DenseConfig(taps=9), SETTINGS)
    with pytest.raises(InputError, match="cells=0: at least 1 is needed"):
        DenseConfig(cells=0)


# --- bands


def write_uint16(path, values):
    tifffile.imwrite(path, (16 * values).astype(np.uint16), photometric="minisblack")


BANDS = {
    "uint8": (".npy", lambda path, values: np.save(path, values.astype(np.uint8)), "auto"),
    "uint16": (".tif", write_uint16, "auto"),
    "float32": (".npy", lambda path, values: np.save(path, values.astype("f4")), "0,255"),
}


def make_bands(root, kind, told=True):
    """Images of four bands, the last of which tells the class of each pixel, if any does."""
    ending, write, _ = BANDS[kind]
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            ids = (rng.random((3, 3)) < 0.5).astype(np.uint8).repeat(16, 0).repeat(16, 1)
            values = rng.normal(90, 20, (48, 48, 4))
            values[..., 3] += 100 * ids * told
            write(root / split / "images" / f"{number:02}{ending}", values.clip(0, 255))
            Image.fromarray(ids).save(root / split / "masks" / f"{number:02}.png")
    return root


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
@pytest.mark.parametrize("kind", BANDS)
def test_the_fourth_band_tells_the_class_of_a_pixel(tmp_path, kind, protocol):
    torch.manual_seed(0)
    images = {"input_size": (4, 48, 48), "mean": (0.4,) * 4, "std": (0.2,) * 4}
    model = create("resnet18_cifar_w16", images)
    values = []
    for told in (True, False):
        root = make_bands(tmp_path / str(told), kind, told)
        how = {"pixel_range": BANDS[kind][2], "in_chans": 4}
        of = [load_masked(str(root), split, **how) for split in ("train", "val")]
        values.append(measure_maps(protocol, model, *of, DenseConfig(image_size=96), SETTINGS))
    assert values[0].value > 75 > 60 > values[1].value
    with pytest.raises(InputError, match="images of 4 channels, for a model of 3; give weights"):
        measure_maps(protocol, create_model(PACKAGED), *of, DenseConfig(), SETTINGS)


@pytest.mark.parametrize("command", PROTOCOLS)
def test_the_commands_measure_maps_of_weights_of_four_bands(tmp_path, in_process, command):
    root = make_bands(tmp_path / "set", "uint16")
    words = "--in-chans 4 --recipe cifar --arch resnet18_cifar_w16 --epochs 1 --batch-size 8"
    words += " --device cpu --eval-every -1 --set hidden_width=16 --set projection_width=8"
    in_process("pretrain", "--data", root / "train" / "images", "--out", "run", *words.split())
    measure = ("evaluate", command, "run", "--image-size", 96, "--workers", 0, "--data")
    found = json.loads(in_process(*measure, root).out)
    assert found["value"] > 65 and found["val"] == 8 and found["pixel_range"] == "12-bit"
    arrays = make_bands(tmp_path / "arrays", "uint8")
    assert json.loads(in_process(*measure, arrays, "--reader", "numpy:load").out)["value"] > 65
