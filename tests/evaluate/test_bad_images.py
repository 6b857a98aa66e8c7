"""A few unreadable images among many are left out of a measurement, named, and not counted."""

import numpy as np
import pytest
import torch
from conftest import make_images

from cgh_models.backbone import create
from cgh_models.data.image_set import ImageSet, load_splits
from cgh_models.errors import InputError
from cgh_models.evaluate import embedder, extract
from cgh_models.evaluate.embedder import extract_labelled, readable_images
from cgh_models.evaluate.finetune import finetune
from cgh_models.evaluate.linear import sgd
from cgh_models.evaluate.measurement import knn, remeasure
from cgh_models.evaluate.probes import probe
from cgh_models.evaluate.protocols import EvalSettings, FinetuneConfig, LinearConfig

SETTINGS = EvalSettings(workers=0)
LINEAR = LinearConfig(lr=1.0, epochs=1, train_batch_size=64)
FINETUNE = FinetuneConfig(epochs=1, train_batch_size=64)
PROTOCOLS = {
    "knn": lambda *given: knn(*given, SETTINGS),
    "sgd": lambda *given: sgd(*given, LINEAR, SETTINGS),
    "ridge": lambda *given: probe("ridge", *given, SETTINGS),
    "finetune": lambda *given: finetune(*given, FINETUNE, SETTINGS),
}
COUNTED = {"knn": "memory", "sgd": "train", "ridge": "train", "finetune": "labelled"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create("test_resnet", {"input_size": (3, 32, 32)})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    for split, seed in (("train", 0), ("val", 1)):
        make_images(root / split, 300, seed=seed)
    return root


@pytest.fixture
def root(images, tmp_path):
    """A copy by links, whose images can be damaged."""
    for path in images.rglob("*.png"):
        link = tmp_path / path.relative_to(images)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    return tmp_path


def damage(folder, count):
    """Makes the first images of a class unreadable; returns their paths."""
    paths = sorted((folder / "class2").iterdir())[:count]
    for path in paths:
        path.unlink()
        path.write_bytes(b"no image")
    return paths


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_of_300_are_left_out_named_once_and_not_counted(protocol, root, model, capsys):
    damaged = damage(root / "val", 2) + damage(root / "train", 1)
    found = PROTOCOLS[protocol](model, *load_splits(root))
    assert found.n == 298 and found.parameters[COUNTED[protocol]] == 299
    said = capsys.readouterr().err
    for path in damaged:
        assert said.count(f"{path}: not readable as an image") == 1
    assert said.count("left out") == 3
    for path in damaged:
        path.unlink()
    without = PROTOCOLS[protocol](model, *load_splits(root))
    assert without.n == 298
    if protocol in ("knn", "ridge"):  # where the order of training images changes nothing
        assert without.value == found.value


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_than_one_percent_is_one_sentence(protocol, split, root, model):
    damage(root / split, 4)
    with pytest.raises(InputError, match=r"class2/\d+.png: not readable.*more than 1 %"):
        PROTOCOLS[protocol](model, *load_splits(root))


def test_a_set_that_does_not_fit_in_memory_is_read_once_to_find_them(root, capsys, monkeypatch):
    (path,) = damage(root / "train", 1)
    monkeypatch.setattr(ImageSet, "cache_pixels", lambda *_: None)
    train, _ = load_splits(root)
    good = readable_images(train, 0)
    assert len(good) == 299 and str(path.relative_to(root / "train")) not in good.names
    assert capsys.readouterr().err.count(f"{path}: ") == 1


def test_their_substitutes_in_memory_are_not_taken_for_them(root, model):
    damage(root / "train", 1)
    train, _ = load_splits(root)
    good = readable_images(train, 0)
    rows, labels = extract_labelled(model, train, SETTINGS)
    expected, _ = extract_labelled(model, good, SETTINGS)
    assert np.array_equal(rows, expected) and np.array_equal(labels, good.labels)


def test_the_images_that_could_be_read_are_cached_and_no_others(
    root, model, tmp_path_factory, capsys
):
    (path,) = damage(root / "val", 1)
    cache = tmp_path_factory.mktemp("cache")
    settings = EvalSettings(workers=0, cache_dir=cache)
    _, val = load_splits(root)
    rows, labels = extract_labelled(model, val, settings)
    assert len(rows) == len(labels) == 299 and len(list(cache.iterdir())) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "eval_batches", None)  # nothing is read any more
        _, val = load_splits(root)
        again, labels_again = extract_labelled(model, val, settings)
    assert np.array_equal(rows, again) and np.array_equal(labels, labels_again)
    assert "of images of which 1 could not be read; left out" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"{path}: .*mend or remove it"):
        extract(model, root / "val", workers=0, cache_dir=cache)


def test_a_number_of_fewer_images_is_measured_again_on_as_many(root, model):
    damage(root / "val", 2)
    published = knn(model, *load_splits(root), SETTINGS).to_json() | {"data": "Stripes"}
    assert remeasure("knn", published, model, *load_splits(root), SETTINGS) == published["value"]
    (root / "val" / "class2" / "00006.png").unlink()
    (root / "val" / "class2" / "00002.png").unlink()
    assert remeasure("knn", published, model, *load_splits(root), SETTINGS) == published["value"]
    damage(root / "val", 1)
    with pytest.raises(InputError, match="300 images in train/ and 297 in val/, expected 300 and"):
        remeasure("knn", published, model, *load_splits(root), SETTINGS)
