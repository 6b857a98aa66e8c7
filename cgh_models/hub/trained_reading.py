"""How files became pixels in the training of weights."""

import os

from ..config import Reading
from ..dataclass_json import BEFORE
from ..train import checkpoint
from ..train.checkpoint import is_run
from . import manifest


def trained_reading(weights: str | os.PathLike[str]) -> Reading:
    """How files became pixels in the training of weights, as arguments of `load`.

    pixel_range is "auto" if that is not known.
    """
    folder = manifest.find_folder(weights)
    if folder and is_run(folder):
        settings = checkpoint.read_run(folder)["train"]
    else:
        row = manifest.find_row(weights)
        in_chans = row.in_chans if row else 3
        if row is None or not row.train_config:
            return {"pixel_range": "auto", "reader": "", "in_chans": in_chans}
        settings = row.train_config | {"in_chans": in_chans}
    before = {"pixel_range": BEFORE["pixel_range"], "in_chans": 3, "reader": ""}
    return Reading(**{name: settings.get(name, value) for name, value in before.items()})
