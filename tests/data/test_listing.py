"""Only what the user means is an image: hidden and system files, splits, links, odd names."""

import json
import os
import shutil
import tarfile

import pytest
from conftest import make_images

from cgh_models.config import TrainConfig
from cgh_models.data.image_set import load, load_splits
from cgh_models.errors import InputError
from cgh_models.train.arguments import check_batch, open_images

HIDDEN = [
    ".ipynb_checkpoints/a-checkpoint.png",
    "class1/.ipynb_checkpoints/b-checkpoint.png",
    "class1/._00001.png",
    ".thumbnails/normal/c.png",
    "__MACOSX/class0/._00000.png",
    "class0/@eaDir/00000.png/SYNOPHOTO_THUMB_M.png",
    "#recycle/d.png",
    ".@__thumb/e.png",
    ".Trash-1000/files/f.png",
    "lost+found/g.png",
    "System Volume Information/h.png",
    "$RECYCLE.BIN/S-1-5/i.png",
    "$Recycle.Bin/k.png",
    "class2/.AppleDouble/00002.png",
]


@pytest.fixture
def photos(tmp_path):
    """12 images of four classes, and copies of one wherever systems leave them."""
    root = make_images(tmp_path / "photos", 12)
    for name in HIDDEN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "class0" / "00000.png", root / name)
    return root


def as_folder(root):
    return root


def as_list(root):
    names = sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.png") if path.is_file()
    )
    (root / "list.txt").write_text("".join(f"./{name}\n" for name in names))
    return root / "list.txt"


def as_tar(root):
    with tarfile.open(root.parent / "photos.tar", "w") as tar:
        tar.add(root, ".")
    return root.parent / "photos.tar"


def as_tar_of_one_folder(root):
    with tarfile.open(root.parent / "photos.tar", "w") as tar:
        tar.add(root, ".photos")  # hidden itself, but it is the user's
    return root.parent / "photos.tar"


def as_tars(root):
    for folder in root.iterdir():
        if folder.is_dir():
            with tarfile.open(root.parent / f"{folder.name}.tar", "w") as tar:
                tar.add(folder, folder.name)
            shutil.rmtree(folder)
    for tar in root.parent.glob("class*.tar"):
        shutil.move(tar, root)
    shutil.copytree(root.parent, root / "@eaDir", ignore=shutil.ignore_patterns("photos"))
    (root / "._class0.tar").write_bytes(b"\0\5\x16\7")
    return root


@pytest.mark.parametrize("kind", [as_folder, as_list, as_tar, as_tar_of_one_folder, as_tars])
def test_hidden_and_system_files_are_left_out_and_counted(photos, kind):
    images = load(kind(photos))
    assert len(images) == 12
    assert images.labels is None or [name.removesuffix(".tar") for name in images.classes] == [
        *("class0", "class1", "class2", "class3")
    ]
    kinds = {key: count for key, count in images.skipped.items() if key.startswith("hidden or sys")}
    if kind is as_folder:  # folders are not entered
        entered = {"class0", "class1", "class2"}
        tops = {name.split("/")[0] for name in HIDDEN} - entered
        assert sum(kinds.values()) == len(tops) + sum(n.split("/")[0] in entered for n in HIDDEN)
    elif kind is not as_tars:
        assert sum(kinds.values()) == len(HIDDEN)
    assert any("@eaDir" in key for key in kinds)


