"""A large folder is listed once, by one scandir a folder, and its index is kept beside the run."""

import dataclasses
import os
import shutil
import time
from collections import Counter

import pytest
import torch
from conftest import make_images
from small_runs import QUICK, build, final, stop_at

from cgh_models.data import kept_index
from cgh_models.data import walk as walking
from cgh_models.data.image_set import load
from cgh_models.data.walk import walk
from cgh_models.errors import InputError, Interrupted
from cgh_models.train.loop import pretrain


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """16 images in four folders that settled long ago, all of which count as a large set."""
    root = make_images(tmp_path / "photos", 16)
    (root / "class0" / "notes.txt").write_text("x")
    (root / "class1" / "odd\udcff.png").write_bytes((root / "class1" / "00001.png").read_bytes())
    settle(root)
    monkeypatch.setattr(kept_index, "FEWEST", 1)
    monkeypatch.setattr(kept_index, "_IMAGES_A_FOLDER", 1)
    return root


def settle(root):
    for folder in (root, *filter(os.path.isdir, root.iterdir())):
        os.utime(folder, (time.time() - 60, time.time() - 60))


@pytest.fixture
def calls(monkeypatch):
    """How often the system is asked, by function; DirEntry.stat is not among them."""
    counts = Counter()
    for name in ("scandir", "stat", "listdir", "lstat"):
        monkeypatch.setattr(os, name, counted(counts, name, getattr(os, name)))
    return counts


def counted(counts, name, real):
    def call(*args, **kwargs):
        counts[name] += 1
        return real(*args, **kwargs)

    return call


def facts(images):
    labels = None if images.labels is None else images.labels.tolist()
    return (list(images.names), labels, images.classes, images.digest, images.skipped)


def test_a_walk_lists_each_folder_once_and_asks_each_file_once(photos, calls, monkeypatch):
    monkeypatch.setattr(walking, "_size", counted(calls, "size", walking._size))
    calls.clear()
    found = walk(photos, False)
    of_folders = {name: calls[name] for name in ("scandir", "stat", "lstat")}
    assert len(found.names) == 17 and calls["size"] == 17 and calls["scandir"] == 5
    assert found.skipped == {".txt": 1} and not calls["listdir"]
    assert list(found.sizes) == [(photos / name).stat().st_size for name in found.names]
    assert set(found.folders) == {"", *(f"class{n}/" for n in range(4))}
    for number in range(100):
        shutil.copy(photos / "class0" / "00000.png", photos / "class3" / f"{number}.png")
    calls.clear()
    assert len(walk(photos, False).names) == 117 and calls["size"] == 117
    assert {name: calls[name] for name in of_folders} == of_folders


