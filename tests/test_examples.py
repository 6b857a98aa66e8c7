"""Every example runs as it is, in another folder, and stays short."""

from pathlib import Path

import pytest
from conftest import python, unpack_photographs

RUN = """
import os, runpy, sys
path = sys.argv.pop(1)
sys.path.insert(0, os.path.dirname(path))
runpy.run_path(path, run_name="__main__")
"""
EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_stays_under_sixty_lines(path):
    assert len(path.read_text("utf-8").splitlines()) < 60


@pytest.fixture
def photographs(tmp_path):
    """ROOT with 20 training and 10 other photographs of each class, of those in the package."""
    return unpack_photographs(tmp_path / "photographs", train=20, val=10)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(path, tmp_path, photographs):
    if path.stem == "log_to_mlflow":
        pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow-skinny")
    words = [photographs] if path.stem == "continue_pretraining" else []
    store = {"MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    done = python(RUN, path, *words, cwd=tmp_path, env=store)
    assert done.returncode == 0, done.stderr[-800:]
    if path.stem == "continue_pretraining":
        assert done.stdout.count("after two epochs") == 2
    if path.stem == "log_to_mlflow":
        (loss,) = tmp_path.glob("mlruns/*/*/metrics/loss")
        assert [int(line.split()[2]) for line in loss.open()] == list(range(1, 15))  # steps
