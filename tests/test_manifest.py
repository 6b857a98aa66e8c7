"""The manifest in the package is the one at the root."""

import json
from pathlib import Path

import cgh_models


def test_both_copies_are_equal_and_of_schema_1():
    packaged = (Path(cgh_models.__file__).parent / "weights_manifest.json").read_bytes()
    root = Path(__file__).resolve().parents[1] / "weights_manifest.json"
    assert packaged == root.read_bytes()
    manifest = json.loads(packaged)
    assert manifest["schema"] == 1 and isinstance(manifest["weights"], list)
