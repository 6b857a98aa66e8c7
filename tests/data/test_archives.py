"""Images in tar archives and datasets of the Hub: the same names and runs as from a folder."""

import io
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from conftest import cgh, make_images
from PIL import Image
from small_runs import QUICK, build, final

from cgh_models.config import TrainConfig
from cgh_models.data.image_set import ImageSet, load, load_splits
from cgh_models.data.loader import batches, order
from cgh_models.errors import BadImage, InputError
from cgh_models.evaluate import extract
from cgh_models.evaluate.splits import subset
from cgh_models.one_process import OneProcess
from cgh_models.train.checkpoint import read_run
from cgh_models.train.loop import pretrain
from cgh_models.view_recipes import RECIPES


def pack(folder, target, names=None):
    with tarfile.open(target, "w") as tar:
        for name in names or sorted(os.listdir(folder)):
            tar.add(folder / name, name)
    return target


@pytest.fixture
def archive(image_root, tmp_path):
    return pack(image_root / "train", tmp_path / "train.tar")


@pytest.fixture
def archives(image_root, tmp_path):
    """A folder of one archive a class."""
    home = tmp_path / "tars"
    home.mkdir()
    for folder in (image_root / "train").iterdir():
        pack(folder, home / f"{folder.name}.tar")
    return home


