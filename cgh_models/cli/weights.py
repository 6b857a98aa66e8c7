"""The commands about weights: list, info, verify, convert, publish, autoload."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from ..errors import ERRORS, InputError, printable
from ..hub import manifest


@dataclass
class List:
    """Published weights: what they were trained on, their size, their numbers, where they are."""

    pattern: Positional[str] = ""
    """Shell pattern of names, e.g. 'resnet50.*'; left out, all."""


def list_weights(args: List) -> None:
    """`cgh list`."""
    from ..hub.fetch import where

    names = manifest.names(args.pattern)
    if args.pattern and not names:
        raise InputError(f"{printable(args.pattern)}: no published weights match; `cgh list` shows all")
    table: list[tuple[str, ...]] = [("name", "trained on", "parameters", "kNN %", "linear %", "MB", "where")]
    for name in names:
        row = manifest.row(name)
        images = row["data"]["images"]
        data = (row["data"]["name"] or "not stated") + (f" ({images:,})" if images else "")
        numbers = [_number(row["metrics"][metric]) for metric in ("knn", "linear")]
        size = row["files"][manifest.BACKBONE]["bytes"] / 1e6
        table.append(
            (name, data, f"{row['parameters'] / 1e6:.1f} M", *numbers, f"{size:.1f}", where(row, manifest.BACKBONE))
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _number(metric: dict[str, Any] | None) -> str:
    return f"{metric['value']:.2f}" if metric else "-"


@dataclass
class Info:
    """Everything about published weights or a weights folder, the command that made them included."""

    weights: Positional[str]
    """A name of `cgh list`, or a weights folder."""


def info(args: Info) -> None:
    """`cgh info`."""
    row = manifest.row_of(args.weights)
    for key in ("notes", "data"):  # before any number
        _show(key, row.pop(key))
    for key, value in row.items():
        _show(key, value)


def _show(key: str, value: Any, indent: int = 0) -> None:
    if isinstance(value, dict) and value:
        print(f"{' ' * indent}{key}:")
        for inner, content in value.items():
            _show(inner, content, indent + 2)
    else:
        shown = value if isinstance(value, str) else json.dumps(value)
        print(f"{' ' * indent}{key}: {printable(shown)}")


@dataclass
class Verify:
    """Checks weights all the way: hashes, tensors, finite values, fingerprint. Exit code 0, or 4 if one is wrong."""

    weights: Positional[tuple[str, ...]] = ()
    """Names of `cgh list`, or weights folders; left out, all that are on this machine."""


def verify(args: Verify) -> None:
    """`cgh verify`."""
    from ..hub.fetch import HERE, where
    from ..hub.integrity import verify as check

    here = [name for name, row in manifest.rows().items() if where(row, manifest.BACKBONE) in HERE]
    if not args.weights and not here:
        print("no published weights are on this machine")
    failed: list[Any] = []
    for weights in args.weights or here:
        try:
            done = check(weights)
        except ERRORS as error:
            failed.append(error)
            continue
        print(
            f"{weights}: {', '.join(done['files'])}: sha256, tensors, values and fingerprint are right "
            f"({done['parameters']:,} parameters, fingerprint within {done['fingerprint_error']:.1e})"
        )
    for error in failed[:-1]:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    if failed:
        raise failed[-1]


@dataclass
class Convert:
    """A checkpoint of a method's authors becomes a weights folder; no code in it is run."""

    file: Positional[str]
    """Their file: what torch.save wrote (.pth, .pth.tar, ...) or .safetensors."""
    method: Literal["cgh", "ressl", "lewel", "moco_v2", "byol", "mnclglf"]
    """Whose checkpoint it is: where the student's backbone lies in it, its paper and its licence."""
    out: str
    """Weights folder to make."""
    arch: str = ""
    """Its timm architecture; left out, what the tensors say. A 3x3 stem does not say all, then it has to be given."""
    recipe: Literal["imagenet", "cifar", "tiny"] = "imagenet"
    """The images it was trained on: size, mean and std of imagenet (224 px), tiny (64 px) or cifar (32 px)."""
    image_size: int | None = None
    """Side of its images in pixels; left out, the recipe's."""
    mean: tuple[float, float, float] | None = None
    """Of its images' channels; left out, the recipe's."""
    std: tuple[float, float, float] | None = None
    """Of its images' channels; left out, the recipe's."""
    tag: str = ""
    """What follows the dot in the weights' name; left out, METHOD_converted."""
    license: str = ""
    """Licence of the weights, if you know of another than the authors state of their release."""
    data_name: str = ""
    """What the card calls the training images; left out, not stated."""
    data_license: str = ""
    """The terms of the training images, in one sentence, for the card."""
    epochs: float | None = None
    """It was trained for, for the card; left out, not stated."""


def convert(args: Convert) -> None:
    """`cgh convert`."""
    from ..hub.convert import convert as write

    row = write(**vars(args))
    source = row["converted_from"]
    print(f"{args.out}: {row['name']}, {row['parameters']:,} parameters of {source['prefix']}*, read back, equal")
    print(f"licence: {row['license'] or 'not stated'}; {' '.join(map(printable, row['notes']))}")
    print(f"timm.create_model('local-dir:{args.out}', pretrained=True) loads it")


@dataclass
class Publish:
    """Uploads a weights folder to the Hub in one commit, reads it back, and pins the commit in a manifest."""

    folder: Positional[str]
    """Weights folder that `cgh verify` accepts."""
    repo: str
    """Hub repository, ORG/NAME; made if it is not there."""
    private: bool = False
    """Make a new repository private."""
    manifest: str = ""
    """Manifest file to write repository and commit into, beside the folder's own weights.json; a checkout's
    weights_manifest.json brings the package's copy along."""


def publish(args: Publish) -> None:
    """`cgh publish`."""
    from ..hub.publish import publish as upload

    chosen = [Path(args.manifest)] if args.manifest else []
    if chosen and chosen[0].resolve() == manifest.PACKAGE.parent / manifest.MANIFEST.name:
        chosen.append(manifest.MANIFEST)
    commit, left = upload(Path(args.folder), args.repo, private=args.private, manifests=chosen)
    if left:
        print(f"not published: {printable(', '.join(left))}")
    print(f"{args.repo}: read back, equal; commit {commit}")
    print(f"timm.create_model('hf-hub:{args.repo}', pretrained=True) loads it")
    for path in (Path(args.folder) / manifest.ROW_FILE, *chosen):
        print(f"{path}: pinned")


@dataclass
class Autoload:
    """Makes plain `import timm` know the published weights in this environment, or undoes that."""

    switch: Positional[Literal["on", "off"]]
    """on writes a .pth file into site-packages, off removes it; CGH_AUTOLOAD=0 disables it for a process."""


def autoload(args: Autoload) -> None:
    """`cgh autoload`."""
    from ..hub.autoload import path, switch

    before = switch(args.switch == "on")
    if args.switch == "on":
        print(f"{path()}: written; `import timm` now knows the weights")
    else:
        print(f"{path()}: {'removed' if before else 'was not there, autoload is off'}")
