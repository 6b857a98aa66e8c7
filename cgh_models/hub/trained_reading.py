"""How files became pixels in the training of weights."""

import os
from typing import Any

from ..config import BEFORE
from ..train import checkpoint
from ..train.checkpoint import is_run
from . import manifest


def trained_reading(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """How files became pixels in the training of weights, as arguments of `load`.

    pixel_range is "auto" if that is not known.
    """
    folder = manifest.find_folder(weights)
    of_row = {"in_chans": 3}
    settings: dict[str, Any] | None = None
    if folder and is_run(folder):
        settings = checkpoint.read_run(folder)["train"]
    elif str(weights) in manifest.rows() or (folder and (folder / manifest.ROW_FILE).is_file()):
        row, _ = manifest.find(weights)
        of_row = {"in_chans": row.in_chans}
        settings = row.train_config and row.train_config | of_row
    if not settings:
        return {"pixel_range": "auto", "reader": ""} | of_row
    before = {"pixel_range": BEFORE["pixel_range"], "in_chans": 3, "reader": ""}
    return {name: settings.get(name, value) for name, value in before.items()}
