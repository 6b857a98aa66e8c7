"""The curves of runs, all in each drawing: a drawing for each number of their logs."""

from typing import Any

import numpy as np

from .page import drawing, library
from .runs import NORMAL, Run

# Colours that stay apart for most eyes and on print (Okabe and Ito, 2008), after the page's own.
COLOURS = ("#2c6fbb", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#444444", "#e69f00")
_MOST_POINTS = 240  # of a line; of more, means and ranges
_FIRST = ("knn", "knn_train", "loss")  # of the drawings; then the parts of the loss
_LAST = ("effective_rank", "feature_std", "lr", "grad_norm", "images_per_second")
_TITLES = {
    "loss": "total loss",
    "knn": "kNN on val/, %",
    "knn_train": "kNN among training images, %",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "effective_rank": "effective rank of the embeddings",
    "feature_std": "spread of the embeddings (feature_std)",
    "images_per_second": "images a second",
}


def colour(number: int) -> str:
    """The colour of the run with this number."""
    return COLOURS[number % len(COLOURS)]


def panels(runs: list[Run]) -> list[dict[str, object]]:
    """Title and drawing of each number that two measurements or steps of a run have."""
    logged = dict.fromkeys(name for run in runs for name in run.names(measured=False))
    parts = [name for name in logged if name not in (*_FIRST, *_LAST)]
    found = []
    for name in (*_FIRST, *parts, *_LAST):
        if any(len(run.points(name)[0]) > 1 for run in runs):
            found.append({"title": _TITLES.get(name, name), "drawing": _panel(runs, name)})
    return found


def _panel(runs: list[Run], name: str) -> str:
    figure = library("matplotlib.figure").Figure(figsize=(4.2, 2.5), layout="constrained")
    with library("matplotlib.style").context("default"):
        axes = figure.add_subplot(1, 1, 1, xlabel="epochs")
        for number, run in enumerate(runs):
            epochs, values = (np.array(column, float) for column in run.points(name))
            if not len(values):
                continue
            _line(axes, epochs, values, colour(number))
            if name in ("knn", "knn_train"):
                axes.axhline(values[0], color=colour(number), linewidth=1, linestyle=":")
        if name in NORMAL:
            axes.axhspan(*NORMAL[name], color="#1a7f4b", alpha=0.06, linewidth=0)
        axes.set_xlim(0, max(run.described["train"]["epochs"] for run in runs))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
        return drawing(figure)


def _line(axes: Any, epochs: np.ndarray, values: np.ndarray, colour: str) -> None:
    """A line through all points, or through the means of as many pieces; then their range, pale."""
    finite = np.isfinite(values)
    epochs, values = epochs[finite], values[finite]
    if len(values) <= _MOST_POINTS:
        few = len(values) <= 60
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker="o" if few else "", ms=3)
        return
    pieces = np.array_split(np.arange(len(values)), _MOST_POINTS)
    middle = [epochs[piece].mean() for piece in pieces]
    low = [values[piece].min() for piece in pieces]
    high = [values[piece].max() for piece in pieces]
    axes.fill_between(middle, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(middle, [values[piece].mean() for piece in pieces], color=colour, linewidth=1.6)
