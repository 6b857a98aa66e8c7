"""`cgh compare` and `cgh report` on the command line."""

import json

import pytest
from conftest import PACKAGED


@pytest.fixture
def here(in_process):
    """Runs a command in this process, in a folder of the test's; gives stdout."""
    return lambda *words: in_process(*words).out


def test_compare_prints_a_table_or_json_with_the_same_numbers(here, run, image_root):
    words = ["compare", PACKAGED, run, "--data", image_root, "--workers", 0, "--device", "cpu"]
    found = json.loads(here(*words, "--k", 5, "--json"))
    assert found["weights"] == {"a": PACKAGED, "b": str(run)} and found["resamples"] == 10_000
    lines = here(*words, "--k", 5).splitlines()
    assert lines[:2] == [f"A: {PACKAGED}", f"B: {run}"]
    for side in "ab":
        assert f"{found[side]['knn']['value']:.2f} (" in lines[3]
    assert lines[3].startswith("kNN %") and f"{found['knn']['value']:+.2f} (" in lines[3]
    assert f"of 5: {found['common']['value']:.2f} (" in lines[-2]
    assert lines[-1].startswith("20 val images against 64; in brackets 95 % of 10,000")


def test_compare_names_the_weights_that_are_not_there(here, image_root, capsys):
    with pytest.raises(SystemExit, match="2"):
        here("compare", PACKAGED, "nowhere", "--data", image_root)
    assert "nowhere" in capsys.readouterr().err


def test_report_writes_a_page_and_says_where(here, run, image_root, tmp_path):
    out = here("report", run, "--workers", 0, "--device", "cpu", "--images", 40)
    assert (
        out == f"report.html: {len((tmp_path / 'report.html').read_bytes()) / 1e6:.1f} MB, "
        "open it in a browser\n"
    )
    assert "40 of 64 images" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "no run and no weights are given; type `cgh report RUN`"),
        (["x", "--images", "3"], "--images 3: expected at least 20"),
        (["x", "--every", "-1"], "--every -1: expected 0 to 86400, the seconds of a day"),
        (["x", "--every", "nan"], "--every nan: expected 0 to 86400, the seconds of a day"),
        (["no-such-run"], "no-such-run"),
        (["x", "--out", "no/page.html"], "no/page.html: expected a file to write, in a folder"),
    ],
)
def test_a_mistake_in_report_is_one_sentence(here, words, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        here("report", *words)
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
