"""`weights_manifest.json`: one row per published weights - what they are, how made, their hashes.

`weights_manifest.schema.json` describes every key. The copy in the package is the one that counts:
nothing about a network is taken from a server. A weights folder carries its row as `weights.json`.
"""

import copy
import difflib
import fnmatch
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import files
from ..errors import InputError, IntegrityError, printable, say
from .row import Row

PACKAGE = Path(__file__).parents[1]
MANIFEST = PACKAGE / "weights_manifest.json"
ROW_FILE = "weights.json"
_SCHEMA = PACKAGE / "weights_manifest.schema.json"


@functools.cache
def rows() -> dict[str, Row]:
    """The rows of this package by name; not to be changed."""
    try:
        return {row.name: row for row in read(MANIFEST)}
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
        raise InputError(
            f"{printable(name)[:100]}: no published weights of this name and no such folder; {hint}"
        )
    return copy.deepcopy(rows()[name])


def is_published(weights: str | os.PathLike[str]) -> bool:
    """Whether WEIGHTS is the name of a row; a Path is always a folder."""
    return isinstance(weights, str) and weights in rows()


def find(weights: str | os.PathLike[str]) -> tuple[Row, Path | None]:
    """The row of published weights and None, or of a weights folder and that folder."""
    folder = Path(weights)
    if is_published(weights) or not folder.is_dir():
        return row(str(weights)), None
    return read_row(folder), folder


def read(path: Path) -> list[Row]:
    """The rows of a manifest file. Raises InputError that names row and key, or IntegrityError."""
    return _parse(files.read_json(path, "a weights manifest"), path)


def read_row(folder: Path) -> Row:
    """The row of a weights folder. Raises as `read`."""
    path = folder / ROW_FILE
    kind = "the description that `cgh export` writes into a weights folder"
    return _parse({"schema": 1, "weights": [files.read_json(path, kind)]}, path)[0]


def write_row(folder: Path, row: Row) -> None:
    """Writes the row of a weights folder. Raises InputError if the schema refuses it."""
    path = folder / ROW_FILE
    values = row.to_json()
    _parse({"schema": 1, "weights": [values]}, path)
    files.write_json(path, values)


def add(path: Path, new: Row) -> None:
    """Writes a row into a manifest file, in place of the row of the same name or as the last."""
    known = {old.name: old.to_json() for old in [*read(path), new]}
    content = {"schema": 1, "weights": list(known.values())}
    _parse(content, path)
    files.write_json(path, content)


def _parse(content: dict[str, Any], path: Path) -> list[Row]:
    try:
        _validator()(content)
    except ValueError as error:  # fastjsonschema's
        raise InputError(f"{printable(path)}: {_explain(content, error)}") from error
    found = [Row.from_json(values) for values in content["weights"]]
    entries = set()  # names as torch.hub has them
    for row in found:
        where = f"{printable(path)}: row {row.name!r}"
        entry = row.name.replace(".", "_")
        if entry in entries:
            raise InputError(f"{where}: key 'name': there are two rows of this name; rename one")
        entries.add(entry)
        if row.name.partition(".")[0] != row.architecture:
            expected = "expected what stands before the dot of the name"
            raise InputError(f"{where}: key 'architecture': {row.architecture!r}, {expected}")
    return found


@functools.cache
def _validator() -> Callable[[dict[str, Any]], Any]:
    try:
        import fastjsonschema
    except ModuleNotFoundError:  # a machine for training alone
        say("fastjsonschema is not installed: rows are not checked (`cgh verify` elsewhere does)")
        return lambda content: content
    return fastjsonschema.compile(json.loads(_SCHEMA.read_text("utf-8")))


def _explain(content: dict[str, Any], error: Any) -> str:
    """Which row, which key, what is wrong with it."""
    path = error.path[1:]
    where = "the manifest"
    if path[:1] == ["weights"] and len(path) > 1:
        values = content["weights"][int(path[1])]
        name = values.get("name", path[1]) if isinstance(values, dict) else path[1]
        where = f"row {printable(name)[:80]!r}"
        path = path[2:]
    if path:
        where += f": key {printable('.'.join(path))[:80]!r}"
    problem = printable(error.message.removeprefix(error.name).strip())[:160]
    if error.rule in ("required", "additionalProperties"):  # these name a key of it themselves
        return f"{where} {problem}"
    return f"{where}: {printable(json.dumps(error.value))[:60]}, {problem}"
