"""The images of a folder; folders of splits, and archives, that have to be given otherwise."""

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import InputError, printable
from .file_names import HIDDEN, bare_name, common_folder, container, is_hidden, split_of
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


def walk(
    root: Path, follow_links: bool, endings: Collection[str] | None = EXTENSIONS
) -> tuple[list[str], Counter[str]]:
    """Sorted names of the images under ``root``, by their endings, and what was left out."""
    names: list[str] = []
    skipped: Counter[str] = Counter()
    home = root.resolve()
    for folder, folders, files in os.walk(root, followlinks=follow_links, onerror=_unreadable):
        for name in list(folders):
            kind = _why_not_entered(Path(folder, name), follow_links)
            if kind:
                skipped[kind] += 1
                folders.remove(name)
        folders.sort()
        for file in files:
            path = Path(folder, file)
            if is_hidden(file):
                skipped[f"{HIDDEN} file"] += 1
            elif endings is not None and path.suffix.lower() not in endings:
                skipped[path.suffix.lower() or "no extension"] += 1
            elif not follow_links and path.is_symlink() and home not in path.resolve().parents:
                skipped["link out of the folder (--follow-links reads it)"] += 1
            else:
                names.append(path.relative_to(root).as_posix())
    return sorted(names), skipped


def further_endings(names: list[str]) -> Counter[str]:
    """How many images have an ending that earlier versions left out."""
    endings = Counter(os.path.splitext(name)[1].lower() for name in names)
    return Counter({ending: endings[ending] for ending in sorted(FURTHER & endings.keys())})


def _why_not_entered(folder: Path, follow_links: bool) -> str:
    if is_hidden(folder.name):
        return f"{HIDDEN} folder {folder.name}/"
    if not folder.is_symlink():
        return ""
    if not follow_links:
        return "linked folder (--follow-links reads it)"
    parent = folder.parent.resolve()
    return "link to a folder around it" if folder.resolve() in (parent, *parent.parents) else ""


def _unreadable(error: OSError) -> NoReturn:
    what = f"{printable(error.filename)}: cannot be read ({error.strerror})"
    raise InputError(f"{what}; mend or remove it") from error


def class_folders(names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and classes, the outermost folders; none if an image lies in none of them."""
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    return numbered(None if "" in folders else folders)


def numbered(labels: list[str] | None) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and sorted classes for the class of each image."""
    classes = sorted(set(labels or ()))
    return (np.searchsorted(classes, labels) if labels else None), classes


def digest_of(names: list[str], sizes: Iterable[int]) -> str:
    """Hex sha256 of names and of sizes in bytes."""
    lines = [f"{name}\t{size}\n" for name, size in zip(names, sizes, strict=True)]
    return hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()


def splits_among(names: list[str], fewest: int = 1) -> tuple[str, dict[str, str]]:
    """The folder that holds folders of splits, "" or with a slash at its end, and these.

    Folders are splits if all are called so, and are ``fewest`` or more, or if one is for training
    and another is not; the dict, empty if they are none, says of each train, val or test.
    """
    for shared in dict.fromkeys(("", common_folder(names))):
        folders = sorted({name[len(shared) :].partition("/")[0] for name in names})
        splits = {folder: split_of(folder) for folder in folders if split_of(folder)}
        trained_and_not = "train" in splits.values() and len(set(splits.values())) > 1
        exact = [folder for folder in splits if bare_name(folder).isalpha()]
        if trained_and_not or (exact == folders and len(exact) >= fewest):
            return shared, splits
    return "", {}


def refuse_splits(root: Path, names: list[str], fewest: int = 1) -> None:
    """Raises InputError if the folders in ``root``, or in the only one there, are splits."""
    shared, splits = splits_among(names, fewest)
    if splits:
        place = root / shared
        what = f"{printable(place)}: holds the splits {printable(', '.join(splits))}"
        first = min(splits, key=lambda folder: splits[folder] != "train")
        give = f"give one of them: {printable(place / first)}"
        if not os.path.isdir(place):
            give = f"give one of them: {printable(root)}:{printable(first)}"
        raise InputError(f"{what}; {give}")


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
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        _unreadable(error)
    command = next((command for magic, command in _UNPACK.items() if head.startswith(magic)), "")
    if command:
        what = f"{printable(path)}: is compressed, and its images are not read from it"
        raise InputError(f"{what}; {_unpack(path, command)}")


def _unpack(path: Path, command: str = _TAR) -> str:
    """What to type to unpack an archive, and what to give then."""
    folder = path.with_name(re.sub(r"(\.tar)?\.\w+$", "", path.name) or "images")
    if os.path.exists(folder):
        folder = path.with_name(f"{folder.name}_unpacked")
    words = [shlex.quote(printable(name)) for name in (path, folder)]
    return f"type `{command.format(*words)}` and give {printable(folder)}"


def find_split(root: Path, split: str) -> Path:
    """The folder, or archive, of a split in ``root``, also under its other usual names.

    Raises InputError if there is none, or more than one but none that has the plain name.
    """
    try:
        entries = sorted(root.iterdir()) if os.path.isdir(root) else []
    except OSError as error:
        _unreadable(error)
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
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing: it is found bad when it is read
        return -1
