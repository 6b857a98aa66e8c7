"""Addresses of fsspec: what a server on loopback and the memory hold is what a folder holds."""

import dataclasses
import functools
import http.server
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from conftest import cgh, make_images
from small_runs import QUICK, build, final, stop_at
from test_sources import pack_tars, pack_zip, saved, write_parquet

from cgh_models.data import file_cache
from cgh_models.data.image_set import load, load_splits
from cgh_models.errors import InputError, Interrupted, NetworkError
from cgh_models.evaluate import extract
from cgh_models.train.loop import pretrain

fsspec = pytest.importorskip("fsspec", reason="the remote extra is not installed")
STREAMED = dataclasses.replace(QUICK, memory_gib=0.0, workers=0, epochs=2, eval_every=-1.0)


@pytest.fixture(scope="module")
def served(image_root, tmp_path_factory):
    """A folder with a set in each form."""
    home = tmp_path_factory.mktemp("served")
    folder = load(image_root / "train")
    shutil.copytree(image_root, home / "images")
    pack_tars(folder, home / "tars")
    pack_tars(folder, home / "packed", "w:gz")
    pack_zip(folder, home / "a.zip")
    write_parquet(folder, home / "a.parquet")
    rows = [f"images/train/{name},{name.partition('/')[0]}" for name in folder.names]
    (home / "list.csv").write_text("\n".join(["path,label", *rows]))
    names = [f"../images/train/{name}" for name in folder.names]
    names[::2] = [f"s3://images/images/train/{name}" for name in folder.names[::2]]
    (home / "lists").mkdir()
    (home / "lists" / "mixed.txt").write_text("\n".join(["# addresses", *names]))
    pytest.importorskip("datasets", reason="the datasets extra is not installed")
    saved(folder, home / "saved")
    saved(folder, home / "both", split=True)
    return home


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_cache, "PAUSES", (0.05, 0.1))
    return tmp_path / "cache" / "cgh-models" / "files"


@pytest.fixture(scope="module")
def s3(served):
    pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    from loopback_s3 import LoopbackS3

    server = LoopbackS3()
    before = dict(os.environ)
    os.environ |= server.environment()
    server.start(served)
    yield server
    server.kill()
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="module")
def whole(served, tmp_path_factory):
    """What a run on the folder ends with."""
    run = tmp_path_factory.mktemp("whole") / "run"
    pretrain(build("ressl"), served / "images" / "train", STREAMED, run)
    return final(run)


@pytest.fixture(scope="module")
def memory(served):
    system = fsspec.filesystem("memory")
    for path in served.rglob("*"):
        if path.is_file():
            system.pipe(f"/{path.relative_to(served)}", path.read_bytes())


FORMS = ["images/train", "tars", "tars/{000..002}.tar", "packed/*.tar.gz", "a.zip", "a.parquet"]
FORMS += ["list.csv", "saved", "both:train"]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_server_holds_is_what_the_disk_holds(served, s3, cache, form):
    remote, local = load(f"s3://images/{form}"), load(f"{served}/{form}")
    assert remote.names == local.names and remote.digest == local.digest
    assert remote.classes == local.classes and remote.labels.tolist() == local.labels.tolist()
    for index in (0, 31, 63):
        np.testing.assert_array_equal(np.array(remote.image(index)), np.array(local.image(index)))
    assert remote.source in (f"s3://images/{form}", f"s3://images/{form.replace(':', '/')}")
    assert len(list(cache.iterdir())) > 0 and load(remote.source).digest == remote.digest
    sent = pickle.loads(pickle.dumps(remote))  # as to processes that are not forked
    assert np.array_equal(np.array(sent.image(5)), np.array(local.image(5)))


