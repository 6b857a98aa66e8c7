"""How long a ResNet-50 takes to load: a .pth with torch.load, against a published row.

    python benchmarks/load.py

Interleaved in one process, median of nine; the row's sha256 is checked in every first load. Random
weights: only sizes and work matter here.
"""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from unittest import mock

import timm
import torch
from side_by_side import milliseconds, table

from cgh_models.backbone import skeleton
from cgh_models.hashing import sha256
from cgh_models.hub import fetch as hub
from cgh_models.hub import manifest, registry
from cgh_models.hub.row import BACKBONE, FileEntry, Row
from cgh_models.tensors import write_tensors

ROUNDS = 9


def a_row(folder: Path, state: dict, dtype: torch.dtype) -> Row:
    """A row whose backbone lies in ``folder`` as if it had been packaged."""
    name = f"resnet50.{str(dtype).rpartition('.')[2]}"
    path = folder / name / BACKBONE
    path.parent.mkdir()
    write_tensors(path, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    row = manifest.row(manifest.names()[0])
    files = {BACKBONE: FileEntry(path.stat().st_size, sha256(path))}
    return dataclasses.replace(row, name=name, architecture="resnet50", files=files)


def main() -> None:
    """Prints milliseconds and ratios."""
    state = timm.create_model("resnet50", num_classes=0).state_dict()
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(hub, "_PACKAGED", Path(scratch)),
        contextlib.ExitStack() as patches,
    ):
        torch.save(state, Path(scratch) / "resnet50.pth")
        rows = {
            dtype: a_row(Path(scratch), state, dtype) for dtype in (torch.float32, torch.float16)
        }

        published_rows = {row.name: row for row in rows.values()}
        patches.enter_context(mock.patch.object(manifest, "rows", return_value=published_rows))

        def usual():
            model = timm.create_model("resnet50", num_classes=0)
            model.load_state_dict(torch.load(Path(scratch) / "resnet50.pth", weights_only=True))

        def published(dtype, first):
            if first:
                hub._verified.clear()
            registry.create_model(rows[dtype].name)

        ways = {"create_model + torch.load": usual}
        for dtype in rows:
            for first in (True, False):
                kind = "first load in a process" if first else "later load"
                ways[f"{kind}, {dtype}"] = lambda d=dtype, f=first: published(d, f)
        ways["its modules alone, without weights"] = lambda: skeleton("resnet50")
        table("ready in", milliseconds(ways, ROUNDS))


if __name__ == "__main__":
    main()
