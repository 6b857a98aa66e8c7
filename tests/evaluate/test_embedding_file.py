"""Files of embeddings hold what `extract` returns, go on after a stop, and are read as they are."""

import csv
import hashlib
import itertools
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_images
from pyarrow import parquet

from cgh_models.backbone import create, embed, map_names, stack_maps
from cgh_models.data.image_set import load
from cgh_models.errors import InputError, IntegrityError, Interrupted
from cgh_models.evaluate import extract
from cgh_models.evaluate.embedding_file import write_embeddings
from cgh_models.evaluate.feature_maps import POOLED, Features, feature_function
from cgh_models.evaluate.protocols import EvalSettings

SETTINGS = EvalSettings(batch_size=8, workers=0, device="cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


@pytest.fixture
def write(model, image_root, tmp_path):
    """Writes the embeddings of val/ to a file; gives its path."""

    def call(name, features=POOLED, data=image_root / "val", **more):
        out = tmp_path / name
        write_embeddings(model, load(data), out, SETTINGS, features, **more)
        assert [path.name for path in tmp_path.glob("*.part")] == []
        return out

    return call


def matrix(path: Path) -> np.ndarray:
    column = parquet.read_table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def columns(path: Path) -> dict[str, list]:
    """All columns but the embeddings, as parquet, npz and csv have them."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).drop_columns("embedding").to_pydict()
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {k: arrays[k].tolist() for k in arrays if k not in ("embedding", "about")}
    rows = list(csv.DictReader(path.open(newline="")))
    found = {name: [row[name] for row in rows] for name in rows[0] if "embedding" not in name}
    return {
        k: [int(x) if x.isdecimal() and k != "path" else x for x in v] for k, v in found.items()
    }


def test_every_format_holds_the_embeddings_of_extract_to_the_bit(write, model, image_root):
    expected = extract(model, image_root / "val", batch_size=8, workers=0)
    tables = write("e.parquet"), write("e.npz"), write("e.csv")
    plain = np.load(write("e.npy"))
    assert plain.flags.c_contiguous and plain.dtype == np.float32  # as FAISS takes them
    assert np.array_equal(plain, expected) and np.array_equal(matrix(tables[0]), expected)
    assert np.array_equal(np.load(tables[1])["embedding"], expected)
    lines = list(csv.reader(tables[2].open()))
    assert lines[0][-1] == "embedding_127"
    assert np.array_equal(np.array([line[-128:] for line in lines[1:]], np.float32), expected)


def test_every_format_names_each_image_with_its_class_size_and_sha256(write, image_root, tmp_path):
    images = load(image_root / "val")
    contents = [images.path(index).read_bytes() for index in range(len(images))]
    expected = {
        "path": images.names,
        "label": [images.classes[label] for label in images.labels],
        "width": [32] * 20,
        "height": [32] * 20,
        "bytes": [len(content) for content in contents],
        "sha256": [hashlib.sha256(content).hexdigest() for content in contents],
    }
    for name in ("e.parquet", "e.npz", "e.csv"):
        assert columns(write(name)) == expected, name
    write("e.npy")
    assert (tmp_path / "e.npy.paths.txt").read_text().splitlines() == images.names


def test_a_file_says_which_weights_made_it(write):
    about = parquet.read_schema(write("e.parquet", weights="mine")).metadata
    of_npz = json.loads(str(np.load(write("e.npz", weights="mine"))["about"]))
    assert about[b"weights"] == b"mine" and len(about[b"weights_sha256"]) == 64
    assert of_npz["weights_sha256"] == about[b"weights_sha256"].decode()
    assert "cgh-models" in of_npz["versions"] and b"cgh-models" in about[b"versions"]


def test_datasets_reads_the_parquet_as_it_is(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from datasets import load_dataset

    for dtype in ("float32", "float16"):
        path = write(f"{dtype}.parquet", dtype=dtype)
        read = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))
        rows = read["train"].with_format("numpy")["embedding"][:]
        assert rows.shape == (20, 128) and np.array_equal(rows, matrix(path))
        assert read["train"].features["embedding"].length == 128
        assert read["train"].features["embedding"].feature.dtype == dtype
        assert read["train"][3]["label"] == read["train"][3]["path"].split("/")[0]


def test_a_flat_folder_has_no_labels(write, tmp_path):
    make_images(tmp_path / "flat", 4, classes=1)
    path = write("e.parquet", data=tmp_path / "flat" / "class0")
    assert "label" not in columns(path) and len(matrix(path)) == 4


def stop_after(count):
    """Passes the first items on, as a signal would."""
    return lambda items: itertools.islice(items, count)


def test_a_stopped_run_goes_on_and_gives_the_same_file(write, model, image_root, tmp_path):
    whole = write("whole.npz").read_bytes()
    out = tmp_path / "parts.npz"
    images = load(image_root / "val")
    for batches, done in ((1, 8), (1, 16), (0, 16)):
        with pytest.raises(Interrupted, match=f"{done} of 20 images are embedded; the same"):
            write_embeddings(*(model, images, out, SETTINGS, POOLED), until=stop_after(batches))
    first = tmp_path / "parts.npz.part" / f"{8:012}.npz"
    before = first.stat().st_mtime_ns
    with pytest.raises(Interrupted, match="not yet joined to a file; the same command"):
        # all batches pass, but not all parts
        write_embeddings(*(model, images, out, SETTINGS, POOLED), until=stop_after(2))
    assert first.stat().st_mtime_ns == before and not out.exists()
    assert write("parts.npz").read_bytes() == whole


def test_parts_of_other_weights_images_or_settings_are_refused(model, image_root, tmp_path):
    out = tmp_path / "e.npz"
    images = load(image_root / "val")
    with pytest.raises(Interrupted):
        write_embeddings(*(model, images, out, SETTINGS, POOLED), until=stop_after(1))
    torch.manual_seed(1)
    other = create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})
    for changed, what in (
        ((other, images, out, SETTINGS, POOLED), "weights_sha256"),
        ((model, load(image_root / "train"), out, SETTINGS, POOLED), "images"),
        ((model, images, out, SETTINGS, Features(layer="-1")), "layer"),
        ((model, images, out, SETTINGS, POOLED, "float16"), "dtype"),
    ):
        with pytest.raises(InputError, match=f"begun with other {what}; remove it to begin anew"):
            write_embeddings(*changed)
    part = next((tmp_path / "e.npz.part").glob("0*"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="damaged"):
        write_embeddings(model, images, out, SETTINGS, POOLED)


def test_a_file_that_is_there_is_kept(write):
    path = write("e.npy")
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists; remove it, or give another --out"):
        write("e.npy", Features(layer="-1"))
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", [[0], [7, 8], [199]])
def test_images_that_cannot_be_read_are_left_out_and_stay_so_after_a_stop(
    at, model, tmp_path, capsys
):
    make_images(tmp_path / "images", 200)
    images = load(tmp_path / "images")
    for index in at:
        images.path(index).write_bytes(b"no image")
    good = [name for index, name in enumerate(images.names) if index not in at]
    out = tmp_path / "e.npz"
    with pytest.raises(Interrupted):
        write_embeddings(
            *(model, load(tmp_path / "images"), out, SETTINGS, POOLED), until=stop_after(2)
        )
    found = write_embeddings(model, load(tmp_path / "images"), out, SETTINGS, POOLED)
    assert (found.images, found.left_out, found.shape) == (len(good), len(at), [128])
    assert "left out" in capsys.readouterr().err and columns(out)["path"] == good
    images.path(100).write_bytes(b"")
    images.path(101).write_bytes(b"")
    images.path(102).write_bytes(b"")
    with pytest.raises(InputError, match="more than 1 %"):
        write_embeddings(model, load(tmp_path / "images"), tmp_path / "f.npz", SETTINGS, POOLED)


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_layers_are_timms_maps_and_their_means(arch):
    torch.manual_seed(0)
    model = create(arch).eval()
    names = map_names(model)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        _, maps = embed(model, images, taps=len(names))
        for number, name in enumerate(names):
            expected = maps[number].mean((2, 3))
            for layer in (str(number), str(number - len(names)), name):
                torch.testing.assert_close(
                    feature_function(model, Features(layer))(images), expected
                )
        dense = feature_function(model, Features(dense=True))(images)
        torch.testing.assert_close(dense, maps[-1])
        stacked = feature_function(model, Features(taps=2, dense=True))(images)
        torch.testing.assert_close(stacked, stack_maps(maps[-2:]))
        assert stacked.shape[1] == maps[-1].shape[1] + maps[-2].shape[1]
        torch.testing.assert_close(
            feature_function(model, Features(taps=2))(images), stacked.mean((2, 3))
        )


def test_dense_maps_keep_their_shape_and_their_mean_is_the_embedding(write, model, image_root):
    pooled = extract(model, image_root / "val", batch_size=8, workers=0)
    dense = np.load(write("d.npy", Features(dense=True), dtype="float16"))
    assert dense.shape == (20, 128, 4, 4) and dense.dtype == np.float16
    np.testing.assert_allclose(dense.astype(np.float32).mean((2, 3)), pooled, atol=2e-3)
    flat = write("d.parquet", Features(dense=True), dtype="float16")
    assert json.loads(parquet.read_schema(flat).metadata[b"shape"]) == [128, 4, 4]
    assert np.array_equal(matrix(flat).reshape(dense.shape), dense)


@pytest.mark.parametrize(
    "name, features, dtype, message",
    [
        ("e.txt", POOLED, "float32", "--out .*e.txt: expected a name that ends in .parquet, .npz"),
        ("e.csv", Features(dense=True), "float32", "maps are too large for text"),
        (
            "e.npy",
            Features(layer="layer9"),
            "float32",
            "expected 0 to 4, from the end -1 to -5, or",
        ),
        ("e.npy", Features(layer="5"), "float32", "--layer 5: a SmallResNet has no such map"),
        ("e.npy", Features(taps=6), "float32", "--taps 6: expected 1 to 5"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(name, features, dtype, message, write):
    with pytest.raises(InputError, match=message):
        write(name, features, dtype=dtype)
    with pytest.raises(InputError, match="a hypercolumn has layers of its own"):
        Features(layer="-1", taps=2)


def test_without_pyarrow_parquet_is_refused_and_the_rest_is_written(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install '.\\[embed\\]', or give .* ends in .npz"):
        write("e.parquet")
    write("e.npz")


def test_numbers_that_float16_does_not_hold_are_refused(model, image_root, tmp_path):
    import copy

    large = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in large.layer4.parameters():
            parameter.mul_(1000)
    images = load(image_root / "val")
    out = tmp_path / "e.npy"
    with pytest.raises(InputError, match="not finite; give --dtype float32, float16 ends at 65504"):
        write_embeddings(large, images, out, SETTINGS, POOLED, "float16")
    shutil.rmtree(tmp_path / "e.npy.part")
    assert write_embeddings(large, images, out, SETTINGS, POOLED).images == 20


def test_no_more_than_a_few_batches_are_in_memory(model, tmp_path):
    import tracemalloc

    make_images(tmp_path / "images", 240, size=8)
    settings = EvalSettings(batch_size=16, workers=0, device="cpu")
    features = Features("layer1", dense=True)  # 64 KiB an image, 15 MiB in all
    tracemalloc.start()
    write_embeddings(*(model, load(tmp_path / "images"), tmp_path / "e.npy", settings, features))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = os.path.getsize(tmp_path / "e.npy")
    assert size > 15 * 2**20 and peak < size / 3, (peak, size)


def test_images_of_an_archive_have_the_same_rows(write, image_root, tmp_path):
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(image_root / "val", ".")
    folder, archive = columns(write("f.npz")), columns(write("a.npz", data=tmp_path / "val.tar"))
    rows = dict(
        zip(folder["sha256"], zip(folder["label"], folder["bytes"], strict=True), strict=True)
    )
    assert rows == dict(
        zip(archive["sha256"], zip(archive["label"], archive["bytes"], strict=True), strict=True)
    )
