"""The picture of a run shows its log."""

import json

import numpy as np
import pytest

from cgh_models.hub.training_curve import curve, read_log


def heights(picture, panel: int) -> np.ndarray:
    """Row of the topmost blue pixel in each column of a panel, from its left edge to its right."""
    pixels = np.asarray(picture).astype(int)[:, 420 * panel + 46 : 420 * (panel + 1) - 46]
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    assert blue.any(0).all()
    return blue.argmax(0)


def test_a_falling_loss_falls_and_a_rising_knn_rises():
    log = [{"step": step, "loss": 9 - step / 100} for step in range(1, 500)]
    log += [{"step": step, "knn": 20 + step / 10} for step in (0, 250, 499)]
    picture = curve(log)
    assert picture.size == (840, 260)
    assert (np.diff(heights(picture, 0)) >= 0).all() and (np.diff(heights(picture, 1)) <= 0).all()
    assert curve(log[:-3]).size == (420, 260)


@pytest.mark.parametrize("log", [[], [{"step": 3, "loss": 1.0}], [{"step": n, "loss": float("nan")} for n in range(9)]])
def test_nothing_is_drawn_of_nothing(log):
    assert curve(log) is None


def test_a_constant_loss_is_a_line_in_the_middle():
    assert abs(heights(curve([{"step": n, "loss": 2.0} for n in range(9)]), 0) - 130).max() <= 2


def test_a_torn_line_of_a_log_is_passed_over(tmp_path):
    (tmp_path / "log").write_text(json.dumps({"step": 1, "loss": 2}) + '\n{"step": 2, "lo')
    assert read_log(tmp_path / "log") == [{"step": 1, "loss": 2}] and read_log(tmp_path / "none") == []
