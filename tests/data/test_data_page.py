"""docs/data.md is true: every line of it is read, and so are its lines of Python."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import make_images
from test_sources import pack_tars, pack_zip, rows_of, saved, table, write_parquet

from cgh_models.data import file_cache
from cgh_models.data.image_set import load, load_splits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text("utf-8")
NAMES = re.findall(r"^\| `'?(.+?)'?` \|", PAGE, re.M)[1:]
REMOTE = [name for name in NAMES if "://" in name]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    make_images(home / "photos", 12)
    images = load(home / "photos")
    for split in ("train", "val"):
        shutil.copytree(home / "photos", home / "both" / split)
    shutil.make_archive(str(home / "both"), "zip", home / "both")
    (home / "list.txt").write_text("\n".join(row[0] for row in rows_of(images)))
    rows = [f"photos/{name}" for name in images.names]
    (home / "list.csv").write_text("\n".join(["path", *rows]))
    table(images, home / "table.csv", ["train", "train", "train", "train", "val", "val"])
    for mode, name in (("w", "photos.tar"), ("w:gz", "photos.tar.gz")):
        next(pack_tars(images, home / "one", mode, 1).iterdir()).rename(home / name)
        (home / "one").rmdir()
    pack_zip(images, home / "photos.zip")
    pack_tars(images, home / "shards")
    write_parquet(images, home / "photos.parquet")
    saved(images, home / "saved")
    saved(images, home / "saved_dict", split=True)
    return home


@pytest.mark.parametrize("name", [name for name in NAMES if "://" not in name])
def test_each_name_of_the_page_is_read(home, name, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    images = load(name.replace("NAME", f"{home}/both"))
    assert len(images) in (8, 12) and images.image(0).size == (32, 32)


def test_what_holds_both_splits_is_evaluated(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    text = PAGE.split("what holds both: ")[1].partition(". ")[0]
    for name in re.findall("`(.*?)`", text.replace("\n", " ")):
        if "://" not in name:
            train, val = load_splits(name.replace("NAME", f"{home}/both"))
            assert {*val.classes} <= {*train.classes} and len(train) in (8, 12)


def test_each_address_of_the_page_is_read(home, tmp_path, monkeypatch):
    pytest.importorskip("moto.server", reason="moto is not installed")
    from loopback_s3 import LoopbackS3
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # those of other tests know other servers
    server = LoopbackS3("bucket")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    server.start(home)
    try:
        assert [len(load(address)) for address in REMOTE] == [12] * 5 and len(REMOTE) == 5
        assert [len(split) for split in load_splits("s3://bucket/both")] == [12, 12]
    finally:
        server.kill()


def test_the_python_of_the_page_works_as_written(home, monkeypatch):
    import datasets
    import numpy
    import PIL.Image
    import torch
    import torchvision

    monkeypatch.chdir(home)
    block = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
    for name, there in (("cat/1", "class0/00000"), ("dog/2", "class1/00001")):
        block = block.replace(f"photos/{name}.png", f"photos/{there}.png")
    given = {"PIL": PIL, "numpy": numpy, "torch": torch, "torchvision": torchvision}
    given |= {"datasets": datasets, "paths": [str(load("photos").path(3))]}
    exec(compile(block, "data.md", "exec"), given)
    assert len(block.splitlines()) == 11


def test_the_pauses_of_the_page_are_those_of_the_cache():
    said = ", ".join(f"{pause:g}" for pause in file_cache.PAUSES[:-1])
    assert f"after {said} and {file_cache.PAUSES[-1]:g} s" in " ".join(PAGE.split())
