"""Images that are given as Python objects: the same pixels, runs and embeddings as from files."""

import io
import multiprocessing
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import QUICK, build, final, stop_at

from cgh_models.config import TrainConfig
from cgh_models.data.image_set import load, load_splits
from cgh_models.data.loader import batches
from cgh_models.data.python_images import as_file
from cgh_models.errors import InputError, Interrupted
from cgh_models.evaluate import cache, extract
from cgh_models.train.loop import pretrain
from cgh_models.view_recipes import RECIPES


@pytest.fixture(scope="module")
def folder(image_root):
    return load(image_root / "train")


@pytest.fixture(scope="module")
def pixels(folder):
    return np.stack([np.array(folder.image(index)) for index in range(len(folder))])


def same(image):
    return image


class Items(torch.utils.data.Dataset):
    """A dataset of a user's: (picture, class, something else)."""

    def __init__(self, pixels, targets, change=same):
        self.pixels, self.targets, self.change = pixels, targets, change

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        picture = self.change(Image.fromarray(self.pixels[index]))
        return picture, self.targets[index], "more"


def to_float(image):
    from torchvision.transforms.functional import to_tensor

    return to_tensor(image)


def huggingface(pixels, labels):
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    names = [f"class{number}" for number in range(4)]
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image()}
        | {"label": datasets.ClassLabel(names=names)}
    )
    pictures = [Image.fromarray(image) for image in pixels]
    rows = {"id": list(map(str, labels)), "image": pictures, "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def forms(folder, pixels):
    labels = folder.labels.tolist()
    pictures = [Image.fromarray(image) for image in pixels]
    return {
        "paths": [folder.path(index) for index in range(len(folder))],
        "files": [Image.open(folder.path(index)) for index in range(len(folder))],
        "pictures": pictures,
        "arrays": list(pixels),
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "dicts": [{"image": picture} for picture in pictures],
        "items": Items(pixels, labels),
        "floats": Items(pixels, labels, to_float),
        "part": torch.utils.data.Subset(Items(pixels, labels), range(len(pixels))),
        "huggingface": huggingface(pixels, labels),
    }


KINDS = ("paths", "files", "pictures", "arrays", "array", "tensor", "dicts", "items")
KINDS += ("floats", "part", "huggingface")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_object_gives_the_views_of_the_folder(folder, pixels, kind, workers):
    config = TrainConfig(batch_size=16, image_size=32, workers=workers)
    given = load(forms(folder, pixels)[kind])
    again = load(forms(folder, pixels)[kind])
    assert len(given) == 64 and given.digest == again.digest != folder.digest
    ours, theirs = (
        list(batches(images, RECIPES["weak_strong"], config, 2, 5, torch.device("cpu")))
        for images in (given, folder)
    )
    for (views, _), (wanted, _) in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(views, wanted, strict=True))


def test_objects_are_sent_to_processes_that_are_not_forked(folder, pixels):
    for form in forms(folder, pixels).values():
        images = load(form)
        sent = pickle.loads(pickle.dumps(images))
        assert np.array(sent.image(5)).tobytes() == pixels[5].tobytes()


def test_what_cannot_be_sent_to_processes_is_one_sentence(pixels, monkeypatch):
    images = load(Items(pixels, [0] * 64, lambda image: image))
    forkserver = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", forkserver)
    config = TrainConfig(batch_size=16, image_size=32, workers=2)
    with pytest.raises(InputError, match="images cannot be sent to other processes .*--workers 0"):
        list(batches(images, RECIPES["weak_strong"], config, 0, 2, torch.device("cpu")))


@pytest.mark.parametrize("kind", ["items", "part", "huggingface"])
def test_labels_are_those_that_an_object_has(folder, pixels, kind):
    given = load(forms(folder, pixels)[kind])
    np.testing.assert_array_equal(given.labels, folder.labels)
    assert given.classes == (["0", "1", "2", "3"] if kind != "huggingface" else folder.classes)
    train, val = load_splits({"test": given, "train": given})
    assert len(train.labels) == len(val.labels) == 64


def test_embeddings_of_an_array_are_those_of_its_files(folder, pixels):
    model = build().student.backbone
    expected = extract(model, folder, workers=0)
    np.testing.assert_array_equal(extract(model, pixels, workers=0), expected)
    np.testing.assert_array_equal(extract(model, pixels[..., 0], workers=0).shape, expected.shape)


