"""A picture of a run from its log: the loss and the kNN accuracy over the steps."""

import contextlib
import json
import math
from pathlib import Path

from ..errors import say

Line = dict[str, float]


def read_log(path: Path) -> list[Line]:
    """The whole lines of a metrics.jsonl; none if it is not there."""
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a run that was killed while it wrote
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def save_curve(log: list[Line], path: Path) -> None:
    """Draws the loss and the kNN accuracy side by side; nothing if the log has neither twice.

    Args:
        log: the lines of metrics.jsonl.
        path: the PNG file to write; equal logs give equal bytes.
    """
    knn = "knn" if any("knn" in line for line in log) else "knn_train"  # without val/ images
    panels = {"loss": _points(log, "loss"), "kNN on a sample, %": _points(log, knn)}
    panels = {title: points for title, points in panels.items() if len(points) > 1}
    if not panels:
        return
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        say(f"{path.name} is not drawn: matplotlib is missing; pip install '.[report]'")
        return
    with style.context("default"):
        figure = Figure(figsize=(4.2 * len(panels), 2.6), dpi=100, layout="constrained")
        for place, (title, points) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), place, title=title, xlabel="step")
            axes.plot([step for step, _ in points], [value for _, value in points])
        figure.savefig(path, metadata={"Software": None})


def _points(log: list[Line], key: str) -> list[tuple[float, float]]:
    """(step, value) of the lines that have a finite value under this key."""
    return [(line["step"], line[key]) for line in log if math.isfinite(line.get(key, math.nan))]