@pytest.mark.parametrize("count", [2, 4])
def test_each_image_of_an_epoch_is_read_by_one_of_the_processes(archives, count, monkeypatch):
    read = []
    whole = ImageSet.image

    def image(images, index, min_side=0):
        read.append(index)
        return whole(images, index, min_side)

    monkeypatch.setattr(ImageSet, "image", image)
    images, recipe = load(archives), RECIPES["two_strong"]
    config = TrainConfig(image_size=32, batch_size=8, workers=0)
    steps = len(images) // config.batch_size
    taken = steps * config.batch_size
    parts = []
    for rank in range(count):
        processes = OneProcess()
        processes.rank, processes.count = rank, count
        read.clear()
        for _ in batches(images, recipe, config, 0, steps, torch.device("cpu"), processes):
            pass
        parts.append(read.copy())
    assert [len(part) for part in parts] == [taken // count] * count
    expected = order(config.seed, 0, len(images))[:taken]
    assert sorted(np.concatenate(parts).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("kind", ["archive", "archives"])
def test_an_archive_is_the_folder_it_was_made_from(kind, image_root, request):
    packed, folder = load(request.getfixturevalue(kind)), load(image_root / "train")
    assert len(packed) == len(folder) == 64 and packed.classes == folder.classes
    assert [name.replace(".tar", "") for name in packed.names] == folder.names
    np.testing.assert_array_equal(packed.labels, folder.labels)
    for index in (0, 17, 63):
        np.testing.assert_array_equal(np.array(packed.image(index)), np.array(folder.image(index)))


def test_a_run_on_an_archive_is_that_on_its_folder(archive, image_root, tmp_path):
    pretrain(build("ressl"), archive, QUICK, tmp_path / "a")
    pretrain(build("ressl"), image_root / "train", QUICK, tmp_path / "b")
    one, two = final(tmp_path / "a"), final(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_read_one_archive_side_by_side(archives, image_root, workers):
    config = TrainConfig(batch_size=16, image_size=32, workers=workers)
    packed, folder = load(archives), load(image_root / "train")
    packed.image(5)  # read before the processes start: a file that they shared would lose its place
    ours, theirs = (
        list(batches(images, RECIPES["weak_strong"], config, 0, 8, torch.device("cpu")))
        for images in (packed, folder)
    )
    for (views, indices), (wanted, same) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(indices, same)
        assert all(torch.equal(a, b) for a, b in zip(views, wanted, strict=True))


def test_embeddings_of_an_archive(archive, image_root):
    model = build().student.backbone
    np.testing.assert_array_equal(
        extract(model, archive, workers=0), extract(model, image_root / "train", workers=0)
    )


def test_kept_embeddings_of_an_archive_notice_a_member_that_was_rewritten(tmp_path):
    make_images(tmp_path / "images", 4)
    file, model = tmp_path / "images" / "class0" / "00000.bmp", build().student.backbone
    found = []
    for colour in ((250, 0, 0), (0, 0, 250)):  # the same name and size
        Image.new("RGB", (32, 32), colour).save(file)
        os.utime(file, (100 + colour[0], 100 + colour[0]))
        packed = pack(tmp_path / "images", tmp_path / "a.tar")
        found.append(extract(model, packed, workers=0, cache_dir=tmp_path / "kept"))
    assert len(found[0]) == 5 and (found[0] != found[1]).any()
    np.testing.assert_array_equal(
        extract(model, packed, workers=0, cache_dir=tmp_path / "kept"), found[1]
    )
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 2


def test_what_is_no_image_in_an_archive_is_counted(tmp_path):
    make_images(tmp_path / "images", 4)
    Image.new("RGB", (8, 8), (9, 200, 30)).save(tmp_path / "images" / "class0" / "z.webp")
    (tmp_path / "images" / "class0" / "notes.txt").write_text("x")
    images = load(pack(tmp_path / "images", tmp_path / "a.tar"))
    assert "class0/z.webp" in images.names and images.skipped == {".txt": 1}


def test_another_file_of_the_same_name_is_another_set(tmp_path):
    make_images(tmp_path / "images", 4)
    first = load(pack(tmp_path / "images", tmp_path / "a.tar")).digest
    assert load(pack(tmp_path / "images", tmp_path / "b.tar")).digest == first
    (tmp_path / "images" / "class0" / "00000.png").write_bytes(b"shorter")
    assert load(pack(tmp_path / "images", tmp_path / "c.tar")).digest != first


def test_no_index_is_kept_beside_an_archive_and_none_is_believed(archives):
    (archives / "_tars_tarinfos.pickle").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    names = sorted(os.listdir(archives))
    with pytest.raises(InputError):
        load(archives)  # a folder that holds other files is a folder of images
    os.remove(archives / "_tars_tarinfos.pickle")
    load(archives)
    assert sorted(os.listdir(archives)) == names[1:]


def test_a_bad_archive_is_one_sentence(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match=r"a.tar: no readable tar archive \(.*\); pack it anew"):
        load(tmp_path / "a.tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "note.txt").write_text("x")
    with pytest.raises(
        InputError,
        match=r"b.tar: no images \(1 x .txt found\); expected files ending in .jpg, .png",
    ):
        load(pack(tmp_path / "images", tmp_path / "b.tar"))


def offsets(archive):
    with tarfile.open(archive) as tar:
        return [(info.name, info.offset, info.offset_data, info.size) for info in tar]


@pytest.mark.parametrize("nested", [False, True])
def test_an_archive_cut_short_anywhere_names_its_last_whole_member(archive, tmp_path, nested):
    data = archive.read_bytes()
    members = offsets(archive)
    for number in (20, 40, len(members) - 1):
        name, header, start, size = members[number]
        before = members[number - 1][0]
        places = {header: before, header + 100: before, start: before, start + size // 2: before}
        end = start + -(-size // 512) * 512
        for length, last in (places | {end: name}).items():
            cut = tmp_path / "cut.tar"
            cut.write_bytes(data[:length])
            if nested:
                cut = pack(tmp_path, tmp_path / "outer.tar", ["cut.tar"])
            message = rf"cut.tar: not a whole tar archive, .*; the last whole member is '{last}'"
            with pytest.raises(InputError, match=message):
                load(cut)
    (tmp_path / "cut.tar").write_bytes(data[:300])
    with pytest.raises(InputError, match=r"no readable tar archive \(.*\); pack it anew"):
        load(tmp_path / "cut.tar")


def test_an_archive_with_a_damaged_header_or_more_after_its_end_is_refused(archive, tmp_path):
    data = bytearray(archive.read_bytes())
    (tmp_path / "b.tar").write_bytes(data + data)
    with pytest.raises(InputError, match="another archive follows its end; the last whole member"):
        load(tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes(data + b"what a tape held before" * 99)
    assert load(tmp_path / "b.tar").digest == load(archive).digest
    data[offsets(archive)[30][1] + 10] ^= 1
    (tmp_path / "c.tar").write_bytes(data)
    with pytest.raises(InputError, match=f"last whole member is '{offsets(archive)[29][0]}'"):
        load(tmp_path / "c.tar")


def test_an_archive_that_was_cut_later_has_bad_images(archive):
    images = load(archive)
    os.truncate(archive, offsets(archive)[-1][2] + 10)
    with pytest.raises(BadImage):
        images.image(63)
    archive.unlink()
    with pytest.raises(BadImage, match="cannot be read from its archive"):
        images.image(0)
    assert str(images.path(0)) == f"{archive}/class0/00000.png"


def add(tar, name, image, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(image)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(image))


@pytest.fixture
def png(image_root):
    return (image_root / "train" / "class0" / "00000.png").read_bytes()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_absurd_times_sizes_and_owners_of_members_do_no_harm(tmp_path, png, form):
    fields = [{"mtime": -(2**40)}, {"mtime": 2**80}, {"uid": 2**50, "gid": -1}, {"mode": 0}]
    if form == tarfile.PAX_FORMAT:
        times = ("nan", "inf", "-1e300", "soon", "1e308")
        fields += [{"pax_headers": {"mtime": time}} for time in times]
        fields += [{"pax_headers": {"uname": "\udcff\0" * 99, "comment": "x" * 9999}}]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for number, field in enumerate(fields):
            add(tar, f"c/{number}.png", png, **field)
    images = load(tmp_path / "a.tar")
    assert len(images) == len(fields) and images.image(1).size == (32, 32)
    assert np.array([images.changed(i) for i in range(len(images))], "<i8").shape == (len(fields),)
    model = build().student.backbone
    assert len(extract(model, images, workers=0, cache_dir=tmp_path / "kept")) == len(fields)


@pytest.mark.parametrize("size", ["-5", "1" + 30 * "0", "nine", "99999999"])
def test_sizes_that_cannot_be_are_one_sentence_or_a_bad_image(tmp_path, png, size):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "c/a.png", png)
        add(tar, "c/b.png", png, pax_headers={"size": size})
        add(tar, "c/c.png", png)
    with pytest.raises(InputError, match=r"a.tar: not a whole tar.*the last whole member is 'c/"):
        load(tmp_path / "a.tar")


def test_names_of_members_are_names_only(tmp_path, png):
    names = ["/etc/a.png", "../../b.png", "./c/d.png", "c/\udcff\u2028\x0b.png", "c//e.png"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            add(tar, name, png)
    images = load(tmp_path / "a.tar")
    assert images.names == sorted(names)
    assert all(images.image(index).size == (32, 32) for index in range(5))
    assert str(images.path(1)).startswith(str(tmp_path / "a.tar"))
    assert str(images.path(images.names.index("/etc/a.png"))) == f"{tmp_path}/a.tar/etc/a.png"


def test_of_a_name_that_comes_again_the_last_counts_as_when_unpacked(tmp_path, png, image_root):
    other = (image_root / "train" / "class1" / "00001.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, image in (("c/a.png", png), ("c/b.png", png), ("./c/a.png", other)):
            add(tar, name, image)
    images = load(tmp_path / "a.tar")
    assert len(images) == 2 and images.skipped == {"named again": 1}
    np.testing.assert_array_equal(
        np.array(images.image(0)), np.array(Image.open(io.BytesIO(other)).convert("RGB"))
    )


def test_a_sparse_member_is_whole(tmp_path):
    if not shutil.which("tar"):
        pytest.skip("there is no tar command")
    (tmp_path / "c").mkdir()
    Image.new("RGB", (600, 600)).save(tmp_path / "c" / "a.bmp")
    with open(tmp_path / "c" / "a.bmp", "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END))
    os.system(f"cd {tmp_path} && cp --sparse=always c/a.bmp c/b.bmp && tar -cSf a.tar c/b.bmp")
    images = load(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").stat().st_size < 600_000 and images.image(0).size == (600, 600)


@pytest.mark.parametrize("name", ["my photos.tar.bz2", "a.tar.bz2", "a.tar.xz", "a.tar"])
def test_a_compressed_archive_is_refused_with_what_to_type(archive, tmp_path, name):
    kind = {"bz2": "bz2", "xz": "xz"}.get(name.rpartition(".")[2], "gz")
    home = tmp_path / "it's"
    home.mkdir()
    with tarfile.open(archive) as whole, tarfile.open(home / name, f"w:{kind}") as tar:
        for info in whole:
            tar.addfile(info, whole.extractfile(info))
    with pytest.raises(InputError, match="is compressed, .*; type `mkdir .*` and give ") as caught:
        load(home / name)
    _, command, rest = str(caught.value).split("`")
    subprocess.run(command, shell=True, check=True, cwd=home)
    assert load(rest.removeprefix(" and give ")).digest == load(archive).digest


def test_links_and_devices_in_an_archive_are_not_followed(tmp_path, image_root):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("c/link.jpg", tarfile.SYMTYPE), ("c/fifo.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        member = tarfile.TarInfo("c/good.png")
        member.size = len(buffer.getvalue())
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    images = load(tmp_path / "a.tar")
    assert images.names == ["c/good.png"] and images.skipped.total() == 2


def test_a_set_without_an_order_of_its_own_is_refused():
    with pytest.raises(
        InputError, match="^wds/shards: gives its images in an order that no run could"
    ):
        load("wds/shards")


def test_a_folder_that_is_called_like_a_reader_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hfds", "wds"):
        make_images(tmp_path / name / "images", 4)
        assert len(load(f"{name}/images")) == 4


def test_datasets_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"hfds/cifar10: needs .*; type `pip install '\.\[datasets\]'`"
    ):
        load("hfds/cifar10")


def test_a_dataset_of_the_hub_is_read_through_timm(image_root, tmp_path, monkeypatch):
    """From a local folder in the Hub's form: the library's own reading, without the network."""
    pytest.importorskip("datasets", reason="the datasets extra is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    shutil.copytree(image_root / "train", tmp_path / "set" / "train")
    images, folder = load(f"hfds/{tmp_path}/set:train"), load(image_root / "train")
    assert len(images) == 64 and images.classes == folder.classes
    assert sorted(images.labels.tolist()) == sorted(folder.labels.tolist())
    mine = sorted(np.array(images.image(i)).tobytes() for i in range(64))
    assert mine == sorted(np.array(folder.image(i)).tobytes() for i in range(64))
    assert load(f"hfds/{tmp_path}/set:train").digest == images.digest
    pretrain(build("ressl"), f"hfds/{tmp_path}/set:train", QUICK, tmp_path / "run")
    assert (
        read_run(tmp_path / "run")["data"]["path"] == f"hfds/{tmp_path}/set:train"
    )  # what resume opens
    assert cgh("resume", "run", cwd=tmp_path).returncode == 0
    with pytest.raises(
        InputError,
        match=r"set:nothing: cannot be read as a dataset of images \(.*\); give hfds/NAME",
    ):
        load(f"hfds/{tmp_path}/set:nothing")


def test_a_dataset_of_the_hub_without_classes_is_a_set_without_labels(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the datasets extra is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    make_images(tmp_path / "flat", 4, classes=1)
    (tmp_path / "set").mkdir()
    (tmp_path / "flat" / "class0").rename(tmp_path / "set" / "train")
    images = load(f"hfds/{tmp_path}/set")
    assert len(images) == 4 and images.labels is None and images.classes == []
    assert images.image(3).size == (32, 32)


# --- classes and parts of archives


@pytest.fixture
def numbered(tmp_path):
    """train/ and val/ of classes 1, 2, 10, as folders and archives; timm numbers them by value."""
    for split, count in (("train", 24), ("val", 12)):
        make_images(tmp_path / "folders" / split, count, classes=3)
        (tmp_path / "tars" / split).mkdir(parents=True)
        for before, after in (("class0", "1"), ("class1", "2"), ("class2", "10")):
            (tmp_path / "folders" / split / before).rename(tmp_path / "folders" / split / after)
            pack(tmp_path / "folders" / split / after, tmp_path / "tars" / split / f"{after}.tar")
    return tmp_path


def by_name(images):
    """Pixels and class name of each image."""
    return {
        name.replace(".tar", ""): (
            np.array(images.image(i)).tobytes(),
            images.classes[images.labels[i]],
        )
        for i, name in enumerate(images.names)
    }


def test_val_of_an_archive_has_the_classes_of_its_train(numbered):
    for kind in ("folders", "tars"):
        train, val = load_splits(numbered / kind)
        names = [name.partition("/")[0].removesuffix(".tar") for name in val.names]
        assert [train.classes[label] for label in val.labels] == names, kind
    assert train.classes == ["1", "2", "10"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_part_of_an_archive_is_those_images_with_their_classes(numbered, kept):
    (whole, _), (expected, _) = load_splits(numbered / "tars"), load_splits(numbered / "folders")
    if kept:
        whole.cache_pixels(1.0)
    part = by_name(subset(whole, np.array([23, 2, 9])))
    assert len(part) == 3 and part.items() <= by_name(expected).items()


def test_splits_without_classes_are_one_sentence(numbered):
    for split in ("train", "val"):
        shutil.rmtree(numbered / "tars" / split)
        (numbered / "tars" / split).mkdir()
        pack(numbered / "folders" / split / "1", numbered / "tars" / split / "all.tar")
    with pytest.raises(InputError, match="train: has no two classes; expected .*/<class>/<image>"):
        load_splits(numbered / "tars")
