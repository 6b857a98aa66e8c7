"""What names say: what is hidden, a split or an archive, what columns hold, what patterns match."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

ARCHIVES = frozenset({".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"})
HIDDEN = "hidden or system"  # how kinds of what is left out begin
# Folders that macOS, Windows, Android, Linux and network storages make beside the user's own.
_SYSTEM_FOLDERS = {
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    *("system volume information", "$recycle.bin", "lost.dir", "lost+found"),
    *("@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot"),  # Synology
    *("@recycle", "@__thumb", "@recently-snapshot"),  # QNAP
}
# Names of columns, in lower case and without what is no letter or digit.
PATHS = {"path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"}
PATHS |= {"img", "imgpath", "imgfile", "imgname", "name", "paths", "files", "images", "relpath"}
LABELS = {"label", "labels", "class", "classname", "classid", "target", "category", "y"}
SPLITS = {"split", "splits", "subset", "fold", "partition"}
_CONTAINERS = {f".{kind}": kind for kind in ("tar", "tar.gz", "zip", "parquet")}
_CONTAINERS[".tgz"] = "tar.gz"
PATTERN = re.compile(r"[*?[{]")  # how one is told from a name
_SPLITS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "eval", "evaluation", "dev"},
    "test": {"test", "testing"},
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a folder that systems make."""
    if name in (".", ".."):
        return False
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def common_folder(names: Collection[str]) -> str:
    """The folder that all paths begin with, "" or with a slash at its end."""
    ends = [min(names, default=""), max(names, default="")]
    prefix = os.path.commonprefix(ends)  # noqa: RUF071 - letters that the two ends share all share
    return prefix[: prefix.rfind("/") + 1]


def why_hidden(name: str, shared: str) -> str:
    """The kind of what is left out that a path belongs to; "" if nothing below ``shared`` hides it.

    ``shared`` is what all paths begin with: the user may have named a folder that is hidden.
    """
    *folders, file = name[len(shared) :].split("/")
    for folder in folders:
        if is_hidden(folder):
            return f"{HIDDEN}: in {folder}/"
    return f"{HIDDEN} file" if is_hidden(file) else ""


def visible(names: Collection[str], skipped: Counter[str]) -> list[str]:
    """The paths that nothing below their common folder hides; ``skipped`` counts the others."""
    shared = common_folder(names)
    kinds = [why_hidden(name, shared) for name in names]
    skipped.update(filter(None, kinds))
    return [name for name, kind in zip(names, kinds, strict=True) if not kind]


def container(name: str) -> str:
    """What a file of this name is read as: tar, tar.gz, zip or parquet; "" for another one."""
    endings = [end for end in _CONTAINERS if name.casefold().endswith(end)]
    return _CONTAINERS[max(endings, key=len)] if endings else ""


def bare_name(name: str) -> str:
    """A name without the ending of what is read as an archive."""
    return re.sub(r"\.(tar|tar\.gz|tgz|zip|parquet)$", "", name, flags=re.IGNORECASE)


def split_of(name: str) -> str:
    """train, val or test for the name of such a folder or tar, as Valid or train_set2; else ""."""
    letters = re.sub("[^a-z]", "", bare_name(name).casefold())
    word = re.sub("(set|data|images)$", "", letters)
    return next((split for split, words in _SPLITS.items() if word in words), "")


def column_of(header: Iterable[str], names: Collection[str]) -> int:
    """The number of the first column called by one of ``names``, as those above; -1: none is."""
    words = [re.sub(r"[\W_]", "", cell).casefold() for cell in header]
    return next((number for number, word in enumerate(words) if word in names), -1)


def expanded(pattern: str) -> Iterator[str]:
    """The texts that the braces of a pattern stand for: {000..099} and {a,b}."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        yield pattern
        return
    parts = (found[3] or "").split(",")
    if found[1]:
        numbers = range(int(found[1]), int(found[2]) + 1)
        parts = (str(number).zfill(len(found[1])) for number in numbers)
    for part in parts:
        yield from expanded(pattern[: found.start()] + part + pattern[found.end() :])
