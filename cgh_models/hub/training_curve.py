"""A picture of a run from its log: the loss and the kNN accuracy over the steps."""

import math
from pathlib import Path

from ..errors import say

Line = dict[str, float]


def save_curve(log: list[Line], path: Path) -> None:
    """Writes a PNG of loss and kNN accuracy side by side; nothing if the log has neither twice."""
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
    return [(line["step"], line[key]) for line in log if math.isfinite(line.get(key, math.nan))]