def test_splits_at_an_address(served, memory, cache):
    train, val = load_splits("memory://images")
    assert (len(train), len(val)) == (64, 20) and train.classes == val.classes
    assert train.digest == load(served / "images" / "train").digest
    assert load("memory://images:val").digest == val.digest
    model = build().student.backbone
    np.testing.assert_array_equal(
        extract(model, "memory://a.zip", workers=2), extract(model, served / "a.zip", workers=0)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_waits_for_a_server_that_died_then_saves_and_goes_on(
    served, s3, whole, cache, tmp_path, workers, capfd
):
    config = dataclasses.replace(STREAMED, workers=workers, cache_gib=2e4 / 2**30)

    def kill(line):
        if line["step"] == 3:
            s3.kill()

    address = "s3://images/images/train"
    saved = r"no answer in 3 tries over 0.15 s \(.*\); saved at step \d+, `cgh resume .*/run`$"
    try:
        with pytest.raises(NetworkError, match=f"^{address}/class.*: {saved}"):
            pretrain(build("ressl"), address, config, tmp_path / "run", on_log=kill)
    finally:
        s3.start(served)
    assert "; trying again in 0.1 s" in capfd.readouterr().err
    pretrain(build("ressl"), address, config, tmp_path / "run", resume=True)
    found = final(tmp_path / "run")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert sum(path.stat().st_size for path in cache.iterdir()) <= 2e4


@pytest.mark.parametrize("data, workers", [("a.parquet", STREAMED.workers), ("saved", 2)])
def test_a_run_at_an_address_that_was_stopped_ends_in_another_process_in_the_same_bits(
    s3, whole, cache, tmp_path, monkeypatch, data, workers
):
    config = dataclasses.replace(STREAMED, workers=workers)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(build("ressl"), f"s3://images/{data}", config, tmp_path / "run")
    shutil.rmtree(cache)
    done = cgh("resume", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = final(tmp_path / "run")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert [path.name for path in cache.parent.iterdir()] == ["files"]  # no links are left


def test_what_was_changed_at_an_address_is_not_taken_for_what_was_listed(s3, cache, tmp_path):
    system = fsspec.filesystem("s3")
    for path in make_images(tmp_path / "set", 4).rglob("*.png"):
        system.pipe(f"images/changed/{path.parent.name}/{path.name}", path.read_bytes())
    images = load("s3://images/changed")
    shutil.rmtree(cache, ignore_errors=True)
    other = make_images(tmp_path / "other", 1, seed=3) / "class0" / "00000.png"
    system.pipe("images/changed/class0/00000.png", other.read_bytes())
    with pytest.raises(InputError, match="changed/class0/00000.png: was changed since it was list"):
        images.image(0)
    assert images.image(1).size == (32, 32)


def test_an_address_of_nothing_or_of_no_server_is_one_sentence(s3, cache, monkeypatch):
    for address in ("s3://images/nothing", "s3://nobody/a.tar", "s3://images/tars/*.zip"):
        with pytest.raises(InputError, match=f"{address[:11]}.*: there is nothing .*; mend the ad"):
            load(address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(fsspec.filesystem("s3")).clear_instance_cache()
    with pytest.raises(NetworkError, match=r"s3://images/a.zip: no answer \(.*\); try again when"):
        load("s3://images/a.zip")
    type(fsspec.filesystem("s3")).clear_instance_cache()  # other tests have a server


def test_a_cache_that_cannot_be_written_is_one_sentence(memory, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        InputError, match=r"memory://.*: cannot be kept \(.*\); make room there, or"
    ):
        load("memory://a.zip")


def test_a_file_of_a_web_server_is_read(served, cache):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = load(f"http://127.0.0.1:{server.server_port}/a.zip")
        server.shutdown()
    assert images.digest == load(served / "a.zip").digest and images.image(3).size == (32, 32)
    with pytest.raises(NetworkError, match="no answer"):
        load(f"http://127.0.0.1:{server.server_port}/a.zip")


@pytest.mark.parametrize("error", [PermissionError("ExpiredToken"), FileNotFoundError("gone")])
def test_a_key_that_expired_makes_no_image_bad(memory, cache, monkeypatch, error):
    images = load("memory://images/train", pixel_range="8-bit")
    shutil.rmtree(cache, ignore_errors=True)

    def refuse(file):
        raise error

    monkeypatch.setattr(file_cache, "_fetched", refuse)
    with pytest.raises(NetworkError, match=r"memory://.*class0/.*png: .*; mend the address, or gi"):
        images.load_or_substitute(3)
    assert images.bad == {}


def test_a_file_that_another_process_makes_is_not_removed(memory, cache):
    load("memory://a.zip")
    making, left = cache / "x.1.tmp", cache / "y.2.tmp"
    for path in (making, left):
        path.write_bytes(bytes(1000))
    os.utime(left, (1, 1))
    file_cache._evict(file_cache.Cache(cache, 1), cache / "none")
    assert [path.name for path in cache.iterdir()] == [making.name]


def test_kept_embeddings_go_by_the_time_of_change_at_an_address(served, memory, cache, tmp_path):
    system = fsspec.filesystem("memory")
    for form in ("images/val", "a.parquet"):
        images = load(f"memory://{form}")
        assert isinstance(images.changed(0), int) and images.changed(0) < 2**63
    one, other = (file_cache.CachedFile("s3://a", 1, tag, None) for tag in ("x", "y"))
    assert (
        one.changed != other.changed and file_cache.CachedFile("s3://a", 1, "", None).changed == 0
    )
    assert system.exists("/a.parquet")


def test_messages_name_an_address_as_it_is_written(memory, cache):
    images = load("memory://images/train")
    assert images.where(0).startswith("memory:///images/train/class0/")
    assert images.place == "memory:///images/train"


# --- lists and saved datasets


def test_a_list_names_images_by_address_or_from_its_own(served, s3, cache, tmp_path):
    images = load("s3://images/lists/mixed.txt")
    assert len(images) == 64 and images.skipped == {"comment": 1}
    where = {images.where(index) for index in range(64)}
    assert where == {
        f"s3://images/images/train/{name}" for name in load(served / "images" / "train").names
    }
    (tmp_path / "local.txt").write_text("\n".join(sorted(where)))
    assert load(tmp_path / "local.txt").image(7).size == (32, 32)
    for address in (images.where(0), "s3://images/list.csv"):
        with pytest.raises(InputError, match="there is no|holds other files; give .*end.* in .txt"):
            load(f"{address}x")
    system = fsspec.filesystem("s3")
    system.pipe("images/lists/odd.txt", b"../images/train/class0/00000.png\n../nothing.png\n/a.png")
    missing = "s3://images/lists/odd.txt: 2 of its 3 lines are not files, the first is '../nothing"
    with pytest.raises(InputError, match=missing):
        load("s3://images/lists/odd.txt")


def test_a_table_at_an_address_has_splits(served, memory, cache):
    rows = (served / "list.csv").read_text().replace(",class", ",train,class").splitlines()[1:]
    rows[::4] = [row.replace(",train,", ",val,") for row in rows[::4]]
    text = "\n".join(["path,split,label", *rows])
    fsspec.filesystem("memory").pipe("/splits.csv", text.encode())
    train, val = load_splits("memory://splits.csv")
    assert (len(train), len(val)) == (48, 16) and {*val.classes} <= {*train.classes}
    assert len(load("memory://splits.csv:val")) == 16
    paths = [path.relative_to(served) for path in sorted((served / "images").rglob("*.png"))]
    fsspec.filesystem("memory").pipe("/all.txt", "\n".join(map(str, paths)).encode())
    assert len(load("memory://all.txt")) == 84  # folders in a list are no splits


def test_a_parquet_file_at_an_address_names_images_from_its_own(served, memory, cache):
    import pyarrow as pa
    from pyarrow import parquet

    names = [f"images/train/{name}" for name in load(served / "images" / "train").names]
    parquet.write_table(pa.table({"path": names}), served / "names.parquet")
    fsspec.filesystem("memory").put(str(served / "names.parquet"), "/names.parquet")
    images = load("memory://names.parquet")
    assert images.digest == load(served / "names.parquet").digest
    assert images.image(9).size == (32, 32)


def test_a_list_of_a_web_server_that_forbids_what_it_has_not(served, cache):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_error(self, code, *rest):
            super().send_error(403, *rest)

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = load(f"http://127.0.0.1:{server.server_port}/list.csv")
        assert images.digest == load(served / "list.csv").digest
        assert images.image(3).size == (32, 32)
        server.shutdown()


def test_a_run_on_a_list_at_an_address_is_that_on_its_folder(s3, whole, cache, tmp_path):
    config = dataclasses.replace(STREAMED, workers=2, cache_gib=2e4 / 2**30)
    pretrain(build("ressl"), "s3://images/list.csv", config, tmp_path / "run")
    found = final(tmp_path / "run")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert sum(path.stat().st_size for path in cache.iterdir()) <= 2e4


def test_a_saved_dataset_at_an_address_stays_readable_and_what_cannot_be_is_a_sentence(
    served, s3, cache
):
    train, val = load_splits("s3://images/both")
    assert len(train) == len(val) == 64 and train.place == "s3://images/both/train"
    shutil.rmtree(cache)
    assert train.image(40).size == (32, 32)
    with pytest.raises(InputError, match="s3://images/both: holds the splits train, test; give"):
        load("s3://images/both")
    with pytest.raises(InputError, match="s3://images/both: has no one split 'other'"):
        load("s3://images/both:other")
    whole = "s3://images/saved: .* GiB, which are fetched as a whole, more than --cache-gib .*e-05"
    with pytest.raises(InputError, match=whole):
        load("s3://images/saved", cache_gib=2e-5)
