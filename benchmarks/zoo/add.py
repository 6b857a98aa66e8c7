"""Puts a weights folder into this checkout."""

import shutil
from pathlib import Path

from cgh_models import manifest
from cgh_models.integrity import verify

REPO = Path(__file__).resolve().parents[2]


def add(folder: Path, *, packaged: bool, heads: bool) -> None:
    """Copies the files that `cgh verify` accepts, then writes the row into both copies of the manifest.

    Args:
        packaged: the backbone goes into the wheel (cgh_models/weights/NAME/), not beside it (weights/NAME/).
        heads: they come along, beside the wheel.
    """
    verify(folder.resolve())
    row = manifest.read_row(folder)
    if not heads:
        row["files"].pop(manifest.HEADS, None)
    for file in row["files"]:
        root = manifest.PACKAGE if packaged and file == manifest.BACKBONE else REPO
        target = root / "weights" / row["name"] / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, target)
        print(target.relative_to(REPO))
    for path in (REPO / manifest.MANIFEST.name, manifest.MANIFEST):
        manifest.add(path, row)
