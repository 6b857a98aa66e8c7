"""Lists that name images at addresses: as such, or relative to the list's own address."""

import posixpath
import re
from itertools import islice
from pathlib import Path

import numpy as np

from ..progress import watched
from .archive import Archive
from .file_cache import Cache, CachedFile, is_address, looked_up
from .listing import digest_of, numbered
from .path_list import Listed, Row, named_files, read_list, read_text

_ENDINGS = {".txt", ".csv", ".tsv", ".lst"}
_PROBED = 20  # lines of a list on a disk, of which one has an address if any has


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
        names, of_rows, skipped = listed
        labels, classes = numbered(of_rows)
        labels = np.zeros(len(names), int) if labels is None else labels
        files = [file for name in names if (file := self.files[name])]
        digest = digest_of(names, [file.size for file in files])
        index = (names, labels.tolist(), classes, digest, files, CachedFile.open, skipped)
        return Archive(self.home, *index, is_list=True)
