"""Zips, packed tars, patterns, tables, parquet and saved datasets: the images of their folder."""

import csv
import json
import os
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import make_images
from small_runs import QUICK, build, final, stop_at

from cgh_models.config import TrainConfig
from cgh_models.data import file_cache
from cgh_models.data.image_set import load, load_splits
from cgh_models.data.loader import batches
from cgh_models.errors import BadImage, InputError, Interrupted
from cgh_models.train.loop import pretrain
from cgh_models.view_recipes import RECIPES


@pytest.fixture(scope="module")
def folder(image_root):
    return load(image_root / "train")


def rows_of(images):
    return [
        (str(images.path(i)), images.classes[images.labels[i]], images.path(i).read_bytes())
        for i in range(len(images))
    ]


def pack_zip(images, target, prefix=""):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(f"{prefix}notes.txt", "x")
        packed.writestr("__MACOSX/._a.png", "x")
        for index, name in enumerate(images.names):
            packed.write(images.path(index), prefix + name)
    return target


def pack_tars(images, home, mode="w", parts=3):
    home.mkdir()
    ending = "tar.gz" if mode == "w:gz" else "tar"
    for part in range(parts):
        with tarfile.open(home / f"{part:03}.{ending}", mode) as tar:
            for index in range(part, len(images), parts):
                tar.add(images.path(index), images.names[index])
    return home


def write_parquet(images, path, kind="struct", splits=None):
    import pyarrow as pa
    from pyarrow import parquet

    rows = rows_of(images)
    content = [row[2] for row in rows]
    column = {
        "struct": ("image", [{"bytes": image, "path": None} for image in content]),
        "binary": ("jpg", content),
        "paths": ("path", [row[0] for row in rows]),
    }[kind]
    columns = {"id": list(range(len(rows))), column[0]: column[1], "label": [r[1] for r in rows]}
    if splits:
        columns["split"] = splits
    parquet.write_table(pa.table(columns), path, row_group_size=10)
    return path


def saved(images, path, split=False):
    datasets = pytest.importorskip("datasets", reason="the datasets extra is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=images.classes)}
    )
    pictures = [{"bytes": row[2], "path": None} for row in rows_of(images)]
    rows = {"image": pictures, "label": images.labels.tolist()}
    made = datasets.Dataset.from_dict(rows, features=features)
    if split:
        made = datasets.DatasetDict({"train": made, "test": made})
    made.save_to_disk(str(path))
    return path


def make(kind, images, tmp_path):
    if kind == "zip":
        return pack_zip(images, tmp_path / "a.zip")
    if kind == "zip in a folder":
        return pack_zip(images, tmp_path / "a.zip", "my photos/").rename(tmp_path / "b.ZIP")
    if kind == "tar.gz":
        return pack_tars(images, tmp_path / "t", "w:gz", 1) / "000.tar.gz"
    if kind == "braces":
        return f"{pack_tars(images, tmp_path / 't')}/{{000..002}}.tar"
    if kind == "star":
        return f"{pack_tars(images, tmp_path / 't', 'w:gz')}/*.tar.gz"
    if kind == "saved":
        return saved(images, tmp_path / "s")
    if kind == "parquets":
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "README.md").write_text("x")
        write_parquet(images, tmp_path / "p" / "a.parquet")
        return tmp_path / "p"
    return write_parquet(images, tmp_path / "a.parquet", kind)


KINDS = ("zip", "zip in a folder", "tar.gz", "braces", "star", "saved", "parquets")
KINDS += ("struct", "binary", "paths")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_holds_the_images_of_its_folder(folder, tmp_path, kind):
    images = load(make(kind, folder, tmp_path))
    classes = [images.classes[label] for label in images.labels]

    def of(images, classes):
        pixels = (np.array(images.image(index)).tobytes() for index in range(64))
        return sorted(zip(pixels, classes, strict=True))

    assert of(images, classes) == of(folder, [folder.classes[i] for i in folder.labels])
    sent = pickle.loads(pickle.dumps(images))  # as to processes that are not forked
    assert np.array(sent.image(5)).tobytes() == np.array(images.image(5)).tobytes()
    again = load(images.source)  # what `cgh resume` opens
    assert again.digest == images.digest and again.names == images.names


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "struct"])
def test_processes_read_one_source_side_by_side(folder, tmp_path, kind):
    images = load(make(kind, folder, tmp_path))
    images.image(5)  # read before the processes start: a file that they shared would lose its place
    config = TrainConfig(batch_size=16, image_size=32, workers=2)
    read = list(batches(images, RECIPES["weak_strong"], config, 0, 8, torch.device("cpu")))
    config = TrainConfig(batch_size=16, image_size=32, workers=0)
    alone = list(batches(images, RECIPES["weak_strong"], config, 0, 8, torch.device("cpu")))
    for (views, _), (wanted, _) in zip(read, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(views, wanted, strict=True))