def test_names_are_in_the_order_of_their_paths_where_folders_and_files_mix(tmp_path):
    names = [
        "a/z.png",
        "a.png",
        "a-b/c.png",
        "a-b.png",
        "a/b/c.png",
        "a b/d.png",
        "B.png",
        "é/x.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert walk(tmp_path, False).names == sorted(names)


def test_a_kept_index_gives_the_same_set_without_listing_it(photos, tmp_path, calls):
    before = load(photos)
    kept_index.keep(tmp_path / "index", before)
    calls.clear()
    again = load(photos, kept=tmp_path / "index")
    assert facts(again) == facts(before) and again.walked.digest == before.digest
    # One looks for archives in the folder; 5 folders and, here, each file are asked by `os.stat`.
    assert calls["scandir"] == 1 and not calls["listdir"]
    calls.clear()
    load(photos)
    assert calls["scandir"] == 6


def test_a_kept_index_asks_a_thousand_files_and_no_more(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(kept_index, "FEWEST", 1)
    for number in range(3000):
        (tmp_path / "in" / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"c{number % 2}" / f"{number}.jpg").touch()
    for folder in ("in", "in/c0", "in/c1"):
        os.utime(tmp_path / folder, (1, 1))
    images = load(tmp_path / "in", pixel_range="8-bit")
    kept_index.keep(tmp_path / "index", images)
    calls.clear()
    assert load(tmp_path / "in", pixel_range="8-bit", kept=tmp_path / "index").walked.digest
    assert calls["stat"] < 1000 + 3 + 20 and calls["scandir"] == 1


def added(root):
    shutil.copy(root / "class0" / "00000.png", root / "class2" / "new.png")


def removed(root):
    (root / "class3" / "00003.png").unlink()


def renamed(root):
    (root / "class3" / "00003.png").rename(root / "class3" / "0.png")


def rewritten(root):
    (root / "class3" / "00003.png").write_bytes(b"another size")


def folder_added(root):
    shutil.copytree(root / "class0", root / "class9")


def folder_replaced(root):
    (root / "class3").rename(root.parent / "old")
    shutil.copytree(root.parent / "old", root / "class3")
    added(root)


@pytest.mark.parametrize(
    "change", [added, removed, renamed, rewritten, folder_added, folder_replaced]
)
def test_a_changed_folder_is_listed_again(photos, tmp_path, change):
    before = load(photos)
    kept_index.keep(tmp_path / "index", before)
    change(photos)
    again = load(photos, kept=tmp_path / "index")
    assert facts(again) == facts(load(photos)) and again.digest != before.digest
    assert not again.walked.digest


def test_other_endings_links_and_places_are_listed_again(photos, tmp_path):
    kept_index.keep(tmp_path / "index", load(photos))
    kept = {"kept": tmp_path / "index"}
    assert load(photos, **kept).walked.digest
    assert not load(photos, True, **kept).walked.digest
    assert not load(photos, in_chans=4, pixel_range="8-bit", **kept).walked.digest
    shutil.copytree(photos, tmp_path / "moved")
    moved = load(tmp_path / "moved", **kept)
    assert not moved.walked.digest and moved.digest == load(photos).digest


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "headless", "folder"])
def test_a_damaged_index_is_said_and_written_anew(photos, tmp_path, capsys, damage):
    path = tmp_path / "index"
    before = load(photos)
    kept_index.keep(path, before)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        damaged = {"cut": whole[:-5], "flipped": bytes(flipped), "empty": b"", "text": b"{}\n[1]\n"}
        path.write_bytes(damaged.get(damage, b"x\n" + whole.split(b"\n", 2)[2]))
    images = load(photos, kept=path)
    said = capsys.readouterr().err.splitlines()
    assert facts(images) == facts(before) and len(said) == 1
    assert said[0].startswith(f"{path}: damaged (") and "written anew" in said[0]
    if damage != "folder":
        kept_index.keep(path, images)
        assert path.read_bytes() == whole


def test_small_unsettled_and_scattered_sets_keep_no_index(photos, tmp_path, monkeypatch):
    path = tmp_path / "index"
    os.utime(photos / "class2")  # changed just now
    kept_index.keep(path, load(photos))
    assert not path.exists()
    settle(photos)
    with monkeypatch.context() as patch:
        patch.setattr(kept_index, "_IMAGES_A_FOLDER", 10)
        kept_index.keep(path, load(photos))
    monkeypatch.setattr(kept_index, "FEWEST", 18)
    kept_index.keep(path, load(photos))
    assert not path.exists()
    (tmp_path / "list.txt").write_text(f"{photos}/class0/00000.png\n")
    monkeypatch.setattr(kept_index, "FEWEST", 1)
    kept_index.keep(path, load(tmp_path / "list.txt"))
    assert not path.exists()


def test_a_run_goes_on_with_the_index_it_kept_until_the_folder_is_changed(
    photos, tmp_path, monkeypatch
):
    config, run = dataclasses.replace(QUICK, batch_size=8), tmp_path / "run"
    pretrain(build("cgh", config), photos, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            pretrain(build("cgh", config), photos, config, run)
    assert (run / kept_index.FILE).exists()
    with monkeypatch.context() as patch:
        patch.setattr(kept_index, "walk", None)  # would be called to list the files
        pretrain(build("cgh", config), photos, config, run, resume=True)
    whole, parts = final(tmp_path / "whole"), final(run)
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]
    removed(photos)
    with pytest.raises(InputError, match="data: 17 -> 16 images, and not the same files"):
        pretrain(build("cgh", config), photos, config, run, resume=True)


def test_an_index_without_room_is_a_warning(photos, tmp_path, capsys):
    kept_index.keep(tmp_path / "none" / "index", load(photos))
    assert "the next start lists all files again" in capsys.readouterr().err
