"""Finds or downloads the files of a manifest row; size and sha256 are checked before they are used.

Tried in this order: the package, its checkout, huggingface_hub's caches (downloads go there), the
Hub, URLs. The first that has the file counts: other bytes than the row says end the load.
"""

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from ..errors import DiskError, InputError, IntegrityError, NetworkError, os_error_as, printable
from ..hashing import sha256
from .row import FileEntry, Row

if TYPE_CHECKING:
    from ..tensors import Tensors

CacheDir = str | os.PathLike[str] | None
HERE = {"packaged", "checkout", "cached"}
_PACKAGED = Path(__file__).parents[1] / "weights"
_CHECKOUT = Path(__file__).parents[2] / "weights"
# What cannot be read is a DiskError: timm would take an OSError for a file that is not there.
_readable = partial(os_error_as, DiskError, what="cannot be read", advice="check its permissions")
_verified: dict[Path, tuple[int, int, int, str]] = {}  # size, mtime, inode and sha256 when verified


def fetch(row: Row, file: str, cache_dir: CacheDir = None) -> Path:
    """The local path of a row's file, verified; downloaded into ``cache_dir`` or the Hub's caches.

    Raises:
        NetworkError: it is nowhere on this machine and could not be downloaded.
        IntegrityError: the first place that has it has other bytes.
        DiskError: the cache cannot be written, or the file not read.
    """
    path = _locate(row, file, cache_dir)
    expected = row.files[file]
    with _readable(path):
        stamp = _stamp(path, expected.sha256)
        if _verified.get(path) != stamp:
            _refuse_other_bytes(path, expected, cache_dir)
            _verified[path] = stamp
    return path


def read(row: Row, file: str, folder: Path | None, cache_dir: CacheDir = None) -> "Tensors":
    """The verified tensors of a row's file: of a weights folder, or of published weights.

    The first call in a process hashes the very bytes that become tensors; later calls map the file.
    """
    from safetensors.torch import load_file  # `cgh list` needs this module without torch

    from ..tensors import read_tensors

    if folder is not None:
        return read_tensors(folder / file, row.files[file].sha256)
    path = _locate(row, file, cache_dir)
    expected = row.files[file]
    with _readable(path):
        stamp = _stamp(path, expected.sha256)
        if _verified.get(path) == stamp:
            return load_file(path)
        try:
            tensors = read_tensors(path, expected.sha256)
        except IntegrityError:
            _refuse_other_bytes(path, expected, cache_dir)  # removes them from a cache
            raise
        _verified[path] = stamp
    return tensors


def location(row: Row, file: str) -> str:
    """The place of a file in one word: packaged, checkout, cached, Hub, URL or nowhere."""
    if file not in row.files:
        return "nowhere"
    for place, path in _places(row, file, None):
        with contextlib.suppress(OSError):
            if path.is_file():
                return place
    if row.hub:
        return "Hub"
    return "URL" if row.files[file].urls else "nowhere"


def _locate(row: Row, file: str, cache_dir: CacheDir) -> Path:
    if file not in row.files:
        raise InputError(f"{row.name}: {file} was not published; it has {', '.join(row.files)}")
    for _, path in _places(row, file, cache_dir):
        with _readable(path):
            if path.is_file():
                return path
    return _download(row, file, cache_dir)


def _places(row: Row, file: str, cache_dir: CacheDir) -> list[tuple[str, Path]]:
    """The local paths at which a file may lie, by place; a URL's download goes to the last."""
    places = [("packaged", _PACKAGED / row.name / file), ("checkout", _CHECKOUT / row.name / file)]
    if row.hub:
        # Source: "Understand caching" in huggingface_hub's docs. Its try_to_load_from_cache imports
        # an HTTP client, and believes a refs/<commit> that a wrong answer has left.
        repo = "models--" + row.hub.repo_id.replace("/", "--")
        snapshot = _hub_cache(cache_dir) / repo / "snapshots" / row.hub.revision
        places.append(("cached", snapshot / file))
    assets = Path(cache_dir or constants.HF_ASSETS_CACHE).expanduser() / "cgh-models"
    places.append(("cached", assets / row.name / row.files[file].sha256[:12] / file))
    return places


def _hub_cache(cache_dir: CacheDir) -> Path:
    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser()


def _stamp(path: Path, digest: str) -> tuple[int, int, int, str]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, digest


def _refuse_other_bytes(path: Path, expected: FileEntry, cache_dir: CacheDir) -> None:
    """Raises IntegrityError if size or sha256 differ, after a cached file was removed."""
    size = path.stat().st_size
    reason = f"{size} bytes, {expected.bytes} expected"
    if size == expected.bytes:
        found = sha256(path)
        if found == expected.sha256:
            return
        reason = f"sha256 differs: expected {expected.sha256}, found {found}"
    hint = "remove it, then load again"
    if _PACKAGED in path.parents:
        hint = "install cgh-models again"
    elif _CHECKOUT in path.parents:
        hint = "check the file out again"
    else:
        with contextlib.suppress(OSError):
            _remove_from_cache(path, cache_dir)
            hint = "it was removed from the cache: load again"
    raise IntegrityError(f"{printable(path)}: {reason}; {hint}")


def _remove_from_cache(path: Path, cache_dir: CacheDir) -> None:
    target = path.resolve()
    path.unlink()
    blobs = target.parent  # of the Hub's cache, in which the snapshots are links
    inside = _hub_cache(cache_dir).resolve() in target.parents
    if inside and blobs.name == "blobs" and blobs.parent.name.startswith("models--"):
        target.unlink(missing_ok=True)


def _download(row: Row, file: str, cache_dir: CacheDir) -> Path:
    name = f"{row.name}: {file}"
    hub = row.hub
    urls = row.files[file].urls or []
    if not hub and not urls:
        reason = "no Hub repository or URL of it is published yet; see `cgh list`"
        raise NetworkError(f"{name} is not on this machine, and {reason}")
    if constants.HF_HUB_OFFLINE:
        raise NetworkError(f"{name} is not cached and HF_HUB_OFFLINE is set; fetch it once online")
    from .sources import from_hub, from_url  # only a download needs the HTTP clients

    size = row.files[file].bytes
    target = _places(row, file, cache_dir)[-1][1]
    downloads = [partial(from_url, url, target, size) for url in urls]
    if hub:
        cache = _hub_cache(cache_dir)
        downloads.insert(0, partial(from_hub, hub.repo_id, hub.revision, file, size, cache))
    first = None
    for download in downloads:
        try:
            return download()
        except NetworkError as error:
            first = first or error
    raise NetworkError(f"{name}: {first}") from first