def test_the_root_itself_may_be_hidden(tmp_path):
    root = make_images(tmp_path / ".cache" / "__MACOSX", 8)
    assert len(load(root)) == 8
    names = [str(path) for path in sorted(root.rglob("*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    assert load(tmp_path / "list.txt").names == names


def test_what_is_left_out_is_said_in_one_line(photos, capfd):
    load(photos).report_skipped()
    (line,) = capfd.readouterr().err.splitlines()
    assert "left out" in line and "2 x hidden or system folder .ipynb_checkpoints/" in line


def test_a_folder_of_hidden_images_alone_says_so(tmp_path):
    make_images(tmp_path / "photos" / ".thumbnails", 2)
    with pytest.raises(InputError, match=r"no images \(1 x hidden or system folder .thumbnails/"):
        load(tmp_path / "photos")


def test_a_link_to_a_folder_around_it_is_not_followed(tmp_path):
    make_images(tmp_path / "photos", 4)
    (tmp_path / "photos" / "class0" / "up").symlink_to(tmp_path / "photos")
    images = load(tmp_path / "photos", follow_links=True)
    assert len(images) == 4 and images.skipped["link to a folder around it"] == 1


# --- splits


@pytest.mark.parametrize(
    "names",
    [
        ["train", "valid", "test"],
        ["training", "testing"],
        ["Train", "Validation"],
        ["train2017", "val2017"],
        ["training_set", "test_set"],
        ["train", "eval", "extra"],
    ],
)
@pytest.mark.parametrize("wrapped", ["", "data"])
def test_a_root_of_splits_is_refused_with_what_to_type(tmp_path, names, wrapped):
    for name in names:
        make_images(tmp_path / "root" / wrapped / name, 4)
    splits = [name for name in sorted(names) if name != "extra"]
    place = tmp_path / "root" / wrapped
    first = next(name for name in splits if name.lower().startswith("train"))
    message = f"holds the splits {', '.join(splits)}; give one of them: {place / first}$"
    with pytest.raises(InputError, match=message):
        load(tmp_path / "root")
    assert len(load(place / first)) == 4
    shutil.rmtree(place / first)
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for name in names:
            tar.add(make_images(place / name, 4), f"./{name}")
    part = f"{tmp_path}/whole.tar:{first}"
    with pytest.raises(InputError, match=f"; give one of them: {part}$"):
        load(tmp_path / "whole.tar")
    assert len(load(part)) == 4 and load(part).source == part


def test_one_split_alone_is_refused_like_train(tmp_path):
    make_images(tmp_path / "testing", 4)
    with pytest.raises(InputError, match=f"holds the splits testing; .*: {tmp_path}/testing$"):
        load(tmp_path)


def test_tars_that_are_splits_are_refused(tmp_path):
    for name in ("train", "valid"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(make_images(tmp_path / "images" / name, 8), ".")
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(InputError, match=f"train.tar, valid.tar; give .*: {tmp_path}/train.tar"):
        load(tmp_path)
    train, val = load_splits(tmp_path)
    assert len(train) == len(val) == 8 and val.root.name == "valid.tar"


@pytest.mark.parametrize("names", [("train", "val"), ("TRAIN", "Valid")])
def test_a_tar_of_one_split_is_that_split(tmp_path, names):
    for name in names:
        suffix = ".TAR" if name.isupper() else ".tar"
        with tarfile.open(tmp_path / f"{name}{suffix}", "w") as tar:
            tar.add(make_images(tmp_path / "images" / name, 8), name)  # tar cf train.tar train
    shutil.rmtree(tmp_path / "images")
    train, val = load_splits(tmp_path)
    assert len(train) == len(val) == 8 and train.classes == val.classes and len(val.classes) == 4


def test_classes_that_are_called_like_splits_are_classes(tmp_path):
    for name in ("train", "bus", "tram"):
        make_images(tmp_path / "vehicles" / name, 2, classes=1)
    assert load(tmp_path / "vehicles").classes == ["bus", "train", "tram"]
    for name in ("test1", "test2"):
        make_images(tmp_path / "rounds" / name, 2, classes=1)
    assert load(tmp_path / "rounds").classes == ["test1", "test2"]


@pytest.mark.parametrize("names", [("train", "valid"), ("training", "eval"), ("Train", "Val")])
def test_evaluation_finds_splits_under_their_usual_names(tmp_path, names):
    for name in names:
        make_images(tmp_path / name, 8)
    make_images(tmp_path / ".ipynb_checkpoints", 8)
    train, val = load_splits(tmp_path)
    assert (train.root.name, val.root.name) == names
    assert train.classes == val.classes and len(train.classes) == 4


def test_splits_that_cannot_be_told_apart_are_one_sentence(tmp_path):
    for name in ("train", "valid", "validation"):
        make_images(tmp_path / name, 4)
    with pytest.raises(InputError, match="has valid and validation; .*: rename one of them to val"):
        load_splits(tmp_path)
    make_images(tmp_path / "val", 4)
    assert load_splits(tmp_path)[1].root.name == "val"
    for name in ("val", "valid", "validation"):
        shutil.rmtree(tmp_path / name)
    make_images(tmp_path / "test", 4)
    with pytest.raises(InputError, match=r"has no val/ folder \(there are: test, train\)"):
        load_splits(tmp_path)
    with pytest.raises(InputError, match="none: has no train/ folder; expected train/ and val/"):
        load_splits(tmp_path / "none")


# --- names


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes that are not text")
def test_names_that_are_not_text_are_read_printed_and_hashed(tmp_path, capfd):
    root = tmp_path / os.fsdecode(b"ph\xe9tos\x1b[31m")
    make_images(root, 4, classes=2)
    (root / "class1").rename(root / os.fsdecode(b"cl\xffss"))
    (root / "._x.png").write_bytes(b"")
    images = load(root)
    assert len(images) == 4 and sorted(set(images.labels)) == [0, 1] and len(images.digest) == 64
    assert load(json.loads(json.dumps(images.source))).digest == images.digest  # as in config.json
    with pytest.raises(InputError) as caught:
        check_batch(open_images(root, TrainConfig()), TrainConfig(batch_size=99))
    said = capfd.readouterr().err + str(caught.value)
    assert r"ph\udce9tos\x1b[31m: left out 1 x hidden or system file" in said
    assert said.isascii() and "\x1b" not in said
