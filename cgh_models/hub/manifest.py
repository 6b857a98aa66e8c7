"""`weights_manifest.json`: one row per published weights - what they are, how made, their hashes.

`weights_manifest.schema.json` describes every key; `row` checks them. The package's copy counts:
nothing about a network is taken from a server. A weights folder carries its row as `weights.json`.
"""

import copy
import difflib
import fnmatch
import functools
import os
from pathlib import Path

from .. import files
from ..errors import InputError, IntegrityError, printable, say
from .row import Row
from .strict_json import refused

PACKAGE = Path(__file__).parents[1]
MANIFEST = PACKAGE / "weights_manifest.json"
ROW_FILE = "weights.json"


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
        what = f"{printable(name)[:100]}: no published weights of this name and no such folder"
        raise InputError(f"{what}; {hint}")
    return copy.deepcopy(rows()[name])


def find_folder(weights: str | os.PathLike[str]) -> Path | None:
    """The folder that WEIGHTS stands for; None if it is a name. Raises InputError.

    A published name and timm's names come before a folder that is called like them, which is
    ``./NAME``. A Path is always a folder.
    """
    text = str(weights).removeprefix("local-dir:")
    if not text:
        raise InputError("weights '': empty; give a name of `cgh list` or timm, or a folder")
    folder = Path(text)
    if isinstance(weights, str) and text == weights:
        if weights.startswith("hf-hub:"):
            return None
        if Path(folder.name) == folder and "/" not in weights:  # it may be a name
            if not os.path.isdir(folder):
                return None
            if _is_name(weights):
                _say_once(weights)
                return None
    if not os.path.isdir(folder):
        hint = "give a weights folder, a run folder or a timm name"
        raise InputError(f"{printable(folder)[:200]}: there is no such folder; {hint}")
    return folder


@functools.cache
def _say_once(name: str) -> None:
    say(f"{name} is a name and means it; the folder of that name is ./{name}")


def _is_name(weights: str) -> bool:
    if weights in rows():
        return True
    import timm  # `cgh list` and `cgh info` need this module without torch

    arch, _, tag = weights.partition(".")
    return timm.is_model(arch) and (not tag or timm.is_model_pretrained(weights))


def find(weights: str | os.PathLike[str]) -> tuple[Row, Path | None]:
    """The row of published weights and None, or of a weights folder and that folder."""
    folder = find_folder(weights)
    return (row(str(weights)), None) if folder is None else (read_row(folder), folder)


def find_row(weights: str | os.PathLike[str]) -> Row | None:
    """As `find`; None of what has no row: a run, or weights that timm knows."""
    folder = find_folder(weights)
    if folder is None:
        return copy.deepcopy(rows().get(str(weights)))
    return read_row(folder) if (folder / ROW_FILE).is_file() else None


def read(path: Path) -> list[Row]:
    """The rows of a manifest file. Raises InputError that names row and key, or IntegrityError."""
    content = files.read_json(path, "a weights manifest")
    file = printable(path)
    if content.keys() != {"schema", "weights"} or content["schema"] != 1:
        found = f"schema {content.get('schema')!r}, keys {printable(', '.join(content))[:80]}"
        expected = "expected a weights manifest: schema 1, and the key weights"
        raise InputError(f"{file}: {found}; {expected}"[:300])
    if not isinstance(content["weights"], list):
        raise InputError(f"{file}: {refused('weights', content['weights'], 'a list of rows')}")
    return _parse(content["weights"], path)


def read_row(folder: Path) -> Row:
    """The row of a weights folder. Raises as `read`."""
    path = folder / ROW_FILE
    kind = "the description that `cgh export` writes into a weights folder"
    return _parse([files.read_json(path, kind)], path)[0]


def write_row(folder: Path, row: Row) -> None:
    """Writes the row of a weights folder. Raises InputError if it cannot be read back."""
    path = folder / ROW_FILE
    values = row.to_json()
    _parse([values], path)
    files.write_json(path, values)


def add(path: Path, new: Row) -> None:
    """Writes a row into a manifest file, in place of the row of the same name or as the last."""
    known = {old.name: old.to_json() for old in [*read(path), new]}
    _parse([*known.values()], path)
    files.write_json(path, {"schema": 1, "weights": list(known.values())})


def _parse(values_of_rows: list[object], path: Path) -> list[Row]:
    found: dict[str, Row] = {}  # by name as torch.hub has it
    for number, values in enumerate(values_of_rows):
        name = values.get("name", number) if isinstance(values, dict) else number
        where = f"{printable(path)}: row {printable(name)[:80]!r}"
        try:
            row = Row.from_json(values)
        except ValueError as error:
            raise InputError(f"{where}: {printable(error)}") from error
        entry = row.name.replace(".", "_")
        if entry in found:
            raise InputError(f"{where}: key 'name': there are two rows of this name; rename one")
        found[entry] = row
    return list(found.values())
