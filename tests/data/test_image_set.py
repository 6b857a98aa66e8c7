"""Image sets: what is found, in which order, and what happens to bad files."""

import dataclasses
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from conftest import make_images
from PIL import Image

from cgh_models.config import TrainConfig
from cgh_models.data.decode import BadFile
from cgh_models.data.image_set import load, load_splits
from cgh_models.data.loader import batches, order
from cgh_models.errors import InputError
from cgh_models.view_recipes import RECIPES

RECIPE = RECIPES["weak_strong"]
CPU = torch.device("cpu")


def test_class_folders_give_labels_and_a_flat_folder_none(image_root, tmp_path):
    images = load(image_root / "train")
    assert images.classes == ["class0", "class1", "class2", "class3"] and len(images) == 64
    assert all(
        images.classes[label] == name.split("/")[0]
        for name, label in zip(images.names, images.labels, strict=True)
    )
    for name in images.names[:5]:
        shutil.copy(image_root / "train" / name, tmp_path)
    assert load(tmp_path).labels is None


def test_a_text_file_names_images_relative_to_itself(image_root, tmp_path):
    names = load(image_root / "train").names[:7]
    (image_root / "list.txt").write_text("\n".join(f"train/{n}" for n in names) + "\n\n")
    images = load(image_root / "list.txt")
    assert images.names == sorted(f"train/{n}" for n in names) and images.labels is None
    assert images.image(0).size == (32, 32)
    (image_root / "bad.txt").write_text("train/none.png\n")
    with pytest.raises(
        InputError, match=r"1 of its 1 lines are not files, the first is 'train/none.png'"
    ):
        load(image_root / "bad.txt")


def test_what_is_left_out_is_counted(image_root, tmp_path):
    shutil.copytree(image_root / "train", tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "clip.MOV").write_text("x")
    outside = make_images(tmp_path / "out", 1) / "class0" / "00000.png"
    (tmp_path / "in" / "link.png").symlink_to(outside)
    images = load(tmp_path / "in")
    assert len(images) == 64 and images.skipped[".txt"] == 1 and images.skipped[".mov"] == 1
    assert any("link" in kind for kind in images.skipped)
    assert len(load(tmp_path / "in", follow_links=True)) == 65