def test_a_run_on_a_zip_is_that_on_its_folder(folder, image_root, tmp_path, in_process):
    data = pack_zip(folder, tmp_path / "a.zip")
    assert load(data).digest == folder.digest
    words = ("--recipe", "cifar", "--arch", "resnet18_cifar_w16", "--epochs", 1)
    words += ("--batch-size", 32, "--set", "queue_length=64")
    in_process("pretrain", "--data", "a.zip", "--out", "a", *words)
    in_process("pretrain", "--data", image_root / "train", "--out", "b", *words)
    one, two = final(tmp_path / "a"), final(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)
    shutil.rmtree(tmp_path / "b")


# --- splits


def table(folder, path, splits):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "Split"])
        for index, (name, label, _) in enumerate(rows_of(folder)):
            writer.writerow([name, label, splits[index % len(splits)]])
    return path


def both(kind, folder, image_root, tmp_path):
    if kind == "csv":
        return table(folder, tmp_path / "a.csv", ["train", "val", "train", "train"])
    if kind == "parquet":
        splits = ["train", "valid", "train", "train"] * 16
        return write_parquet(folder, tmp_path / "a.parquet", splits=splits)
    if kind == "shards":
        (tmp_path / "p").mkdir()
        write_parquet(folder, tmp_path / "p" / "train-00000-of-00001.parquet")
        write_parquet(folder, tmp_path / "p" / "validation-00000-of-00001.parquet")
        return tmp_path / "p"
    if kind == "two files":
        (tmp_path / "p").mkdir()
        pack_zip(folder, tmp_path / "p" / "train.zip")
        write_parquet(folder, tmp_path / "p" / "val.parquet")
        return tmp_path / "p"
    if kind == "saved":
        return saved(folder, tmp_path / "s", split=True)
    shutil.make_archive(str(tmp_path / "a"), "zip", image_root)
    return tmp_path / "a.zip"


@pytest.mark.parametrize("kind", ["csv", "parquet", "shards", "two files", "saved", "zip"])
def test_train_and_val_of_one_source(folder, image_root, tmp_path, kind):
    data = both(kind, folder, image_root, tmp_path)
    train, val = load_splits(data)
    counts = {"csv": (48, 16), "parquet": (48, 16), "zip": (64, 20)}.get(kind, (64, 64))
    assert (len(train), len(val)) == counts and train.classes == folder.classes
    assert train.image(3).size == val.image(3).size == (32, 32)
    assert train.digest != val.digest or kind == "saved"
    if kind != "two files":
        assert load(f"{data}:train").digest == train.digest == load(train.source).digest


def test_a_table_with_splits_says_that_all_are_taken(folder, tmp_path, capsys):
    data = table(folder, tmp_path / "a.csv", ["train", "val"])
    assert len(load(data)) == 64
    assert "has the splits train, val; all are taken, " in capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"no one split 'test' \(there are: train, val\); name one"
    ):
        load(f"{data}:test")


# --- what cannot be read


def test_a_packed_tar_is_unpacked_once_into_a_bounded_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = pack_tars(folder, tmp_path / "t", "w:gz")
    kept = tmp_path / "cache" / "cgh-models" / "files"
    images = load(f"{home}/*.tar.gz")
    made = {path: path.stat().st_ino for path in kept.iterdir()}
    assert len(made) == 3 and load(f"{home}/*.tar.gz").digest == images.digest
    assert {path: path.stat().st_ino for path in kept.iterdir()} == made
    size = next(iter(made)).stat().st_size
    few = load(f"{home}/*.tar.gz", cache_gib=2.5 * size / 2**30)
    shutil.rmtree(kept)
    for index in (*range(64), 5, 40):
        assert few.image(index).size == (32, 32)
        assert sum(path.stat().st_size for path in kept.iterdir()) <= 2.5 * size
    shutil.rmtree(kept)
    with pytest.raises(
        InputError, match="000.tar.gz: more than --cache-gib .*e-07; give a larger one"
    ):
        load(f"{home}/*.tar.gz", cache_gib=1e-6)
    assert list(kept.iterdir()) == []


