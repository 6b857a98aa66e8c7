"""The images of a folder, found by one listing of each folder in it."""

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..progress import bar
from .file_names import HIDDEN, is_hidden
from .formats import EXTENSIONS
from .listing import readable
from .names import Names


class Walked(NamedTuple):
    """The images that were found in a folder."""

    names: Names  # sorted relative paths
    sizes: "array[int]"  # (N,) bytes of each; -1 of a link to nothing
    skipped: Counter[str]  # what was left out
    folders: dict[str, int]  # time of change of each that was read, in ns; "" is the first
    how: list[Any] | None = None  # what else it depends on
    began: int = 0  # when it was begun, in ns
    digest: str = ""  # of the set, if it was known without a walk


def walk(root: Path, follow_links: bool, endings: Collection[str] | None = EXTENSIONS) -> Walked:
    """The images under ``root``, by their endings.

    Each folder is listed once, and each image asked once for its size. Raises InputError for a
    folder that cannot be read.
    """
    names = Names()
    sizes = array("q")
    skipped: Counter[str] = Counter()
    changed: dict[str, int] = {}
    home = root.resolve()
    with bar(None, "listing files") as shown:
        folders = [iter([("", 0)])]  # what is left in each folder on the way to the present one
        while folders:
            for name, size in folders[-1]:
                if not name or name[-1] == "/":
                    found = _list_folder(root, name, home, follow_links, endings, skipped)
                    changed[name], count, listed = found
                    shown.update(count)
                    folders.append(listed)
                    break
                names.append(name)
                sizes.append(size)
            else:
                folders.pop()
    return Walked(names, sizes, skipped, changed)


def _list_folder(
    root: Path,
    prefix: str,
    home: Path,
    follow_links: bool,
    endings: Collection[str] | None,
    skipped: Counter[str],
) -> tuple[int, int, Iterator[tuple[str, int]]]:
    """The time of change of a folder; how many images and folders are in it; names and sizes.

    These are in the order of all paths: that of their names, where those of folders end in a /.
    """
    names: list[str] = []
    sizes = array("q")
    folder = os.path.join(root, prefix[:-1]) if prefix else root
    with readable(folder), os.scandir(folder) as entries:
        # Before the first entry is read, so that what comes later is seen as a change.
        changed = os.stat(folder).st_mtime_ns
        for entry in entries:
            is_folder = _is_folder(entry)
            if is_folder:
                kind = _why_not_entered(entry, follow_links)
            else:
                kind = _why_left_out(entry, home, follow_links, endings)
            if kind:
                skipped[kind] += 1
            else:
                names.append(prefix + entry.name + ("/" if is_folder else ""))
                sizes.append(0 if is_folder else _size(entry))
    order = sorted(range(len(names)), key=names.__getitem__)
    return changed, len(names), ((names[index], sizes[index]) for index in order)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # as `size_of`
        return -1


def _why_left_out(
    file: os.DirEntry[str], home: Path, follow_links: bool, endings: Collection[str] | None
) -> str:
    if is_hidden(file.name):
        return f"{HIDDEN} file"
    if endings is not None:
        dot = file.name.rfind(".")
        ending = file.name[dot:].lower() if 0 < dot < len(file.name) - 1 else ""
        if ending not in endings:
            return ending or "no extension"
    if not follow_links and file.is_symlink() and home not in Path(file).resolve().parents:
        return "link out of the folder (--follow-links reads it)"
    return ""


def _why_not_entered(folder: os.DirEntry[str], follow_links: bool) -> str:
    if is_hidden(folder.name):
        return f"{HIDDEN} folder {folder.name}/"
    if not folder.is_symlink():
        return ""
    if not follow_links:
        return "linked folder (--follow-links reads it)"
    around = Path(folder).parent.resolve()
    real = Path(folder).resolve()
    return "link to a folder around it" if real in (around, *around.parents) else ""