def test_links_to_folders_and_to_nothing_are_counted_or_found_bad(image_root, tmp_path):
    make_images(tmp_path / "in", 4)
    (tmp_path / "in" / "more").symlink_to(image_root / "train")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nothing.png")
    assert len(load(tmp_path / "in")) == 4 and load(tmp_path / "in").skipped.total() == 2
    images = load(tmp_path / "in", follow_links=True)
    assert len(images) == 4 + 64 + 1
    image, bad_files = images.load_or_substitute(images.names.index("gone.png"))
    assert image.size == (32, 32) and "cannot be opened" in bad_files[0].reason


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: None, "there is no such folder or list"),
        (lambda p: p.mkdir(), r"no images \(nothing found\)"),
        (lambda p: (p.mkdir(), (p / "a.txt").write_text("x")), r"no images \(1 x .txt found\)"),
    ],
)
def test_nothing_to_read_is_one_sentence(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(InputError, match=message):
        load(tmp_path / "x")


def test_the_parent_of_the_splits_is_not_taken_for_two_classes(image_root):
    with pytest.raises(
        InputError, match=r"holds the splits train, val; give one of them: .*/train"
    ):
        load(image_root)


def test_splits_share_one_numbering_of_the_classes(tmp_path):
    make_images(tmp_path / "train", 8)
    make_images(tmp_path / "val", 8)
    shutil.rmtree(tmp_path / "val" / "class1")
    train, val = load_splits(tmp_path)
    assert set(val.labels) == {0, 2, 3} and train.classes[3] == "class3"
    (tmp_path / "val" / "class2").rename(tmp_path / "val" / "other")
    with pytest.raises(InputError, match="val/ has the class 'other' that train/ has not"):
        load_splits(tmp_path)
    with pytest.raises(InputError, match="has no train/ folder"):
        load_splits(tmp_path / "val")


def test_the_digest_tells_sets_apart_and_does_not_mind_a_move(image_root, tmp_path):
    shutil.copytree(image_root / "train", tmp_path / "moved")
    assert load(tmp_path / "moved").digest == load(image_root / "train").digest
    next((tmp_path / "moved").rglob("*.png")).unlink()
    assert load(tmp_path / "moved").digest != load(image_root / "train").digest


def test_an_epoch_is_a_permutation_and_another_one_next_time():
    first, repeated, second, other = (
        order(0, 0, 1000),
        order(0, 0, 1000),
        order(0, 1, 1000),
        order(1, 0, 1000),
    )
    assert sorted(first) == list(range(1000)) and (first == repeated).all()
    assert (first != second).mean() > 0.9 and (first != other).mean() > 0.9


def collect(images, config, start=0, stop=6):
    return [(v, i.tolist()) for v, i in batches(images, RECIPE, config, start, stop, CPU)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_do_not_depend_on_where_a_run_starts(image_root, in_memory):
    images = load(image_root / "train")
    config = TrainConfig(
        image_size=32, batch_size=20, workers=0
    )  # 3 steps an epoch, 4 images left out
    if in_memory:
        images.cache_pixels(1)
        assert images.pixels.shape == (64, 32, 32, 3)
    whole, tail = collect(images, config), collect(images, config, start=2)
    for (views, indices), (views_again, indices_again) in zip(whole[2:], tail, strict=True):
        assert indices == indices_again
        assert all(torch.equal(a, b) for a, b in zip(views, views_again, strict=True))
    assert len({i for _, part in whole[:3] for i in part}) == 60
    assert whole[0][0][0].shape == (20, 3, 32, 32) and len(whole[0][0]) == 2


def test_workers_do_not_change_the_views(image_root):
    images = load(image_root / "train")
    runs = [collect(images, TrainConfig(image_size=32, batch_size=20, workers=n)) for n in (0, 2)]
    for (views, indices), (views_again, indices_again) in zip(*runs, strict=True):
        assert indices == indices_again
        assert all(torch.equal(a, b) for a, b in zip(views, views_again, strict=True))


def test_views_that_do_not_fit_in_memory_are_a_sentence(image_root, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("cgh_models.data.loader.fast_views", full)
    config = TrainConfig(image_size=32, batch_size=16, workers=0)
    with pytest.raises(
        InputError,
        match="views of 16 images do not fit in the memory of cpu; give a smaller --batch-",
    ):
        collect(load(image_root / "train"), config)


@pytest.mark.parametrize(
    "sizes, held", [((20, 32, 45, 64), list), ((80,), torch.Tensor)], ids=["many", "one, large"]
)
def test_images_of_these_sizes_are_kept_and_give_the_same_views_as_streamed(tmp_path, sizes, held):
    """Large ones are cut by workers, in memory too: whole, their matrices would be as large."""
    for number, size in enumerate(sizes):
        make_images(tmp_path / f"c{number}", 12 // len(sizes), classes=1, size=size)
    kept, streamed = load(tmp_path), load(tmp_path)
    kept.cache_pixels(1)
    assert isinstance(kept.pixels, held)
    config = TrainConfig(image_size=32, batch_size=6, workers=0)
    for (views, _), (views_again, _) in zip(
        collect(kept, config), collect(streamed, config), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(views, views_again, strict=True))


def test_a_set_larger_than_the_budget_is_streamed(image_root):
    images = load(image_root / "train")
    images.cache_pixels(64 * 32 * 32 * 3 / 2**30 * 0.9)
    assert images.pixels is None


def test_no_image_is_decoded_beyond_the_budget(tmp_path, monkeypatch):
    """64 headers are read beforehand; the images between them may be larger."""
    make_images(tmp_path / "a", 64 * 3, size=2)
    images, decoded = load(tmp_path), []
    large = set(range(len(images))) - set(np.linspace(0, len(images) - 1, 64).astype(int).tolist())
    Image.new("RGB", (2000, 2000)).save(tmp_path / "large.png")
    for index in large:
        shutil.copy(tmp_path / "large.png", images.path(index))
    real = type(images).image

    def image(self, index, min_side=0.0):
        decoded.append(index)
        return real(self, index)

    monkeypatch.setattr(type(images), "image", image)
    images.cache_pixels(2.5 * 2000 * 2000 * 3 / 2**30)
    assert images.pixels is None and len(large & set(decoded)) <= 2


def test_headers_are_read_side_by_side(tmp_path, monkeypatch):
    """One after the other, they would make a folder of a network as slow as a single reader."""
    images, threads = load(make_images(tmp_path, 80)), []
    real = type(images).decoded_bytes

    def decoded_bytes(self, index):
        threads.append(threading.current_thread())
        return real(self, index)

    monkeypatch.setattr(type(images), "decoded_bytes", decoded_bytes)
    images.cache_pixels(1)
    assert threads.count(threading.main_thread()) == 64 and len(threads) == 64 + 80
    assert [image.tolist() for image in images.pixels] == [
        np.array(load(tmp_path).image(index)).tolist() for index in range(80)
    ]


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measured on Linux")
@pytest.mark.parametrize("sizes", [[1000], [1000, 1010]])
def test_pixels_are_never_in_memory_twice(tmp_path, sizes):
    for number in range(60):
        side = sizes[number % len(sizes)]
        Image.new("RGB", (side, 1000), (number, 1, 2)).save(tmp_path / f"{number:02d}.bmp")

    def kib(name):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(name))

    images = load(tmp_path)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is what is used now
    before = kib("VmRSS")
    images.cache_pixels(1)
    total = sum(p.numel() for p in images.pixels) / 1024
    assert kib("VmHWM") - before < 1.5 * total  # a few are ahead
    assert isinstance(images.pixels, torch.Tensor) is (len(sizes) == 1)
    assert [int(p[0, 0, 0]) for p in images.pixels] == list(range(60))


@pytest.fixture
def spoiled(tmp_path):
    """150 images, one of them bad: below 1 %."""
    make_images(tmp_path / "set", 150)
    (tmp_path / "set" / "class1" / "00077.png").write_bytes(b"\x89PNG no")
    return tmp_path


@pytest.mark.parametrize("gib, workers", [(1, 0), (0, 0), (0, 2)])
def test_a_bad_file_is_replaced_by_the_same_other_image_and_named_once(spoiled, gib, workers):
    images = load(spoiled / "set")
    images.bad_file = spoiled / f"bad_files_{gib}_{workers}.txt"
    images.cache_pixels(gib)
    bad = images.names.index("class1/00077.png")
    config = TrainConfig(image_size=32, batch_size=50, workers=workers)
    seen = collect(images, config, stop=9)
    assert sum(i.count(bad) for _, i in seen) == 3
    assert images.bad_file.read_text().count("class1/00077.png\tnot readable as an image") == 1
    reopened = load(spoiled / "set")
    replaced = np.array(reopened.load_or_substitute(bad)[0])
    assert (replaced == np.array(load(spoiled / "set").load_or_substitute(bad)[0])).all()
    if gib:
        assert (replaced == images.pixels[bad].numpy()).all()
    images.record_bad_files([BadFile(bad, "again")])
    assert len(images.bad_file.read_text().splitlines()) == 1


@pytest.mark.parametrize("gib", [1, 0])
def test_more_than_one_percent_of_bad_files_stops_the_run(spoiled, gib):
    for name in ("00010", "00020"):
        next((spoiled / "set").rglob(f"{name}.png")).write_bytes(b"no")
    images = load(spoiled / "set")

    def use():
        images.cache_pixels(gib)
        collect(images, TrainConfig(image_size=32, batch_size=50, workers=0), stop=3)

    with pytest.raises(InputError, match=r"\d of 150 images cannot be read, more than 1 %"):
        use()


@pytest.mark.parametrize("name", ["n" * 5000, "a\0b", "list.txt/photos"])
def test_a_path_that_cannot_be_is_one_sentence(tmp_path, name):
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(InputError, match="there is no such folder or list"):
        load(tmp_path / name)


def test_names_with_control_characters_are_escaped_in_messages(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "a\x1b[31m\nb")
    assert "\x1b" not in str(caught.value) and "\\x1b" in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes that are not text")
def test_a_name_that_is_not_text_can_be_read(image_root, tmp_path):
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    shutil.copy(next((image_root / "train").rglob("*.png")), raw)
    images = load(tmp_path)
    assert len(images) == 1 and images.image(0).size == (32, 32)


def test_no_crop_is_enlarged_because_a_photo_was_decoded_small(tmp_path):
    """Crops of 0.2 of the area and a ratio of 4 / 3: 32 pixels need a shorter side of 83."""
    (tmp_path / "c").mkdir()
    for index, side in enumerate((160, 170, 400, 700)):
        Image.new("RGB", (2 * side, side), (index, 60, 90)).save(tmp_path / "c" / f"{index}.jpg")
    images, asked = load(tmp_path), []
    real = type(images).image

    def image(self, index, min_side=0.0):
        asked.append((real(self, index, min_side).size, min_side))
        return real(self, index, min_side)

    images.image = image.__get__(images)
    config = TrainConfig(batch_size=4, image_size=32, workers=0, views="fast")
    list(batches(images, RECIPES["weak_strong"], config, 0, 1, torch.device("cpu")))
    assert sorted(size[1] for size, _ in asked) == [85, 88, 100, 160]
    assert {round(min_side, 2) for _, min_side in asked} == {round(32 * (4 / 3 / 0.2) ** 0.5, 2)}
    asked.clear()
    list(
        batches(
            images,
            RECIPES["weak_strong"],
            dataclasses.replace(config, views="exact"),
            0,
            1,
            torch.device("cpu"),
        )
    )
    assert sorted(size[1] for size, _ in asked) == [160, 170, 400, 700]
