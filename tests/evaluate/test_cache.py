"""Cached embeddings: read without a forward, checked, and recomputed after a change."""

import contextlib
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import make_images

from cgh_models.backbone import create
from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.evaluate import cache, extract
from cgh_models.evaluate.embedder import extract_labelled
from cgh_models.evaluate.protocols import EvalSettings


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create("test_resnet", {"input_size": (3, 32, 32)})


@contextlib.contextmanager
def forwards(model):
    """A list that grows by one at every forward of images; one of zeros only tells the width."""
    seen = []
    handle = model.register_forward_hook(lambda _, x, y: seen.extend([1] if x[0].any() else []))
    yield seen
    handle.remove()


def test_kept_embeddings_are_read_without_a_forward(image_root, model, tmp_path):
    with forwards(model) as seen:
        first = extract(model, image_root / "val", workers=0, cache_dir=tmp_path / "new" / "folder")
        assert len(seen) == 1
        repeated = extract(
            model, load(image_root / "val"), batch_size=3, cache_dir=tmp_path / "new" / "folder"
        )
    assert len(seen) == 1 and repeated.dtype == np.float32 and np.array_equal(first, repeated)
    assert np.array_equal(first, extract(model, image_root / "val", workers=0))
    repeated[0] = 0  # it is the caller's own
    names = sorted(path.suffix for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [".json", ".safetensors"]


def test_nothing_is_kept_unless_a_folder_is_named(image_root, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with forwards(model) as seen:
        for _ in range(2):
            extract(model, image_root / "val", workers=0)
    assert len(seen) == 2 and not list(tmp_path.iterdir())


def nudge(model, images, root):
    next(model.parameters()).data.view(-1)[0] += 1e-6


def nudge_buffer(model, images, root):
    next(b for b in model.buffers() if b.is_floating_point()).view(-1)[0] += 1e-3


def other_activation(model, images, root):
    model.act1 = torch.nn.SiLU()


def other_preprocessing(model, images, root):
    model.pretrained_cfg["mean"] = (0.4, 0.5, 0.6001)


def other_order(model, images, root):
    images[:] = images[::-1].copy()


def fewer_images(model, images, root):
    images.resize(7, refcheck=False)


def renamed_image(model, images, root):
    (root / "class0" / "00000.png").rename(root / "class0" / "x.png")


def rewritten_image(model, images, root):
    path = root / "class0" / "00000.png"
    path.write_bytes(path.read_bytes())  # as long, at another time


def larger_image(model, images, root):
    with open(root / "class0" / "00000.png", "ab") as file:
        file.write(b"\0")


def test_a_vits_pooling_is_part_of_the_key(image_root):
    """timm keeps it in a plain attribute: neither a tensor nor printed."""
    models = [create("test_vit", global_pool=pool, fc_norm=False) for pool in ("token", "avg")]
    models[1].load_state_dict(models[0].state_dict())
    images = load(image_root / "val")
    assert len({cache.key(model, images, np.arange(3)) for model in models}) == 2


CHANGES = [
    nudge,
    nudge_buffer,
    other_activation,
    other_preprocessing,
    other_order,
    fewer_images,
    renamed_image,
]


@pytest.mark.parametrize(
    "change", [*CHANGES, larger_image, rewritten_image], ids=lambda change: change.__name__
)
def test_embeddings_are_made_again_after(change, image_root, model, tmp_path):
    root, indices = tmp_path / "val", np.arange(20)
    shutil.copytree(image_root / "val", root)
    extract(model, root, indices=indices, workers=0, cache_dir=tmp_path / "kept")
    change(model, indices, root)
    with forwards(model) as seen:
        found = extract(model, root, indices=indices, workers=0, cache_dir=tmp_path / "kept")
        assert len(seen) == 1 and np.array_equal(
            found, extract(model, root, indices=indices, workers=0)
        )
        extract(model, root, indices=indices, workers=0, cache_dir=tmp_path / "kept")
    assert len(seen) == 2


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 4  # a number that is still finite
    path.write_bytes(content)


DAMAGE = {
    "a bit": flip,
    "its end": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "all of it": lambda path: path.write_bytes(b""),
    "its sha256": lambda path: path.with_suffix(".json").unlink(),
    "what holds the sha256": lambda path: path.with_suffix(".json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_embeddings_are_noticed_and_made_again(damage, image_root, model, tmp_path):
    first = extract(model, image_root / "val", workers=0, cache_dir=tmp_path)
    DAMAGE[damage](next(tmp_path.glob("*.safetensors")))
    with forwards(model) as seen:
        with pytest.warns(
            UserWarning, match=r"safetensors: cached embeddings are damaged and are computed again"
        ):
            repeated = extract(model, image_root / "val", workers=0, cache_dir=tmp_path)
        assert len(seen) == 1 and np.array_equal(first, repeated)
        assert np.array_equal(
            first, extract(model, image_root / "val", workers=0, cache_dir=tmp_path)
        )
    assert len(seen) == 1


def test_embeddings_that_cannot_be_kept_are_returned_all_the_same(image_root, model, tmp_path):
    extract(model, image_root / "val", workers=0, cache_dir=tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.unlink()
    path.mkdir()  # nothing can be written over a folder
    with (
        pytest.warns(UserWarning, match="the embeddings are not cached: .*cannot be written"),
        pytest.warns(UserWarning, match="damaged"),
    ):
        found = extract(model, image_root / "val", workers=0, cache_dir=tmp_path)
    assert np.array_equal(found, extract(model, image_root / "val", workers=0))


def test_a_cache_that_is_no_folder_is_one_sentence_before_any_work(image_root, model, tmp_path):
    (tmp_path / "file").write_text("")
    with (
        forwards(model) as seen,
        pytest.raises(InputError, match="file: cannot keep embeddings .* a folder$"),
    ):
        extract(model, image_root / "val", workers=0, cache_dir=tmp_path / "file")
    assert not seen


def test_a_bad_image_keeps_nothing(model, tmp_path):
    make_images(tmp_path / "images", 4)
    (tmp_path / "images" / "class2" / "00002.png").write_bytes(b"no")
    with pytest.raises(InputError, match="class2/00002.png"):
        extract(model, tmp_path / "images", workers=0, cache_dir=tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("how", ["mended", "still bad"])
def test_an_image_that_could_not_be_opened_is_tried_again(how, model, tmp_path, capsys):
    """Neither chmod nor a disk that answers again changes the file's time."""
    make_images(tmp_path / "images", 120)
    images = load(tmp_path / "images")
    path = images.path(5)
    content, changed = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(changed, changed))
    settings = EvalSettings(workers=0, cache_dir=tmp_path / "kept")
    first, _ = extract_labelled(model, images, settings)
    if how == "mended":
        path.write_bytes(content)
        os.utime(path, ns=(changed, changed))
    capsys.readouterr()
    with forwards(model) as seen:
        rows, labels = extract_labelled(model, load(tmp_path / "images"), settings)
    if how == "mended":
        assert len(rows) == len(labels) == 120 and seen
        assert np.array_equal(rows, extract(model, tmp_path / "images", workers=0))
        assert "left out" not in capsys.readouterr().err
    else:
        assert np.array_equal(rows, first) and len(rows) == 119 and not seen
        assert "of images of which 1 could not be read; left out" in capsys.readouterr().err
