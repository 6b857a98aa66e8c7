"""`weights_manifest.json`: one row per published checkpoint - what it is, how it was made, what its bytes hash to.

A row's keys are described in `weights_manifest.schema.json`. The copy in the package is the one that counts: nothing
about a network is ever taken from a server. A weights folder carries its own row as `weights.json`.
"""

import copy
import difflib
import fnmatch
import functools
import json
import re
from pathlib import Path
from typing import Any

from .. import files
from ..errors import InputError, IntegrityError, printable, say

PACKAGE = Path(__file__).parents[1]
MANIFEST = PACKAGE / "weights_manifest.json"
ROW_FILE = "weights.json"
BACKBONE, HEADS = "model.safetensors", "pretrain.safetensors"
_SCHEMA = PACKAGE / "weights_manifest.schema.json"

Row = dict[str, Any]


@functools.cache
def rows() -> dict[str, Row]:
    """The rows of this package by name; not to be changed.

    Raises:
        IntegrityError: the package's own manifest is damaged.
    """
    try:
        return {row["name"]: row for row in read(MANIFEST)}
    except InputError as error:
        raise IntegrityError(f"{error}; install cgh-models again") from error


def names(pattern: str = "") -> list[str]:
    """Names of the rows that match a shell pattern, sorted; all if it is empty."""
    return sorted(fnmatch.filter(rows(), pattern or "*"))


def row(name: str) -> Row:
    """A copy of the row of this name. Raises InputError, with names that are close."""
    if name not in rows():
        near = difflib.get_close_matches(name, rows(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "`cgh list` shows those there are"
        raise InputError(f"{printable(name)[:100]}: no published weights of this name and no such folder; {hint}")
    return copy.deepcopy(rows()[name])


def row_of(weights: str) -> Row:
    """The row of published weights, or else of a weights folder. Raises as `row` and `read_row`."""
    known = weights in rows() or not Path(weights).is_dir()
    return row(weights) if known else read_row(Path(weights))


def trained_on(row: Row) -> str:
    """The images of a row in a few words: their name and number, as far as they are known."""
    data = row["data"]
    name = data["name"] or "images whose name was not stated"
    return name if data["images"] is None else f"{name}, {data['images']:,} images"


def read(path: Path) -> list[Row]:
    """The rows of a manifest file.

    Raises:
        InputError: it is not there, or it is not a manifest: names row and key.
        IntegrityError: it is not JSON.
    """
    content = files.read_json(path, "a weights manifest")
    check(content, path)
    return content["weights"]


def read_row(folder: Path) -> Row:
    """The row of a weights folder. Raises as `read`, and if the folder has none."""
    path = folder / ROW_FILE
    content = files.read_json(path, "the description that `cgh export` writes into a weights folder")
    check({"schema": 1, "weights": [content]}, path)
    return content


def add(path: Path, new: Row) -> None:
    """Writes a row into a manifest file, in the place of the row of the same name or as the last."""
    known = read(path)
    place = next((i for i, old in enumerate(known) if old["name"] == new["name"]), len(known))
    content = {"schema": 1, "weights": [*known[:place], new, *known[place + 1 :]]}
    check(content, path)
    files.write_json(path, content)


def check(content: Any, path: Path) -> None:
    """Raises InputError that names the row and the key if this is not the content of a manifest."""
    if not (validate := _validator()):
        return
    if refused := validate(content):
        raise InputError(f"{printable(path)}: {_explain(content, refused)}") from refused
    seen = set()
    for new in content["weights"]:
        where = f"{printable(path)}: row {new['name']!r}"
        entry = new["name"].replace(".", "_")  # what torch.hub calls it
        if entry in seen:
            raise InputError(f"{where}: key 'name': there are two rows of this name; rename or remove one")
        seen.add(entry)
        if new["name"].partition(".")[0] != new["architecture"]:
            raise InputError(
                f"{where}: key 'architecture': {new['architecture']!r}, expected what stands before the dot"
            )


@functools.cache
def _validator() -> Any:
    """A function that returns why it refuses a manifest, or None; None itself where its library is missing."""
    try:
        import fastjsonschema
    except ModuleNotFoundError:  # a machine for training alone, where nothing can be installed
        return say("fastjsonschema is not installed: rows are not checked here; `cgh verify` does where it is")
    compiled: Any = fastjsonschema.compile(json.loads(_SCHEMA.read_text("utf-8")))

    def refusal(content: Any) -> Exception | None:
        try:
            compiled(content)
        except fastjsonschema.JsonSchemaValueException as error:
            return error

    return refusal


def _explain(content: Any, error: Any) -> str:
    """Which row, which key, what is wrong with it."""
    way = [str(part) for part in error.path[1:]]
    where = "the manifest"
    if len(way) > 1 and way[0] == "weights":
        entry = content["weights"][int(way[1])]
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"row {printable(name)[:80]!r}" if isinstance(name, str) else f"row {way[1]}"
        way = way[2:]
    rule, value = error.rule_definition, error.value
    if error.rule == "required":
        missing = sorted(set(rule) - value.keys())
        return f"{where}: key {'.'.join([*way, missing[0]])!r} is missing; expected a key that the schema names"
    if error.rule == "additionalProperties":
        known = error.definition["properties"]
        patterns = error.definition.get("patternProperties", {})
        unknown = next(k for k in value if k not in known and not any(re.search(p, k) for p in patterns))
        return (
            f"{where}: key {'.'.join([*way, printable(unknown)[:60]])!r} is unknown; expected one of "
            f"{', '.join(sorted(known))[:160]}"
        )
    shown = printable(json.dumps(value))[:60]
    return f"{where}: key {'.'.join(way)!r}: {shown} is refused, expected {error.rule} {json.dumps(rule)[:100]}"
