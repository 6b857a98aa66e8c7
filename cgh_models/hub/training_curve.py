"""A picture of a run from its log: the loss, and kNN accuracy where it was measured, over the steps."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _MARGIN = 420, 260, 44  # pixels, of a panel
_COLOUR, _GREY = (31, 92, 153), (110, 110, 110)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; none if it is not there."""
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a run that was killed while it wrote
            lines.append(json.loads(text))
    return lines


def curve(log: list[dict[str, Any]]) -> Image.Image | None:
    """A panel for the loss and one for kNN, side by side; None if the log has neither twice.

    Args:
        log: the lines of metrics.jsonl.
    """
    nothing = math.nan
    found = {
        "loss": [(line["step"], line.get("loss", nothing)) for line in log],
        # Of val/ against train/, or among the training images where no others were named.
        "kNN on a sample, %": [(line["step"], line.get("knn", line.get("knn_train", nothing))) for line in log],
    }
    found = {title: [point for point in points if math.isfinite(point[1])] for title, points in found.items()}
    panels = {title: points for title, points in found.items() if len(points) > 1}
    if not panels:
        return None
    image = Image.new("RGB", (_WIDTH * len(panels), _HEIGHT), "white")
    for place, (title, points) in enumerate(panels.items()):
        _draw(ImageDraw.Draw(image), _WIDTH * place, title, points)
    return image


def _draw(draw: ImageDraw.ImageDraw, left: int, title: str, points: list[tuple[int, float]]) -> None:
    last, values = points[-1][0], [value for _, value in points]
    low, high = min(values), max(values)
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def place(step: float, value: float) -> tuple[float, float]:
        share = (value - low) / (high - low) if high > low else 0.5
        return left + _MARGIN + width * step / max(last, 1), _MARGIN + height * (1 - share)

    draw.rectangle([left + _MARGIN, _MARGIN, left + _MARGIN + width, _MARGIN + height], outline=_GREY)
    draw.line([place(*point) for point in points], fill=_COLOUR, width=2)
    font = ImageFont.load_default(13)
    draw.text((left + _MARGIN, _MARGIN - 20), title, fill="black", font=font)
    for value in {low, high}:
        draw.text((left + _MARGIN - 4, place(0, value)[1]), f"{value:.3g}", fill=_GREY, font=font, anchor="rm")
    draw.text((left + _MARGIN + width, _MARGIN + height + 6), f"step {last}", fill=_GREY, font=font, anchor="ra")
