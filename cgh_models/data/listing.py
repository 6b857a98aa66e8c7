"""What listed images say: classes, digest; splits, and archives, to be given otherwise."""

import bisect
import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import InputError, os_error_as, printable, say
from .file_names import bare_name, common_folder, container, is_hidden, split_of
from .formats import EXTENSIONS, FURTHER

_TAR = "mkdir {1} && tar -xf {0} -C {1}"
_UNPACK = {  # by how a file begins
    b"\x1f\x8b": _TAR,
    b"BZh": _TAR,
    b"\xfd7zXZ": _TAR,
    b"(\xb5/\xfd": _TAR,
    b"PK\3\4": "unzip -q {0} -d {1}",
    b"7z\xbc\xaf": "7z x {0} -o{1}",
    b"Rar!": "unrar x {0} {1}/",
}
# For a file or folder of the images; raises InputError.
readable = partial(os_error_as, InputError, what="cannot be read", advice="mend or remove it")


def further_endings(names: Sequence[str]) -> Counter[str]:
    """How many images have an ending that earlier versions left out."""
    endings = Counter(os.path.splitext(name)[1].lower() for name in names)
    return Counter({ending: endings[ending] for ending in sorted(FURTHER & endings.keys())})


def class_folders(names: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and classes, the outermost folders; none if an image lies in none of them.

    ``names`` are sorted, so that each folder's end is found without reading all of them.
    """
    folders: list[str] = []
    starts: list[int] = []
    place = 0
    while place < len(names):
        folder, slash, _ = names[place].partition("/")
        if not folder or not slash:
            return None, []
        folders.append(folder)
        starts.append(place)
        place = _first_from(f"{folder}0", names, place)  # in order, 0 follows the slash
    labels, classes = numbered(folders)
    if labels is not None:
        labels = np.repeat(labels, np.diff([*starts, len(names)]))
    return labels, classes


def _first_from(text: str, names: Sequence[str], start: int) -> int:
    """The first index after ``start`` of what is not before ``text``: near it in a small folder."""
    step = 1
    while start + step < len(names) and names[start + step] < text:
        step *= 2
    return bisect.bisect_left(names, text, start + step // 2, min(start + step, len(names)))


def numbered(labels: Sequence[str] | None) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and sorted classes for the class of each image."""
    classes = sorted(set(labels or ()))
    numbers = {name: number for number, name in enumerate(classes)}
    return (np.array([numbers[name] for name in labels]) if labels else None), classes


def digest_of(names: Iterable[str], sizes: Iterable[object]) -> str:
    """Hex sha256 of names, and of sizes in bytes or what else tells files apart."""
    total = hashlib.sha256()
    lines = (f"{name}\t{size}\n" for name, size in zip(names, sizes, strict=True))
    while block := "".join(islice(lines, 2**12)):
        total.update(block.encode("utf-8", "replace"))
    return total.hexdigest()


def splits_among(names: Sequence[str], fewest: int = 1) -> tuple[str, dict[str, str]]:
    """The folder that holds folders of splits, "" or with a slash at its end, and these.

    Folders are splits if all are called so, and are ``fewest`` or more, or if one is for training
    and another is not; the dict, empty if they are none, says of each train, val or test.
    """
    shared = ""
    for _ in range(2):
        folders, has_files = _entries(names, shared)
        splits = {folder: split_of(folder) for folder in folders if split_of(folder)}
        trained_and_not = "train" in splits.values() and len(set(splits.values())) > 1
        exact = [folder for folder in splits if bare_name(folder).isalpha()]
        alone = exact == folders and not has_files
        if trained_and_not or (alone and len(exact) >= fewest):
            return shared, splits
        if has_files or len(folders) > 1:  # there is no folder that holds all
            break
        shared = common_folder(names)
    return "", {}


def _entries(names: Iterable[str], shared: str) -> tuple[list[str], bool]:
    """What lies in a folder, sorted, and whether images do, of which a million may."""
    found = set()
    has_files = False
    for name in names:
        entry, slash, _ = name[len(shared) :].partition("/")
        if slash or os.path.splitext(entry)[1].lower() not in EXTENSIONS:
            found.add(entry)
        else:
            has_files = True
    return sorted(found), has_files


def pick_split(names: Collection[str], split: str, where: object) -> str:
    """Which of a set's splits is meant by train, val or a name; for val perhaps the one for tests.

    Raises InputError if it is none of them or several.
    """
    found = [name for name in names if name == split]
    found = found or [name for name in names if split_of(name) == split]
    if not found and split == "val":
        found = [name for name in names if split_of(name) == "test"]
        if len(found) == 1:
            say(f"{printable(where)}: has no split val, so {printable(found[0])} is taken for it")
    if len(found) != 1:
        there = printable(", ".join(names))[:80] or "no splits"
        what = f"{printable(where)}: has no one split {printable(split)!r}"
        raise InputError(f"{what} (there are: {there}); name one of them")
    return found[0]


def refuse_splits(root: Path, names: Sequence[str], fewest: int = 1) -> None:
    """Raises InputError if the folders in ``root``, or in the only one there, are splits."""
    shared, splits = splits_among(names, fewest)
    if splits:
        place = root / shared
        what = f"{printable(place)}: holds the splits {printable(', '.join(splits))}"
        first = min(splits, key=lambda folder: splits[folder] != "train")
        named = place / first if os.path.isdir(place) else f"{root}:{first}"
        raise InputError(f"{what}; give one of them: {printable(named)}")


def counted(kinds: Counter[str], most: int) -> str:
    """The ``most`` common kinds with their counts, and how many others there are."""
    ordered = kinds.most_common()
    counts = [f"{count} x {printable(kind)}" for kind, count in ordered[:most]]
    others = sum(count for _, count in ordered[most:])
    return ", ".join([*counts, f"{others} x others"] if others else counts)


def refuse_compressed(path: Path) -> None:
    """Raises InputError, which says what to type, for an archive that would be slow to read from.

    A compressed tar has to be unpacked from its start for every image.
    """
    if container(path.name) in ("tar.gz", "zip"):
        return
    with readable(path), path.open("rb") as file:
        head = file.read(8)
    command = next((command for magic, command in _UNPACK.items() if head.startswith(magic)), "")
    if command:
        folder = path.with_name(re.sub(r"(\.tar)?\.\w+$", "", path.name) or "images")
        if os.path.exists(folder):
            folder = path.with_name(f"{folder.name}_unpacked")
        words = [shlex.quote(printable(name)) for name in (path, folder)]
        what = f"{printable(path)}: is compressed, and its images are not read from it"
        raise InputError(f"{what}; type `{command.format(*words)}` and give {printable(folder)}")


def find_split(root: Path, split: str) -> Path:
    """The folder, or archive, of a split in ``root``, also under its other usual names.

    Raises InputError if there is none, or more than one but none that has the plain name.
    """
    with readable(root):
        entries = sorted(root.iterdir()) if os.path.isdir(root) else []
    if (root / split).is_dir():
        return root / split
    found = [entry for entry in entries if split_of(entry.name) == split and _may_hold(entry)]
    if len(found) == 1:
        return found[0]
    expected = "expected train/ and val/, class folders in both"
    if found:
        what = f"has {' and '.join(printable(entry.name) for entry in found)}"
        raise InputError(f"{printable(root)}: {what}; {expected}: rename one of them to {split}")
    others = ", ".join(printable(entry.name) for entry in entries if _may_hold(entry))[:80]
    there = f" (there are: {others})" if others else ""
    raise InputError(f"{printable(root)}: has no {split}/ folder{there}; {expected}")


def _may_hold(entry: Path) -> bool:
    return not is_hidden(entry.name) and (entry.is_dir() or container(entry.name) != "")


def size_of(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    return size_and_change(path)[0]


def size_and_change(path: Path) -> tuple[int, int]:
    """Bytes of a file, -1 if there is none; its time of change in nanoseconds, 0 if not known."""
    try:
        found = os.stat(path)
    except OSError:  # a link to nothing: it is found bad when it is read
        return -1, 0
    return found.st_size, found.st_mtime_ns if abs(found.st_mtime_ns) < 2**63 else 0
