"""Text files that name images, here or at addresses: a path a line, or tables with labels."""

import codecs
import csv
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError, printable, say
from ..progress import watched
from .archive import Archive
from .file_cache import Cache, CachedFile, is_address, looked_up
from .file_names import LABELS, PATHS, SPLITS, column_of, visible
from .listing import digest_of, numbered, pick_split

_BOMS = {
    codecs.BOM_UTF8: "",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ENDINGS = {".txt", ".csv", ".tsv", ".lst"}  # of lists at addresses
_PROBED = 20  # rows that decide how a list is read; one of them has an address if any has

Row = tuple[str, str, str]  # path, label and split, "" where there is none
Listed = tuple[list[str], list[str] | None, Counter[str]]
Find = Callable[[list[str]], list[str]]  # of texts the names of the files they mean, "": of none


def read_list(path: Any, split: str = "", find: Find | None = None) -> Listed:
    """Sorted paths of the images, their labels if each has one alone, and what was left out.

    A line is a path, relative to the list's folder, or a row of a table whose columns are separated
    by commas, semicolons, tabs or a space; its first row may name them. Lines that begin with # and
    are no file are comments. Says on stderr why labels are not used. ``path`` is a `Path`, or a
    `CachedFile` whose rows name what ``find`` finds. Raises InputError for paths that are not
    files, or no rows of ``split``.
    """
    find = find or partial(_found, home=path.parent)
    text = read_text(path)
    lines = [line for line in text.split("\n" if "\n" in text else "\r") if line.strip()]
    marked = [line for line in lines if line[0] == "#"]
    comments = {line for line, name in zip(marked, find(marked), strict=True) if not name}
    kept = [line for line in lines if line not in comments]
    names, labels, skipped = named_files(path, _rows(kept, find), split, find)
    skipped["comment"] = len(lines) - len(kept)
    return names, labels, +skipped


def named_files(path: Any, rows: list[Row], split: str = "", find: Find | None = None) -> Listed:
    """What `read_list` gives, of the rows of a table at ``path``."""
    find = find or partial(_found, home=path.parent)
    full_home = os.path.abspath(os.path.dirname(str(path)))
    rows = _of_split(path, rows, split)
    label_of: dict[str, str] = {}
    name_of: dict[str, str] = {}  # of the first line for a file
    missing = []
    reason = ""  # why labels are not used
    skipped: Counter[str] = Counter()
    for (written, label, _), name in zip(rows, find([row[0] for row in rows]), strict=True):
        if not name:
            missing.append(written)
            continue
        file = os.path.normpath(os.path.join(full_home, name))
        if label_of.setdefault(file, label) != label and not reason:
            both = printable(f"{label_of[file]!r} and {label!r}")
            reason = f"{printable(name)} has the labels {both}"
        skipped["named again"] += file in name_of
        name_of.setdefault(file, name)
    if missing:
        what = f"{len(missing)} of its {len(rows)} lines are not files"
        first = f"the first is {printable(missing[0])[:80]!r}"
        expected = "expected one image path a line, relative to the list's folder"
        raise InputError(f"{printable(path)}: {what}, {first}; {expected}")
    label_by_name = {name: label_of[file] for file, name in name_of.items()}
    names = sorted(visible(label_by_name, skipped))
    labels = [label_by_name[name] for name in names]
    bare = labels.count("")
    if any(labels) and bare:
        reason = reason or f"{bare} of its {len(names)} images have no label"
    if reason:
        say(f"{printable(path)}: {reason}, so no labels are used; give each image one")
    is_labelled = all(labels) and not reason
    return names, labels if is_labelled else None, +skipped


def _of_split(path: Path | CachedFile | str, rows: list[Row], split: str) -> list[Row]:
    splits = sorted({row[2] for row in rows} - {""})
    if split:
        chosen = pick_split(splits, split, path)
        return [row for row in rows if row[2] == chosen]
    if len(splits) > 1:
        names = printable(", ".join(splits))[:80]
        only = printable(f"{path}:{splits[-1]}")
        say(f"{printable(path)}: has the splits {names}; all are taken, {only} is one alone")
    return rows


def read_text(path: Path | CachedFile) -> str:
    """A list in UTF-8, -16 or -32 with plain ends of lines; other bytes are as in names of files.

    Raises InputError if it is no text.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        codec = next((codec for bom, codec in _BOMS.items() if head.startswith(bom)), "")
        if b"\0" in head and not codec:
            codec = _utf_16(head)
        if b"\0" in head and not codec:
            what = f"{printable(path)}: neither a folder nor a text file of paths"
            raise InputError(f"{what}; unpack an archive first")
        content = head + file.read()
    text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    if codec:
        text = content.decode(codec, "replace")
    return text.replace("\r\n", "\n")


def _utf_16(head: bytes) -> str:
    """UTF-16 without a mark is found by the zeros that are half of its letters."""
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if min(zeros) or 4 * max(zeros) < len(head):
        return ""
    return "utf-16-le" if zeros[1] else "utf-16-be"


def _found(written: list[str], home: Path) -> list[str]:
    return [_find(text, home) for text in written]


def _find(written: str, home: Path) -> str:
    """The path of a file: as written, without spaces around it, from Windows, or in Latin-1."""
    if os.path.isfile(os.path.join(home, written)):
        return written
    bare = written.strip()
    others = (bare, bare.replace("\\", "/"), os.fsencode(bare).decode("latin-1"))
    return next((name for name in others if os.path.isfile(os.path.join(home, name))), "")


def _rows(lines: list[str], find: Find) -> list[Row]:
    """The reading of which most paths are files; one path a line wins where all are equal."""
    best: list[Row] = []
    fewest = _PROBED + 1
    for rows in _readings(lines, find):
        missing = find([row[0] for row in rows[:_PROBED]]).count("")
        if rows and missing < fewest:
            best = rows
            fewest = missing
        if not fewest:
            break
    return best


def _readings(lines: list[str], find: Find) -> Iterator[list[Row]]:
    yield [(line, "", "") for line in lines]
    for delimiter in ",;\t":
        text = (line + "\n" for line in lines)  # a cell in quotes may hold the end of a line
        try:
            yield _columns(list(csv.reader(text, delimiter=delimiter, skipinitialspace=True)), find)
        except csv.Error:
            continue
    yield _columns([line.rsplit(maxsplit=1) for line in lines], find)


def _columns(table: list[list[str]], find: Find) -> list[Row]:
    """Paths, labels and splits, by the names of columns or by where files are named."""
    first = table[0] if table else []
    path, label, split = (column_of(first, names) for names in (PATHS, LABELS, SPLITS))
    named = find(first)
    if path >= 0 and not any(named):
        table = table[1:]
    else:
        path = next((column for column, name in enumerate(named) if name), 0)
        label = split = -1
    if label < 0 and split < 0 and len(first) == 2:
        others = [row[1 - path] for row in table[:_PROBED] if len(row) == 2]
        are_files = all(find([cell for cell in others if cell.strip()]))
        label = -1 if are_files else 1 - path  # masks, say
    rows = []
    for row in table:
        rows.append((row[path] if path < len(row) else "", _cell(row, label), _cell(row, split)))
    return rows


def _cell(row: list[str], column: int) -> str:
    return row[column].strip() if 0 <= column < len(row) else ""


def is_list(address: str) -> bool:
    """Whether a file at an address is one of paths, by its ending."""
    return Path(address.partition("?")[0]).suffix.casefold() in _ENDINGS


def has_addresses(path: Path) -> bool:
    """Whether a list on a disk names images at addresses."""
    lines = islice(read_text(path).splitlines(), _PROBED)
    return any(re.search(r"\w://", line) for line in lines if line[:1] != "#")


def open_list(file: Path | CachedFile, split: str, cache: Cache) -> Archive:
    """The images of a list in the forms of `read_list`. Raises InputError, NetworkError."""
    address = str(file) if isinstance(file, CachedFile) else f"file://{file.resolve()}"
    find = _Finder(address.partition("?")[0].rpartition("/")[0], cache)
    return find.archive(read_list(file, split, find))


def open_rows(address: str, home: str, rows: list[Row], split: str, cache: Cache) -> Archive:
    """The images that a table at an address, in the folder ``home``, names. Raises likewise."""
    find = _Finder(home, cache)
    return find.archive(named_files(address, rows, split, find))


class _Finder:
    """Finds images by what is written in a list in the folder ``home``."""

    def __init__(self, home: str, cache: Cache):
        self.home = home
        self.cache = cache
        self.files: dict[str, CachedFile | None] = {}

    def __call__(self, written: list[str]) -> list[str]:
        """Their names, as written but for spaces around them; "" where there is no file."""
        names = [text.strip() for text in written]
        new = [name for name in dict.fromkeys(names) if name and name not in self.files]
        found = looked_up([self._address(name) for name in new], self.cache)
        found = watched(found, "addresses of images", len(new))
        self.files |= zip(new, found, strict=True)
        return [name if self.files.get(name) else "" for name in names]

    def _address(self, name: str) -> str:
        if is_address(name):
            return name
        scheme, _, folder = self.home.partition("://")
        return f"{scheme}://{posixpath.normpath(f'{folder}/{name}')}"

    def archive(self, listed: Listed) -> Archive:
        """The images of a list, with the digest of one on a disk."""
        names, labels, skipped = listed
        files = [file for name in names if (file := self.files[name])]
        digest = digest_of(names, [file.size for file in files])
        index = (names, *numbered(labels), digest, files, CachedFile.open, skipped)
        return Archive(self.home, *index, is_list=True)
