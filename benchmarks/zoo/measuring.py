"""Measures a trained row, and puts it into this checkout."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from cgh_models.data.image_set import load_splits
from cgh_models.errors import InputError, say
from cgh_models.evaluate import measured
from cgh_models.evaluate.extraction import pick_device
from cgh_models.evaluate.protocols import LINEAR
from cgh_models.files import sha256
from cgh_models.hub import manifest
from cgh_models.hub.card import CURVE
from cgh_models.hub.export import record, write_description
from cgh_models.hub.integrity import verify
from cgh_models.hub.registry import create_model

from . import tables
from .rows import DATA, Wanted
from .training import LOG, TOOK, Place

LARGEST, ALL = 95, 170  # MB of a file, and of all that are shipped: more does not belong into a repository


def measure(row: Wanted, place: Place, linear: bool) -> None:
    """Writes its numbers, and those of an untrained network, into the folder's row; those it has are not repeated.

    Raises:
        InputError: the images that it was trained on are not there.
    """
    folder, how = place.out / row.name, {"device": place.device, "workers": place.workers}
    there = {metric for metric, found in manifest.read_row(folder)["metrics"].items() if found}
    model = create_model(folder)
    torch.manual_seed(0)
    untrained = create_model(row.arch, pretrained=False)
    untrained.pretrained_cfg = model.pretrained_cfg
    # What is not shipped can only be measured in its folder; what is untrained needs no more than an architecture.
    trained, plain = ([row.name], [row.name]) if row.shipped else ([f"weights/{row.name}"], [row.arch])
    networks = (("", model, trained), ("_random", untrained, [*plain, "--random"]))
    for data, kind in ((row.data, "knn"), *((other, "knn_transfer") for other in DATA if other != row.data)):
        if not (place.data / data).is_dir():
            if data == row.data:
                raise InputError(f"{place.data / data}: not there, and {row.name} is measured on it; change --data")
            say(f"{place.data / data}: not there, nothing is measured on it")
            continue
        train, val = load_splits(place.data / data)
        for suffix, network, words in networks:
            if (metric := kind + suffix) not in there:
                _record(folder, metric, measured.knn(network, train, val, **how), data, ["knn", *words])
    if linear:
        train, val = load_splits(place.data / row.data)
        fast = pick_device(place.device).type == "cpu"  # where the exact one takes as long as the training
        how |= {"say": say, "fast": fast}
        for suffix, network, words in networks:
            if (metric := f"linear{suffix}") not in there:
                found = measured.linear("sgd", network, train, val, LINEAR[row.recipe], row.recipe, **how)
                words = ["linear", *words, "--protocol", "sgd", "--recipe", row.recipe, *["--fast"] * fast]
                _record(folder, metric, found, row.data, words)


def _record(folder: Path, metric: str, found: dict[str, Any], data: str, words: list[str]) -> None:
    say(f"{metric} on {DATA[data][0]}: {found['value']:.2f} %")
    command = shlex.join(["cgh", "evaluate", *words, "--data", data])
    record(folder, metric, {"data": DATA[data][0], **found, "command": command})


def finish(row: Wanted, folder: Path, commit: str) -> None:
    """Puts what the folder holds where it belongs: log, row, files.

    Args:
        commit: of the code that trained it, where git was not there to ask.

    Raises:
        InputError: nothing was measured, or the code that trained it has no name.
    """
    told = manifest.read_row(folder)
    if not (folder / LOG).is_file() or not (folder / TOOK).is_file():
        raise InputError(
            f"{folder}: has no {LOG} and {TOOK}, as `train` writes them; `add` takes folders made otherwise"
        )
    if not told["metrics"]["knn"]:
        raise InputError(f"{folder}: not measured; `python -m benchmarks.zoo measure {row.name}` does that")
    told["code"]["commit"] = told["code"]["commit"] or commit
    if not re.fullmatch(r"[0-9a-f]{40}", told["code"]["commit"]):
        raise InputError(f"{folder}: which code trained it is not known; give its commit's 40 digits as --commit")
    log = tables.HERE / "logs" / f"{row.name}.jsonl"
    log.write_bytes((folder / LOG).read_bytes())
    took = json.loads((folder / TOOK).read_text())
    told["training"] = took | {"log": str(log.relative_to(tables.REPO)), "log_sha256": sha256(log)}
    write_description(folder, told)
    if row.shipped:
        add(folder, packaged=row.packaged, heads=row.heads)
    else:
        manifest.add(tables.NUMBERS, told)
        tables.write()
    print(f"{row.name}: {log.relative_to(tables.REPO)}")


def add(folder: Path, *, packaged: bool, heads: bool) -> None:
    """Copies what `cgh verify` accepts, with timm's config, card and picture, and writes both copies of the manifest.

    Args:
        packaged: the backbone goes into the wheel (cgh_models/weights/NAME/), not beside it (weights/NAME/).
        heads: they come along, beside the wheel.

    Raises:
        InputError: it would make the repository too large.
    """
    verify(folder.resolve())
    row = manifest.read_row(folder)
    if not heads:
        row["files"].pop(manifest.HEADS, None)
    _fits(row)
    repo = tables.REPO
    backbone, beside = ((root / "weights" / row["name"]) for root in (manifest.PACKAGE if packaged else repo, repo))
    for file in (*row["files"], "config.json", CURVE):
        target = (beside if file == manifest.HEADS else backbone) / file
        if (folder / file).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, target)
    here = row | {"files": {name: entry for name, entry in row["files"].items() if (backbone / name).is_file()}}
    write_description(backbone, here)
    for path in (repo / manifest.MANIFEST.name, manifest.MANIFEST):
        manifest.add(path, row)
    tables.write()
    print(f"{row['name']}: {backbone.relative_to(repo)}")


def _fits(row: manifest.Row) -> None:
    others = [there for there in manifest.read(manifest.MANIFEST) if there["name"] != row["name"]]
    sizes = {file: entry["bytes"] / 1e6 for file, entry in row["files"].items()}
    total = sum(sizes.values()) + sum(entry["bytes"] for there in others for entry in there["files"].values()) / 1e6
    if max(sizes.values()) > LARGEST or total > ALL:
        told = ", ".join(f"{file} {size:.0f} MB" for file, size in sizes.items())
        raise InputError(
            f"{row['name']}: {told}, with all other weights {total:.0f} MB; expected at most {LARGEST} MB a file and "
            f"{ALL} in all: leave its heads out, or publish it with `cgh publish`"
        )
