"""Batches for evaluation: the images asked for, in order, and what happens to bad ones."""

import numpy as np
import pytest
import torch
from conftest import make_images
from torchvision.transforms.functional import to_tensor

from cgh_models.data.eval_loader import eval_batches
from cgh_models.data.image_set import load
from cgh_models.errors import InputError


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
