"""Puts a weights folder that `cgh verify` accepts into this checkout: python benchmarks/package_row.py FOLDER

The backbone goes into the package (cgh_models/weights/NAME/), the heads beside it (weights/NAME/), the row into both
copies of the manifest.
"""

import shutil
import sys
from pathlib import Path

from cgh_models import manifest
from cgh_models.integrity import verify

REPO = Path(__file__).resolve().parents[1]


def main(folder: Path) -> None:
    """Copies the files, then writes the rows."""
    verify(folder.resolve())
    row = manifest.read_row(folder)
    for file in row["files"]:
        root = manifest.PACKAGE if file == manifest.BACKBONE else REPO
        target = root / "weights" / row["name"] / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, target)
        print(target.relative_to(REPO))
    for path in (REPO / manifest.MANIFEST.name, manifest.MANIFEST):
        manifest.add(path, row)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
