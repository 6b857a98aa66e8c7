"""Batches for evaluation: the images asked for, in order, and what happens to bad ones."""

import numpy as np
import pytest
import torch
from conftest import make_images
from PIL import Image
from torchvision.transforms import Compose
from torchvision.transforms.functional import to_tensor

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.data.eval_loader import eval_batches, eval_transform
from cgh_models.data.image_set import ImageSet, load
from cgh_models.data.loader import ViewDataset
from cgh_models.errors import InputError
from cgh_models.evaluate.splits import subset
from cgh_models.view_recipes import RECIPES


@pytest.fixture
def images(tmp_path):
    """600 images of which four cannot be read."""
    make_images(tmp_path / "set", 600)
    found = load(tmp_path / "set")
    for index in (3, 4, 5, 70):
        found.path(index).write_bytes(b"no image")
    return found


def read(images, indices, **how):
    made = list(eval_batches(images, np.array(indices), to_tensor, 2, **({"workers": 0} | how)))
    assert all(len(batch) == len(kept) for batch, kept in made)
    return torch.cat([batch for batch, _ in made]), np.concatenate([kept for _, kept in made])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_the_order_asked_for(images, workers):
    batch, kept = read(images, [9, 2, 599, 9, 0], workers=workers)
    assert kept.tolist() == [9, 2, 599, 9, 0]
    assert torch.equal(batch, torch.stack([to_tensor(images.image(i)) for i in kept]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_an_error_that_names_it(images, workers):
    with pytest.raises(InputError, match=r"/class0/00012.png: not readable .*; mend or remove it$"):
        read(images, [1, 2, 3], workers=workers)
    assert not images.bad


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_and_named_once(images, workers, capsys):
    batch, kept = read(images, [1, 3, 4, 5, 2, 70, 9], workers=workers, on_bad="skip")
    assert kept.tolist() == [1, 2, 9] and len(batch) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.endswith("; left out") for line in lines[:3])
    assert "class0/00012.png: not readable as an image" in lines[0]
    assert lines[3].endswith("set: 4 images in all cannot be read and are left out")
    assert sorted(images.bad) == [3, 4, 5, 70]
    read(images, [1, 3, 4], workers=workers, on_bad="skip")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("on_bad", ["skip", "substitute"])
@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_percent_of_bad_images_is_an_error(images, workers, on_bad):
    for index in (400, 401):
        images.path(index).write_bytes(b"no image")
    read(images, range(400), workers=workers, on_bad=on_bad)  # 4 of 600
    images.path(402).write_bytes(b"no image")
    with pytest.raises(InputError, match="7 of 600 images cannot be read, more than 1 %"):
        read(images, range(400, 403), workers=workers, on_bad=on_bad)


def test_a_bad_image_is_substituted_as_in_training(images):
    batch, kept = read(images, [1, 3], on_bad="substitute")
    assert kept.tolist() == [1, 3] and sorted(images.bad) == [3]
    assert torch.equal(batch[1], to_tensor(images.load_or_substitute(3)[0]))


@pytest.mark.parametrize(
    "side, crop_pct, at_once", [(32, 1.0, True), (32, 0.875, False), (48, 1.0, False)]
)
def test_images_in_memory_are_transformed_to_the_same_bits(
    tmp_path, monkeypatch, side, crop_pct, at_once
):
    make_images(tmp_path / "set", 40)
    images = load(tmp_path / "set")
    images.cache_pixels(1)
    images = subset(images, np.arange(39, 3, -2))  # in an order of its own
    described = {"input_size": (3, side, side), "crop_pct": crop_pct}
    transform = eval_transform(create("test_resnet", described))
    asked = np.array([9, 2, 17, 9, 0])
    expected = torch.stack([transform(images.image(index)) for index in asked])
    if at_once:
        monkeypatch.setattr(ImageSet, "image", None)
    made = list(eval_batches(images, asked, transform, 2, 0))
    assert torch.equal(torch.cat([batch for batch, _ in made]), expected)
    assert np.concatenate([kept for _, kept in made]).tolist() == asked.tolist()


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (3, 2), (50, 1)])
def test_images_of_any_shape_make_batches_in_little_memory(tmp_path, size):
    """A strip would grow to 256 x 7,680,000 pixels when its shorter side becomes 256."""
    strip = Image.new("RGB", size, (10, 20, 30))
    strip.paste((200, 100, 50), (size[0] // 2 - 1, size[1] // 2 - 1, size[0], size[1]))
    (tmp_path / "set").mkdir()
    strip.save(tmp_path / "set" / "a.png")
    images = load(tmp_path / "set")
    transform = eval_transform(create("test_resnet", {"input_size": (3, 64, 64)}))
    ((batch, _),) = eval_batches(images, np.array([0]), transform, 2, 0)
    assert batch.shape == (1, 3, 64, 64)
    if max(size) <= 50:
        timms = Compose(transform.transforms[1:])
        assert torch.equal(batch[0], timms(images.image(0)))
    recipe = RECIPES["multi_crop"]
    for views in ("fast", "exact"):
        config = TrainConfig(image_size=32, batch_size=2, views=views, workers=0, device="cpu")
        made = ViewDataset(images, recipe, config)[0, 0]
        assert len(made.tensors) == len(recipe)
