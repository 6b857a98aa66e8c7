"""The picture of a run shows its log."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from cgh_models.hub.export import export, save_curve
from cgh_models.hub.integrity import verify
from cgh_models.train.log_file import read_log

LOG = [{"step": step, "loss": 9 - step / 100} for step in range(1, 500)]
LOG += [{"step": step, "knn": 20 + step / 10} for step in (0, 250, 499)]


def heights(path, panel: int) -> np.ndarray:
    """Row of the topmost blue pixel in each column of a panel that the line crosses."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    pixels = pixels[:, 420 * panel : 420 * (panel + 1)]
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    assert blue.any(0).sum() > 300
    return blue[:, blue.any(0)].argmax(0)


def test_a_falling_loss_falls_and_a_rising_knn_rises(tmp_path):
    save_curve(LOG, tmp_path / "both.png")
    assert Image.open(tmp_path / "both.png").size == (840, 260)
    assert (np.diff(heights(tmp_path / "both.png", 0)[3:-3]) >= 0).all()
    assert (np.diff(heights(tmp_path / "both.png", 1)[3:-3]) <= 0).all()
    save_curve(LOG[:-3], tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == (420, 260)


def test_equal_logs_give_equal_bytes_whatever_the_users_style_is(tmp_path, monkeypatch):
    import matplotlib

    save_curve(LOG, tmp_path / "a.png")
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red"}):
        save_curve(LOG, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules  # it could ask for a display


@pytest.mark.parametrize(
    "log", [[], [{"step": 3, "loss": 1.0}], [{"step": n, "loss": float("nan")} for n in range(9)]]
)
def test_nothing_is_drawn_of_nothing(log, tmp_path):
    save_curve(log, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_run_is_exported_without_its_picture(
    run,
    tmp_path,
    monkeypatch,
    capsys,
):
    for name in ("matplotlib", "matplotlib.style", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    export(run, tmp_path / "w")
    assert "curve.png is not drawn: matplotlib is missing; pip install" in capsys.readouterr().err
    assert "curve.png" not in (tmp_path / "w" / "README.md").read_text()
    assert not (tmp_path / "w" / "curve.png").exists()
    assert verify(tmp_path / "w")["fingerprint_error"] == 0


def test_lines_of_a_log_that_are_torn_or_no_objects_are_passed_over(tmp_path):
    (tmp_path / "log").write_text(json.dumps({"step": 1, "loss": 2}) + '\n5\n{"step": 2, "lo')
    assert read_log(tmp_path / "log") == [{"step": 1, "loss": 2}]
    assert read_log(tmp_path / "none") == []
