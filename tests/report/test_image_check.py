"""What `cgh check` finds in a folder where every fault was put, and what it keeps of it."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import make_images
from PIL import Image

from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.recipes import train_config
from cgh_models.report.image_check import check, write_files
from cgh_models.report.image_facts import read_rows


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def root(tmp_path):
    """train/ and val/ of smooth noise, each image with structure of its own, and faults."""
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "set" / ("val" if number >= 16 else "train") / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:02d}.png")
    return tmp_path / "set"


def checked(data, workers=0, **options):
    return check(load(data, splits=True), train_config("cifar"), workers, **options)


def test_each_fault_is_found_and_named(root):
    train = root / "train" / "class0"
    (train / "empty.jpg").touch()
    (train / "text.png").write_text("no image")
    os.mkfifo(train / "pipe.jpg")
    whole = (train / "00.png").read_bytes()
    (train / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 40), (9, 200, 9)).save(train / "flat.jpg")
    Image.open(train / "00.png").resize((90, 30)).rotate(180).save(train / "at_3.png")
    Image.open(train / "02.png").resize((91, 30)).save(train / "over_3.png")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(train / "deep.png")
    Image.open(train / "04.png").convert("1").save(train / "bits.bmp")
    shutil.copy(train / "00.png", train.parent / "class1" / "copy.png")
    shutil.copy(root / "val" / "class0" / "16.png", train / "leak.png")
    Image.open(root / "val" / "class0" / "18.png").resize((60, 50)).save(train / "near.webp")
    (train / "notes.txt").touch()

    found = checked(root).found
    assert {Path(name).name for name in found["unreadable"]["files"]} == {
        "empty.jpg",
        "text.png",
        "pipe.jpg",
        "cut.png",
    }
    assert found["images"] == 24 + 12 and found["left_out"] == {".txt": 1}
    assert found["splits"] == {"train": 28, "val": 8}
    assert found["constant"]["files"] == ["train/class0/flat.jpg"]
    assert found["long"]["files"] == ["train/class0/over_3.png"]
    assert found["tiny"]["files"] == ["train/class0/at_3.png", "train/class0/over_3.png"]
    assert found["smaller_than_views"] == 2  # of 32 pixels
    assert found["formats"]["PNG"] == 29 and found["formats"]["WEBP"] == 1
    assert found["modes"] | {"RGB": 0} == {"RGB": 0, "I;16": 1, "1": 1}
    assert found["bits"] == {"8": 30, "16": 1, "1": 1}
    same, near = found["duplicates"], found["near_duplicates"]
    assert same["groups"] == [
        ["train/class0/00.png", "train/class1/copy.png"],
        ["train/class0/leak.png", "val/class0/16.png"],
    ]
    assert (same["spare"], same["across_splits"], same["across_classes"]) == (2, 1, 1)
    assert ["train/class0/near.webp", "val/class0/18.png"] in near["groups"]
    assert near["across_splits"] == 1


def test_what_is_kept_to_train_on_has_no_fault_and_nothing_of_another_split(root, tmp_path):
    train = root / "train" / "class0"
    (train / "empty.jpg").touch()
    Image.new("RGB", (40, 40)).save(train / "black.png")
    shutil.copy(train / "00.png", train / "a copy, with a comma.png")
    shutil.copy(root / "val" / "class0" / "16.png", train / "leak.png")
    result = checked(root)
    write_files(tmp_path, result, load(root, splits=True))
    kept = load(tmp_path / "keep.csv")
    assert len(kept) == 16 and kept.classes == ["class0", "class1"]
    names = {Path(name).name for name in kept.names}
    assert not names & {"black.png", "empty.jpg", "leak.png", "a copy, with a comma.png"}
    assert all("/train/" in name for name in kept.names)
    again = checked(tmp_path / "keep.csv").found
    assert again["duplicates"]["count"] == again["unreadable"]["count"] == 0


def test_mean_and_deviation_are_those_of_all_pixels(root):
    found = checked(root).found
    images = load(root, splits=True)
    pixels = np.stack([np.array(images.image(index)) for index in range(len(images))]) / 255
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["std"], pixels.std((0, 1, 2)), atol=1e-4)


def test_an_image_is_read_again_only_if_its_name_size_or_time_of_change_is_new(root):
    before = checked(root).found
    path = root / "train" / "class0" / "00.png"
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # unseen: same size, and the time is put back
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checked(root).found == before
    shutil.copy(path.parent / "02.png", path)
    assert checked(root).found["duplicates"]["groups"] == [
        ["train/class0/00.png", "train/class0/02.png"]
    ]


def test_a_damaged_cache_is_ignored(root, tmp_path, capsys):
    before = checked(root).found
    (kept,) = (tmp_path / "user").rglob("*.rows")
    content = bytearray(kept.read_bytes())
    content[100] ^= 1
    for damaged in (content, content[:50], b""):
        kept.write_bytes(damaged)
        assert checked(root).found == before
        assert "is damaged" in capsys.readouterr().err


def test_an_unreadable_image_is_tried_again(root):
    path = root / "train" / "class0" / "gone.png"
    path.symlink_to("01.png")
    assert checked(root).found["unreadable"]["count"] == 1
    shutil.copy(root / "val" / "class0" / "16.png", path.parent / "01.png")
    assert checked(root).found["unreadable"]["count"] == 0


def test_processes_and_archives_change_no_finding(root, tmp_path, monkeypatch):
    make_images(root / "train", 140)
    (root / "train" / "class0" / "text.png").write_text("no image")
    alone = checked(root).found
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert checked(root, workers=2).found == alone
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(root, "set")
    packed = checked(tmp_path / "set.tar")
    counts = ("images", "bytes", "formats", "sizes", "mean", "std")
    assert {name: packed.found[name] for name in counts} == {name: alone[name] for name in counts}
    assert packed.found["splits"] == {"set/train": 157, "set/val": 8}
    assert packed.found["near_duplicates"]["count"] == alone["near_duplicates"]["count"]


def test_near_duplicates_can_be_found_by_embeddings(root, weights):
    train = root / "train" / "class0"
    Image.open(train / "00.png").save(train / "again.bmp")
    found = checked(root, weights=str(weights)).found["near_duplicates"]
    assert ["train/class0/00.png", "train/class0/again.bmp"] in [
        group[:2] for group in found["groups"]
    ]
    assert "cosine of at least 0.98" in found["rule"]


def test_images_of_which_none_can_be_read_are_refused(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(InputError, match=r"a.jpg: not readable .*none of 2 images can be used"):
        checked(tmp_path)


def test_what_is_kept_of_a_list_goes_by_all_its_images(tmp_path):
    """The digest of a list is of 64 of its images."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(130)]
    before, _, _ = read_rows(load(pictures), 0, tmp_path)
    pictures[1] = Image.new("RGB", (16, 16), (9, 9, 9))
    after, _, _ = read_rows(load(pictures), 0, tmp_path)
    assert (before["sha256"] != after["sha256"]).nonzero()[0].tolist() == [1]


def test_deep_arrays_are_checked_as_rgb(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 16, 16, 3), np.uint16)
    rows, _, bad = read_rows(load(deep), 0, None)
    assert not bad and rows["kind"][0] == b"npy 3-band 8"