def test_a_variable_says_how_large_the_cache_is_where_no_flag_does(monkeypatch, folder, tmp_path):
    home = pack_tars(folder, tmp_path / "t", "w:gz")
    monkeypatch.setenv("CGH_CACHE_GIB", "0.000001")
    with pytest.raises(InputError, match="more than --cache-gib .*CGH_CACHE_GIB=20"):
        load(f"{home}/*.tar.gz")
    assert len(load(f"{home}/*.tar.gz", cache_gib=1)) == 64
    monkeypatch.setenv("CGH_CACHE_GIB", "a lot")
    with pytest.raises(InputError, match="CGH_CACHE_GIB=a lot: expected a number of GiB"):
        load(f"{home}/*.tar.gz")


def test_a_file_that_is_cut_short_is_one_sentence(folder, tmp_path):
    for kind in ("zip", "tar.gz", "struct"):
        data = make(kind, folder, tmp_path)
        whole = data.read_bytes()
        data.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            InputError, match=r"(cannot be read|not a readable parquet file) \(.*; "
        ):
            load(data)


def test_a_member_of_a_zip_that_is_damaged_or_locked_is_a_bad_image_or_left_out(folder, tmp_path):
    data = pack_zip(folder, tmp_path / "a.zip")
    info = zipfile.ZipFile(data).getinfo(folder.names[9])
    content = bytearray(data.read_bytes())
    content[info.header_offset + 200] ^= 255
    data.write_bytes(content)
    images = load(data)
    assert "cannot be read from its archive" in images.why_bad(9) and not images.why_bad(8)
    data.write_bytes(b"")
    with pytest.raises(BadImage):
        images.image(3)
    place = content.rindex(b"PK\1\2")
    content[place + 8] |= 1
    data.write_bytes(content)
    assert load(data).skipped["encrypted"] == 1


def test_a_parquet_without_images_names_its_columns(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    message = r"has no column of images, only text \(string\), n \(int64\); expected one of the im"
    with pytest.raises(InputError, match=message):
        load(tmp_path / "a.parquet")
    described = {"info": {"features": {"label": {"names": ["a"]}}}}
    numbers = pa.table({"image": pa.array([b"x"], pa.binary()), "label": [7]})
    numbers = numbers.replace_schema_metadata({"huggingface": json.dumps(described)})
    parquet.write_table(numbers, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="not a readable parquet file .list index out of range"):
        load(tmp_path / "a.parquet")
    empty = pa.table({"image": pa.array([None, b"x"], pa.binary())})
    parquet.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="0 bytes; .* .none of 2 images can be used"):
        load(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "t/{000..004}.tar",
            r"t/003.tar: there is no such file; put it there, or mend the pattern",
        ),
        ("t/*.zip", r"t/\*.zip: there is no such file"),
        (
            "{t/000.tar,a.zip}",
            "holds tar, zip files; give .tar, .tar.gz, .zip or .parquet files, al",
        ),
        ("train/class0/*.png", "holds other files; give .tar"),
    ],
)
def test_a_pattern_that_cannot_be_taken_is_one_sentence(folder, tmp_path, name, message):
    pack_tars(folder, tmp_path / "t")
    pack_zip(folder, tmp_path / "a.zip")
    make_images(tmp_path / "train", 4)
    with pytest.raises(InputError, match=message):
        load(f"{tmp_path}/{name}")


def test_a_folder_of_splits_on_the_disk_of_huggingface_wants_one(folder, tmp_path):
    data = saved(folder, tmp_path / "s", split=True)
    with pytest.raises(
        InputError, match="holds the splits train, test; give one of them: .*:train"
    ):
        load(data)


