"""The scripts of this folder with small counts, and the table of docs/reliability.md."""

import os
import re
import sys
from pathlib import Path

import pytest
import run
from conftest import python

REPO = Path(__file__).resolve().parents[2]
RUN = f"import runpy; runpy.run_path({run.__file__!r}, run_name='__main__')"
LEAST = {"launched_runs": 2, "stop_signals": 12}  # tries; of the others, which are quicker, 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, signals and /proc as Linux has them")
@pytest.mark.parametrize("name", run.NAMES)
def test_every_try_holds(name):
    if name == "launched_runs" and "CGH_LONG" not in os.environ:
        pytest.skip("a minute of two cores: set CGH_LONG=1; test_distributed_page kills a rank")
    done = python(RUN, "--quick", name, cwd=REPO)
    if "skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    held, tried = map(int, re.findall(r"\d+", done.stdout)[:2])
    assert held == tried >= LEAST.get(name, 20)


def test_the_table_of_counts_is_that_of_the_kept_results():
    text = run.DOCUMENT.read_text("utf-8")
    found = text.split("<!-- counts -->\n")[1].split("\n<!-- /counts -->")[0]
    assert found == run.table() and len(found.splitlines()) == 2 + len(run.NAMES)


@pytest.mark.parametrize("before", ["", "| rows |\n"])
def test_a_new_table_leaves_the_text_around_it(tmp_path, monkeypatch, before):
    text = run.DOCUMENT.read_text("utf-8")
    for part in ("\nOne script: ", "\n## How\n", "\n## What this does not show\n"):
        assert part in text.partition("<!-- /counts -->")[2]
    monkeypatch.setattr(run, "DOCUMENT", tmp_path / "reliability.md")
    run.DOCUMENT.write_text(text.replace(run.table() + "\n", before), "utf-8")
    run.write_table()
    assert run.DOCUMENT.read_text("utf-8") == text


def test_make_faults_runs_every_script():
    scripts = re.findall(r"^FAULTS \+?= (.*)$", (REPO / "Makefile").read_text(), re.M)
    assert " ".join(scripts).split() == list(run.NAMES)
