"""`cgh report WEIGHTS`: what a set of weights is, and what it makes of some images."""

import base64
from pathlib import Path
from typing import Any

from ..data.image_set import load
from ..errors import printable
from ..evaluate.protocols import EvalSettings
from ..hub import manifest
from ..hub.registry import create_model
from ..hub.trained_reading import trained_reading
from ..version import __version__
from . import before_after
from .page import write_page

_FIRST = ("name", "architecture", "parameters", "method", "data.name", "data.images", "epochs")
_FIRST += ("metrics.knn.value", "metrics.knn.data", "metrics.linear.value", "metrics.linear.data")
_FIRST += ("license", "notes")
_LEFT_OUT = ("fingerprint", "files.")


def weights_page(
    weights: str, out: Path, data: str, count: int, settings: EvalSettings, reader: str = ""
) -> None:
    """Writes the page: the row, the curve of the training and, with ``data``, what it shows."""
    model = create_model(weights)
    folder = manifest.find_folder(weights)
    row = None
    if weights in manifest.rows() or (folder and (folder / manifest.ROW_FILE).is_file()):
        row = manifest.find(weights)[0]
        folder = folder or manifest.PACKAGE / "weights" / row.name
    shown: dict[str, Any] = {"gallery": [], "map": None, "note": "", "same_class": []}
    if data:
        how: dict[str, Any] = trained_reading(weights) | {"reader": reader}
        images = load(data, **how)
        sample = before_after.sample_of(images, [model], count)
        networks = [before_after.learned("", model, sample, settings)]
        rows = [row for group in before_after.gallery(networks, sample) for row in group]
        shown["gallery"] = [rows]
        shown["same_class"] = before_after.same_class(networks, sample)
        shown["map"] = before_after.maps(networks, sample)
        shown["note"] = before_after.images_of(sample)
    facts = dict(_facts(row.to_json())) if row else {}
    write_page(
        out,
        "weights.html",
        title=f"What {printable(weights)} learned",
        version=__version__,
        facts=[(name, facts.pop(name)) for name in _FIRST if name in facts],
        further=list(facts.items()),
        curve=_picture_file(folder / "curve.png") if folder else "",
        **shown,
    )


def _facts(row: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The values of a row by their names, those inside of others too."""
    facts = []
    for name, value in row.items():
        full = f"{prefix}{name}"
        if full.startswith(_LEFT_OUT) or value in (None, [], "", {}):
            continue
        if isinstance(value, dict):
            facts += _facts(value, f"{full}.")
        elif isinstance(value, list):
            facts.append((full, printable(" ".join(map(str, value)))))
        else:
            facts.append((full, f"{value:,}" if type(value) is int else printable(value)))
    return facts


def _picture_file(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