def test_a_library_that_is_missing_is_one_sentence(folder, tmp_path, monkeypatch):
    data = write_parquet(folder, tmp_path / "a.parquet")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs the pyarrow library; type `pip install '\.\[embed\]"
    ):
        load(data)
    for address, package in (("gs://a/b", "gcsfs"), ("nosuch://a", "Protocol not known")):
        with pytest.raises(InputError, match=f"{address}: .*{package}.*; "):
            load(address)


def test_what_is_there_is_taken_by_its_name(tmp_path):
    """A colon, a brace or a star in the name of what is there is a letter."""
    for name in ("a:train", "b{1,2}", "c*"):
        make_images(tmp_path / name, 4)
        assert len(load(tmp_path / name)) == 4
    assert file_cache.is_address("s3://a") and not file_cache.is_address(f"{os.sep}a://b")


def named_otherwise(folder, home):
    """Pairs: another way to write what is there, its plain name."""
    home.mkdir()
    pack_zip(folder, home / "a.zip")
    pack_tars(folder, home / "shards")
    shutil.copy(pack_tars(folder, home / "one", parts=1) / "000.tar", home / "a.tar")
    (home / "p").mkdir()
    write_parquet(folder, home / "p" / "b.parquet")
    with tarfile.open(home / "both.tar", "w") as tar:
        for index, name in enumerate(folder.names):
            tar.add(folder.path(index), f"{'train' if index % 3 else 'val'}/{name}")
    pairs = [(f"./{name}", name) for name in ("a.zip", "a.tar", "shards", "both.tar:train")]
    pairs += [("shards/", "shards"), (".//shards//", "shards"), ("./p/", "p")]
    return [*pairs, ("./{a,a}.tar", "{a,a}.tar"), ("shards/.", "shards"), ("./p/*", "p/*")]


def test_a_name_written_otherwise_gives_the_same_names(folder, tmp_path, monkeypatch):
    pairs = named_otherwise(folder, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    for other, plain in pairs:
        one, two = load(other), load(plain)
        assert (one.names, one.digest, one.classes) == (two.names, two.digest, two.classes), other
        assert load(one.source).digest == one.digest == load(os.path.abspath(plain)).digest
        assert one.names[0].split("/")[0] in ("class0", "000.tar", "a.tar", "train", "b.parquet")
    monkeypatch.chdir("shards")
    assert load(".").digest == load("../shards").digest


def test_a_run_on_a_folder_of_tars_named_otherwise_is_resumed(folder, tmp_path, monkeypatch):
    named_otherwise(folder, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(build("ressl"), "./shards", QUICK, tmp_path / "run")
    pretrain(build("ressl"), "shards", QUICK, tmp_path / "run", resume=True)
    pretrain(build("ressl"), str(tmp_path / "home" / "shards"), QUICK, tmp_path / "whole")
    one, two = final(tmp_path / "run"), final(tmp_path / "whole")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_alias_of_an_address_gives_the_same_names(folder, tmp_path):
    named_otherwise(folder, tmp_path / "home")
    for form in ("a.zip", "shards", "shards/*.tar", "shards/{000..002}.tar"):
        one = load(f"local://{tmp_path}/home/{form}")
        assert one.names == load(f"file://{tmp_path}/home/{form}").names, form
        assert one.digest == load(f"{tmp_path}/home/{form}").digest


def test_kept_embeddings_go_by_the_time_of_change_of_a_parquet_file(folder, tmp_path):
    images = load(write_parquet(folder, tmp_path / "a.parquet"))
    before = images.changed(5)
    os.utime(tmp_path / "a.parquet", (1, 1))
    assert before != load(tmp_path / "a.parquet").changed(5) == 10**9


def bands_of(number):
    values = np.random.default_rng(number).integers(0, 4096, (20, 24, 13)).astype(np.uint16)
    return values


@pytest.mark.parametrize("kind", ["tar", "zip", "address"])
def test_arrays_and_tiffs_of_bands_are_found_in_archives_and_at_addresses(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile", reason="the bands extra is not installed")
    (tmp_path / "set" / "c").mkdir(parents=True)
    np.save(tmp_path / "set" / "c" / "a.npy", bands_of(0))
    tifffile.imwrite(tmp_path / "set" / "c" / "b.tif", bands_of(1), planarconfig="contig")
    data = f"file://{tmp_path}/set"
    if kind != "address":
        data = shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "set")
    images = load(data, in_chans=13)
    assert [name.rpartition("/")[2] for name in images.names] == ["a.npy", "b.tif"]
    for index in range(2):
        np.testing.assert_array_equal(np.rint(images.image(index) / 65535 * 4095), bands_of(index))
    assert len(load(data, pixel_range="12-bit").names) == 1
    with pytest.raises(InputError, match="--reader: takes paths of files; unpack"):
        load(data, in_chans=13, reader="numpy:load")