def test_another_pixel_is_another_set(pixels):
    changed = pixels.copy()
    changed[40, 3, 3, 1] ^= 1
    assert load(pixels).digest != load(changed).digest != load(pixels[:40]).digest
    pictures = [Image.fromarray(image) for image in (*pixels[:9], changed[40])]
    assert load(pictures).digest != load(pictures[:-1]).digest


def test_a_run_on_an_array_goes_on_to_the_same_bits_and_only_in_python(
    pixels, tmp_path, monkeypatch, in_process, capsys
):
    pretrain(build("ressl"), pixels, QUICK, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(build("ressl"), pixels, QUICK, tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        in_process("resume", tmp_path / "run")
    said = "python:ndarray: these images were given in Python, and only there a run goes on"
    assert said in capsys.readouterr().err
    with pytest.raises(InputError, match="data: 64 -> 64 images, and not the same"):
        pretrain(build("ressl"), pixels ^ 1, QUICK, tmp_path / "run", resume=True)
    pretrain(build("ressl"), pixels.copy(), QUICK, tmp_path / "run", resume=True)
    one, two = final(tmp_path / "whole"), final(tmp_path / "run")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_dataset_of_huggingface_is_trained_on_and_embedded(folder, pixels, tmp_path):
    dataset = huggingface(pixels, folder.labels.tolist())
    method = build("ressl")
    pretrain(method, dataset, QUICK, tmp_path / "run")
    backbone = method.student.backbone
    np.testing.assert_array_equal(
        extract(backbone, dataset, workers=0), extract(backbone, folder, workers=0)
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_is_what_its_file_is(mode, tmp_path):
    if mode in ("I;16", "F"):
        ramp = np.arange(48).reshape(6, 8) * 1000
        picture = Image.fromarray(ramp.astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        ramp = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
        picture = Image.fromarray(ramp, "RGBA").convert(mode if mode != "P" else "RGB")
        picture = picture.quantize(20) if mode == "P" else picture
    ending = "tif" if mode in ("CMYK", "F") else "png"
    picture.save(tmp_path / f"a.{ending}")
    values = "0,48000" if mode == "F" else "auto"
    given, file = (load(data, pixel_range=values) for data in ([picture] * 2, tmp_path))
    assert given.pixel_range == file.pixel_range
    np.testing.assert_array_equal(np.array(given.image(1)), np.array(file.image(0)))


def test_a_picture_is_turned_upright_as_its_file_is():
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = picture.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    opened = Image.open(file)
    opened.load()
    assert load([opened]).image(0).size == (4, 6) and opened.size == (6, 4)


def test_an_item_that_fails_is_a_bad_image(pixels):
    bad = pixels[7].tobytes()

    def change(image):
        return 1 / 0 if image.tobytes() == bad else image

    images = load(Items(pixels, [0] * 64, change))
    assert images.why_bad(7).endswith("division by zero") and not images.why_bad(8)


def noisy(image):
    return Image.fromarray(np.random.default_rng().integers(0, 256, (32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: np.dstack([p[0]] * 2)[None], r"6 bands \(uint8 of shape .*give --in-chans 6"),
        (lambda p: p / 255, "float.*LOW,HIGH"),
        (lambda p: [3, 4], "a list: a int is no picture"),
        (
            lambda p: 3,
            "data: 3: expected a folder, a file or an address; a list of paths, pictures",
        ),
        (
            lambda p: (image for image in p),
            "have no numbers, so that no run could resume; give a l",
        ),
        (lambda p: {"train": p, "val": p}, "data: holds the splits train, val; give one of them"),
        (lambda p: [], "data: an empty list; give images"),
        (lambda p: np.zeros(()), "of no dimensions; expected a folder"),
        (lambda p: torch.zeros(()), "of no dimensions; expected a folder"),
        (lambda p: torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), "a Tensor: .*BFloat16; expected"),
        (
            lambda p: Items(p, [0] * 64, lambda i: to_float(i) - 0.5),
            "float tensor from -.*normalizes it",
        ),
        (lambda p: Items(p, [0] * 64, noisy), "gives another image when .*take random transforms"),
    ],
)
def test_what_cannot_be_taken_is_one_sentence(pixels, make, message):
    with pytest.raises(InputError, match=message):
        load(make(pixels))


def test_a_dataset_of_huggingface_without_images_names_its_columns():
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    texts = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(InputError, match=r"has no column of images, only text \(Value\); cast one"):
        load(texts)
    with pytest.raises(InputError, match="its images have no numbers, so that no run could resume"):
        load(texts.to_iterable_dataset())


def test_the_bytes_of_a_picture_are_its_pixels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert as_file(pixels).read() == b"P6 4 2 255\n" + pixels.tobytes()


@pytest.mark.parametrize("channels, given", [(1, "0,0.001"), (5, "0,0.001"), (3, "0,0.001")])
def test_float_tensors_keep_their_precision_and_the_range_that_is_given(channels, given):
    values = torch.rand(4, channels, 8, 8) / 1000
    images = load(values, in_chans=channels, pixel_range=given)
    pixels = np.array(images.image(1))
    step = 1 / 255 if channels == 3 else 1e-6
    found = pixels / (255 if channels == 3 else 1)
    wanted = values[1].permute(1, 2, 0).numpy() * 1000
    np.testing.assert_allclose(found, wanted, atol=step)
    assert len(np.unique(pixels)) > 50


def test_deep_arrays_are_read_as_rgb_as_deep_files_are(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 8, 8, 3), np.uint16)
    found = np.array(load(deep).image(1))
    np.testing.assert_array_equal(found, np.rint(deep[1] / 257))
    grey = np.array(load(deep[..., 0]).image(1))
    np.testing.assert_array_equal(grey, np.dstack([np.rint(deep[1, ..., 0] / 257)] * 3))
    twelve = np.array(load(deep // 16).image(1))
    np.testing.assert_allclose(twelve, deep[1] // 16 * (255 / 4095), atol=0.51)


class KeptOpen(Items):
    """Keeps a file open, whose place threads share."""

    def __init__(self, pixels, path):
        super().__init__(pixels, [0] * len(pixels))
        pixels.tofile(path)
        self.file = open(path, "rb")  # noqa: SIM115

    def __getitem__(self, index):
        size = self.pixels[0].nbytes
        self.file.seek(index * size)
        time.sleep(1e-4)
        return np.frombuffer(self.file.read(size), np.uint8).reshape(self.pixels[0].shape)


def test_a_dataset_that_is_not_safe_for_threads_gives_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), np.uint8)
    images = load(KeptOpen(pixels, tmp_path / "raw"))
    images.cache_pixels(1)
    np.testing.assert_array_equal(images.pixels.numpy(), pixels)


def test_a_frame_of_an_animation_is_that_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), (number * 60, 0, 0)) for number in range(4)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    opened = Image.open(tmp_path / "a.webp")
    opened.seek(2)
    assert load([opened]).image(0).getpixel((0, 0)) == (120, 0, 0)


def test_load_splits_leaves_the_sets_that_it_was_given_as_they_are(folder, pixels):
    train = load(Items(pixels, folder.labels))
    val = load(Items(pixels[20:], folder.labels[20:]))
    val.classes = ["3", "2", "1", "0"]
    before = val.labels.copy()
    _, found = load_splits({"train": train, "val": val})
    np.testing.assert_array_equal(val.labels, before)
    assert found.classes == train.classes and found.labels.tolist() == (3 - before).tolist()


def test_classes_that_are_none_or_ragged_are_no_labels(pixels):
    for label in (None, -1):
        images = load(huggingface(pixels, [0, 1, label, 3] * 16))
        assert images.labels is None and images.classes == []
    assert load(Items(pixels, [[0]] * 63 + [[0, 1]])).labels is None


def test_a_dictionary_of_huggingface_names_its_splits(pixels):
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    both = datasets.DatasetDict({"train": huggingface(pixels, [0] * 64)})
    with pytest.raises(InputError, match="data: holds the splits train; give one of them"):
        load(both)


@pytest.mark.parametrize("kind", ["pictures", "items", "huggingface"])
def test_kept_embeddings_are_of_all_images(folder, pixels, tmp_path, kind):
    """The digest of a list is of 64 of its images."""
    many = np.concatenate([pixels, pixels])
    changed = many.copy()
    changed[1] = 255 - changed[1]
    pairs = []
    for content in (many, many, changed):
        labels = folder.labels.tolist() * 2
        given = {"items": Items(content, labels), "huggingface": huggingface(content, labels)}
        images = load(given.get(kind, list(map(Image.fromarray, content))))
        pairs.append((images.digest, cache.key(build().student.backbone, images, np.arange(128))))
    assert pairs[0][0] == pairs[1][0] == pairs[2][0]
    assert pairs[0][1] != pairs[2][1] and (pairs[0][1] == pairs[1][1] or kind == "huggingface")


def test_a_run_on_a_list_of_paths_says_how_it_goes_on(folder):
    source = load([folder.path(0), folder.path(1)]).source
    with pytest.raises(InputError, match="python:paths: these images were given in Python"):
        load(source)
