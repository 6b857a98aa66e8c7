"""Images in parquet files: bytes, in a binary column or as Hugging Face writes them, or paths."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import InputError, printable
from .archive import Archive, below, check_library, number_classes
from .file_cache import CachedFile
from .file_names import LABELS, PATHS, SPLITS, column_of
from .listing import digest_of

_SHARD = re.compile(r"([A-Za-z]+)-\d+-of-\d+")  # names of the Hub: train-00000-of-00002.parquet


class Table(NamedTuple):
    """The rows of a parquet file; those of no label or split are empty texts."""

    paths: list[str]  # of images; none if the column holds images
    labels: list[str]
    splits: list[str]
    classes: list[str]  # in the order that the file says; none: it does not
    footer: str  # hex sha256
    places: list["_Place"]  # of images in the file


class _Place(NamedTuple):
    file: Path | CachedFile
    changed: int  # as `ImageSet.changed` of the file
    column: str
    group: int
    row: int


def open_parquet(root: str, files: Sequence[Path | CachedFile]) -> Archive | list[Table]:
    """The images of some parquet files, `Path`s or `CachedFile`s, or the tables if those name them.

    The digest is of the files' names and footers, which say where each part lies and how large it
    is. Raises InputError for a file that cannot be read, or has no column of images.
    """
    check_library("pyarrow", "embed", root)
    tables = [_table(file) for file in files]
    if any(table.paths for table in tables):
        return tables
    file_names = [below(root, file) for file in files]
    names: list[str] = []
    for name, table in zip(file_names, tables, strict=True):
        prefix = f"{name}/" if name else ""
        names += [f"{prefix}{row:08d}" for row in range(len(table.places))]
    digest = digest_of(file_names, [table.footer for table in tables])
    labels = [label for table in tables for label in table.labels]
    splits = [split for table in tables for split in table.splits]
    places = [place for table in tables for place in table.places]
    index = (names, *number_classes(labels, tables[0].classes), digest, places, _open)
    return Archive(root, *index, splits=splits if all(splits) else None)


def _table(path: Path | CachedFile) -> Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as file:
            return _read_table(path, ParquetFile(file))
    except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException) as error:
        reason = printable(" ".join(str(error).split()))[:120]
        what = f"{printable(path)}: not a readable parquet file ({reason})"
        raise InputError(f"{what}; write it anew") from error


def _read_table(path: Path | CachedFile, packed: Any) -> Table:
    schema = packed.schema_arrow
    image, is_path = _image_column(path, schema)
    label = _named(schema, LABELS)
    split = _named(schema, SPLITS)
    columns = [name for name in (label, split, image if is_path else "") if name]
    table = packed.read(columns, use_threads=False)
    groups = [packed.metadata.row_group(i).num_rows for i in range(packed.num_row_groups)]
    footer = hashlib.sha256(str(packed.metadata.to_dict()).encode()).hexdigest()
    cells = {name: table[name].to_pylist() for name in columns}
    classes = _classes(schema, label)
    labels = [_class(value, classes) for value in cells.get(label, [None] * sum(groups))]
    shard = _SHARD.match(Path(str(path)).name)
    splits = list(map(str, cells[split])) if split else [shard[1] if shard else ""] * sum(groups)
    if is_path:
        return Table(list(map(str, cells[image])), labels, splits, classes, footer, [])
    changed = path.stat().st_mtime_ns if isinstance(path, Path) else path.changed
    places = [
        _Place(path, changed, image, group, row)
        for group, rows in enumerate(groups)
        for row in range(rows)
    ]
    return Table([], labels, splits, classes, footer, places)


def _image_column(path: Path | CachedFile, schema: Any) -> tuple[str, bool]:
    """The column of images, and whether it has their paths. Raises InputError for none."""
    kinds = {field.name: str(field.type) for field in schema}
    for name, kind in kinds.items():
        if kind in ("binary", "large_binary") or kind.startswith("struct<bytes: "):
            return name, False
    name = _named(schema, PATHS)
    if name and kinds[name] in ("string", "large_string"):
        return name, True
    found = printable(", ".join(f"{name} ({kind})" for name, kind in kinds.items()))[:160]
    expected = "expected one of the images' bytes, or of their paths called path"
    raise InputError(f"{printable(path)}: has no column of images, only {found}; {expected}")


def _named(schema: Any, names: Collection[str]) -> str:
    """The first column that has one of the names; "" if none has."""
    number = column_of(schema.names, names)
    return schema.names[number] if number >= 0 else ""


def _class(value: Any, classes: list[str]) -> str:
    """The name of a class; "" of an image that has none."""
    if value in (None, -1):
        return ""
    return classes[value] if classes else str(value)


def _classes(schema: Any, label: str) -> list[str]:
    """Names of the classes in the order of their numbers, as Hugging Face writes them."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        described = json.loads(schema.metadata[b"huggingface"])
        return list(map(str, described["info"]["features"][label]["names"]))
    return []


def _open(place: _Place) -> IO[bytes]:
    rows = _group(place.file, place.changed, place.column, place.group, os.getpid())
    image = rows[place.row].as_py()
    return io.BytesIO(image["bytes"] if isinstance(image, dict) else image)


@functools.lru_cache(maxsize=2)
def _group(file: Path | CachedFile, _stamp: object, column: str, group: int, _process: int) -> Any:
    """A group of rows of the column of images, of which each process keeps two."""
    from pyarrow.parquet import ParquetFile

    with file.open("rb") as raw:
        table = ParquetFile(raw).read_row_group(group, [column], use_threads=False)
    return table[column]
