"""Publishes the manifest's rows that have no pin yet, and pins them."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

from cgh_models.hub import fetch, manifest
from cgh_models.hub.card import CURVE
from cgh_models.hub.publish import publish
from cgh_models.hub.row import BACKBONE, HubPin, Row
from cgh_models.hub.weights_folder import write_description

from .tables import REPO

COPIES = [REPO / manifest.MANIFEST.name, manifest.MANIFEST]


def publish_rows(org: str) -> int:
    """Publishes to ``org``, one after the other, what has no pin and is in this checkout.

    A row is pinned in both copies of the manifest, and in its folder, before the next one begins;
    a row whose bytes are on the Hub already is pinned to the commit there.

    Returns:
        how many that were.

    Raises:
        Errors of `cgh_models.hub.publish.publish`, for the first row that fails.
    """
    unpinned = {row.name for path in COPIES for row in manifest.read(path) if not row.hub}
    pinned = 0
    for row in manifest.read(COPIES[0]):
        places = {fetch.location(row, file) for file in row.files}
        if not places <= {"packaged", "checkout"}:
            print(f"{row.name}: left as it is, not all of its files are in this checkout")
            continue
        home = fetch.fetch(row, BACKBONE).parent
        if row.name in unpinned:
            row.hub = _publish(row, home, f"{org}/{row.name}")
            pinned += 1
        print(f"{row.name}: pinned, {row.hub.repo_id} at {row.hub.revision}", flush=True)
        described = manifest.read_row(home)
        if described.hub != row.hub:
            write_description(home, dataclasses.replace(described, hub=row.hub))
    return pinned


def _publish(row: Row, home: Path, repo: str) -> HubPin:
    with tempfile.TemporaryDirectory() as scratch:  # heads may lie beside, not in the wheel
        paths = {file: fetch.fetch(row, file) for file in row.files}
        paths |= {file: home / file for file in ("config.json", CURVE) if (home / file).is_file()}
        for file, path in paths.items():
            target = Path(scratch, file)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        write_description(Path(scratch), row)
        return HubPin(repo, publish(Path(scratch), repo, private=False, manifests=COPIES)[0])
