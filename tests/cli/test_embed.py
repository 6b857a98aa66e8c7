"""`cgh embed` and `cgh neighbours`: a file and a page, a stop that is gone on from, mistakes."""

import json
import os
import signal
import time

import numpy as np
import pytest
from conftest import CGH, PACKAGED, Forked, make_images

from cgh_models import create_model, extract

COMMON = [PACKAGED, "--device", "cpu", "--workers", 0]


@pytest.fixture
def here(in_process, capsys):
    """Runs a command in this process, in a folder of the test's; gives code, stdout, stderr."""

    def run(*words):
        try:
            return 0, *in_process(*words)
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()

    return run


def test_embed_writes_the_file_and_says_in_json_what_is_in_it(here, image_root, tmp_path):
    words = ["embed", *COMMON, "--data", image_root / "val"]
    code, out, _ = here(*words, "--out", "e.npy")
    assert code == 0 and json.loads(out) == {
        "out": "e.npy",
        "images": 20,
        "left_out": 0,
        "shape": [256],
        "dtype": "float32",
    }
    expected = extract(create_model(PACKAGED), image_root / "val", workers=0)
    assert np.array_equal(np.load(tmp_path / "e.npy"), expected)
    code, out, _ = here(*words, "--out", "m.npz", "--layer", "-2", "--dense", "--dtype", "float16")
    assert json.loads(out)["shape"] == [128, 8, 8] and json.loads(out)["dtype"] == "float16"
    code, out, _ = here(*words, "--out", "h.npz", "--hypercolumn")
    assert json.loads(out)["shape"] == [128 + 256]
    code, out, _ = here(*words, "--out", "r.npz", "--random")
    about = json.loads(str(np.load(tmp_path / "r.npz")["about"]))
    assert about["weights"] == f"{PACKAGED} (untrained)"
    assert not np.allclose(np.load(tmp_path / "r.npz")["embedding"], expected)


def test_mistakes_are_one_sentence(here, image_root):
    words = ["embed", *COMMON, "--data", image_root / "val", "--out"]
    for more, message in (
        (["e.json"], "--out e.json: expected a name that ends in .parquet, .npz, .npy, .csv"),
        (["e.npy", "--layer", "head"], "or one of act1, layer1, layer2, layer3, layer4"),
        (["e.npy", "--layer", "1", "--hypercolumn"], "a hypercolumn has layers of its own"),
        (["absent/folder/e.npy", "--taps", "0", "--hypercolumn"], "--taps 0: expected"),
    ):
        code, out, err = here(*words, *more)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err


def test_a_run_that_is_told_to_end_exits_with_75_and_the_same_command_goes_on(
    here, tmp_path, image_root
):
    make_images(tmp_path / "images", 200)
    words = ["embed", *COMMON, "--data", "images", "--batch-size", 4, "--out", "e.npz"]
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        process = Forked(CGH, *words, cwd=tmp_path)
        before = len(list((tmp_path / "e.npz.part").glob("0*")))
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "e.npz.part").glob("0*"))) < before + 3:
            assert process.runs() and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        done = process.end(120)
        err = done.stderr
        assert done.returncode == code, err
        if code == 75:
            assert err.startswith("saved: e.npz.part: ") and "the same command goes on" in err
    done = here(*words)
    assert json.loads(done[1])["images"] == 200 and not (tmp_path / "e.npz.part").exists()
    whole = here(*words[:-1], "whole.npz")
    assert whole[0] == 0
    assert (tmp_path / "e.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_neighbours_writes_a_page_and_its_numbers(here, image_root, tmp_path):
    words = ["neighbours", *COMMON, "--data", image_root / "train", "--out", "page.html"]
    code, out, _ = here(*words, "--count", 3, "--k", 4, "--cache", "cache")
    found = json.loads(out)
    assert code == 0 and (tmp_path / "page.html").stat().st_size < 5_000_000
    assert found["images"] == 64 and len(found["outliers"]) == 24 and found["same_class"] > 0.5
    page = (tmp_path / "page.html").read_text()
    assert PACKAGED in page and page.count('class="row"') == 3 + found["groups"] + 1
    query = image_root / "val" / "class0" / "00000.png"
    again = json.loads(here(*words, "--query", query, query, "--k", 4, "--cache", "cache")[1])
    assert again["outliers"] == found["outliers"]
    assert (tmp_path / "page.html").read_text().count('class="query"') == 2
    code, _, err = here(*words, "--k", 0)
    assert code == 2 and err == "error: --k 0: expected at least 1\n"
    code, _, err = here(*words[:-1], "absent/page.html")
    assert code == 2 and "--out absent/page.html: there is no such folder" in err
