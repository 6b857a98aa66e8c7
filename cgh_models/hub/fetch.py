"""From a manifest row to verified local bytes: packaged, in a checkout, cached, on the Hub, on a mirror; in this order.

A source that has other bytes than the manifest says ends the load; only one that has nothing falls through to the
next. Every path checks the sha256 before the bytes are used for the first time in a process; there is no switch.

Environment: HF_HOME, HF_HUB_CACHE, HF_ASSETS_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the proxies' variables
mean what they mean to huggingface_hub. What is downloaded lies under HF_ASSETS_CACHE, named by row and hash; files that
huggingface_hub has cached at the pinned commit are used too.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import constants

from ..errors import DiskError, InputError, IntegrityError, printable
from ..files import sha256
from .manifest import PACKAGE, Row

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGED, _CHECKOUT = PACKAGE / "weights", PACKAGE.parent / "weights"
HERE = {"packaged", "checkout", "cached"}
_verified: dict[Path, tuple] = {}  # path -> (size, mtime, inode) and sha256 it was verified with in this process


def fetch(row: Row, file: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The local path of a row's file, verified.

    Raises:
        InputError: the row has no such file.
        NetworkError: it is nowhere on this machine and could not be fetched.
        IntegrityError: the first source that has it has other bytes.
        DiskError: the cache cannot be written, or the file not read.
    """
    path = _locate(row, file, cache_dir)
    expected = row["files"][file]["sha256"]
    with _readable(path):
        before = _stamp(path)
        if _verified.get(path) != (before, expected):
            found = sha256(path)
            if found != expected:
                raise _refuse(path, expected, found)
            _verified[path] = before, expected
    return path


def read(row: Row, file: str, cache_dir: str | os.PathLike[str] | None = None) -> dict[str, "Tensor"]:
    """The tensors of a row's file; the bytes hashed are the very ones that become tensors. Raises as `fetch`.

    Later calls in a process map the file that the first one has verified.
    """
    from safetensors.torch import load_file  # `cgh list` needs this module without torch

    from ..tensors import read_tensors

    path = _locate(row, file, cache_dir)
    expected = row["files"][file]["sha256"]
    with _readable(path):
        before = _stamp(path)
        if _verified.get(path) == (before, expected):
            return load_file(path)
        try:
            tensors = read_tensors(path, expected)
        except IntegrityError as error:
            if (found := sha256(path)) == expected:
                raise
            raise _refuse(path, expected, found) from error
        _verified[path] = before, expected
    return tensors


def where(row: Row, file: str) -> str:
    """Where a file is, in a word or two: packaged, checkout, cached, Hub, URL, nowhere."""
    entry = row["files"].get(file)
    if entry is None:
        return "nowhere"
    for place, path in _places(row, file, None):
        with contextlib.suppress(OSError):
            if path.is_file():
                return place
    return "Hub" if row["hub"] else "URL" if entry["urls"] else "nowhere"


def _locate(row: Row, file: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    """A local file that claims to be it, downloaded if there is none."""
    if file not in row["files"]:
        raise InputError(f"{row['name']}: {file} was not published; expected one of {', '.join(row['files'])}")
    places = _places(row, file, cache_dir)
    for _, path in places:
        with _readable(path):
            if path.is_file():
                return path
    from .remote import bring  # what is here is loaded without any library of the network

    target = places[-1][1]
    bring(row, file, target)
    return target


def _places(row: Row, file: str, cache_dir: str | os.PathLike[str] | None) -> list[tuple[str, Path]]:
    """Where on this machine a file can be; the last is where a download goes."""
    places = [("packaged", _PACKAGED / row["name"] / file), ("checkout", _CHECKOUT / row["name"] / file)]
    if row["hub"]:
        hub_cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        path = huggingface_hub.try_to_load_from_cache(
            row["hub"]["repo_id"], file, cache_dir=hub_cache, revision=row["hub"]["revision"]
        )
        places += [("cached", Path(path))] if isinstance(path, str) else []
    assets = Path(cache_dir or constants.HF_ASSETS_CACHE).expanduser()
    return [*places, ("cached", assets / "cgh-models" / row["name"] / row["files"][file]["sha256"][:12] / file)]


def _stamp(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """An OSError becomes a DiskError: timm would take it for a file that is not there."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{printable(path)}: cannot be read ({error.strerror}); check its permissions") from error


def _refuse(path: Path, expected: str, found: str) -> IntegrityError:
    """The error for other bytes than expected; a cached file is removed, so that nobody finds it again."""
    text = f"{printable(path)}: sha256 differs: expected {expected}, found {found}; "
    if PACKAGE in path.parents:
        return IntegrityError(text + "install cgh-models again")
    if _CHECKOUT in path.parents:
        return IntegrityError(text + "check the file out again")
    try:
        blob = path.resolve()
        path.unlink()
        if blob.parent == path.parents[2].resolve() / "blobs":  # the file behind the Hub cache's link, and no other
            blob.unlink(missing_ok=True)
    except OSError:
        return IntegrityError(text + "remove it, then load again")
    return IntegrityError(text + "it was removed from the cache: load again")
