"""From a manifest row to verified local bytes: packaged, in a checkout, cached, on the Hub, on a mirror; in this order.

A source that has other bytes than the manifest says ends the load; only one that has nothing falls through to the
next. Every path checks the sha256 before the bytes are used for the first time in a process; there is no switch.

Environment: HF_HOME, HF_HUB_CACHE, HF_ASSETS_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the proxies' variables
mean what they mean to huggingface_hub. What is downloaded lies under HF_ASSETS_CACHE, named by row and hash; files that
huggingface_hub has cached at the pinned commit are used too.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers

from .download import TIMEOUT, deadline_for, download, in_time, sole
from .errors import DiskError, InputError, IntegrityError, NetworkError, printable, say
from .files import sha256
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

    from .tensors import read_tensors

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
    target = places[-1][1]
    _download(row, file, target)
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


def _download(row: Row, file: str, target: Path) -> None:
    """From the Hub, else from a mirror. Raises the first source's error if none has it."""
    entry, name = row["files"][file], row["name"]
    if not row["hub"] and not entry["urls"]:
        raise NetworkError(
            f"{name}: {file} is not on this machine and no Hub repository or URL of it is published yet; "
            "`cgh list` says where weights are"
        )
    if constants.HF_HUB_OFFLINE:
        raise NetworkError(f"{name}: {file} is not in {target.parent} and HF_HUB_OFFLINE is set; fetch it once online")
    deadline = deadline_for(entry["bytes"])
    in_time(lambda: _try_all(row, file, target, deadline), deadline, f"{name}: {file}")


def _try_all(row: Row, file: str, target: Path, deadline: float) -> None:
    """The Hub, then the mirrors, while no other process does the same."""
    entry, failed = row["files"][file], []
    with sole(target, deadline, say):
        if target.is_file():  # the process that was waited for has brought it
            return
        for source in (["hub"] if row["hub"] else []) + (entry["urls"] or []):
            try:
                if source == "hub":
                    return _from_hub(row["hub"], file, target, entry, deadline)
                return download(source, target, entry["bytes"], entry["sha256"], deadline)
            except NetworkError as error:
                failed.append(error)
    more = f" ({len(failed) - 1} other sources failed too)" if len(failed) > 1 else ""
    raise NetworkError(f"{row['name']}: {failed[0]}{more}") from failed[0]


def _from_hub(hub: dict[str, str], file: str, target: Path, entry: dict[str, Any], deadline: float) -> None:
    """Asks the Hub's client for the file's metadata, checks what it answers, downloads."""
    repo, revision = hub["repo_id"], hub["revision"]
    url = huggingface_hub.hf_hub_url(repo, file, revision=revision)
    answer = _ask(repo, url, f"{file} at commit {revision}", deadline)
    if answer.commit_hash != revision:
        found = printable(answer.commit_hash)[:60]
        raise IntegrityError(f"{repo}: asked for commit {revision}, the Hub answered {found}; check HF_ENDPOINT")
    headers = {k: v for k, v in build_hf_headers().items() if k.lower() in ("authorization", "user-agent")}
    download(
        url, target, entry["bytes"], entry["sha256"], deadline, headers=headers, endpoint=constants.ENDPOINT
    )  # fmt: skip


def _ask(repo: str, url: str, what: str, deadline: float) -> Any:
    """The Hub's metadata of a file; a stumbling Hub is asked three times."""
    page = f"{constants.ENDPOINT}/{repo}"
    for pause in (0.5, 2.0, None):
        try:
            return huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
        except errors.GatedRepoError as error:
            raise NetworkError(
                f"{page}: gated: accept its terms there, then `hf auth login` or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise NetworkError(f"{page}: not found, or private: `hf auth login` or set HF_TOKEN") from error
        except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
            raise NetworkError(f"{page}: has no {what}; upgrade cgh-models") from error
        except Exception as error:  # the HTTP libraries behind its client differ between versions
            if pause is None or time.monotonic() + pause > deadline:
                reason = printable(" ".join(str(error).split())[:100])
                raise NetworkError(f"{page}: the Hub was not reached ({reason}); try again later") from error
            time.sleep(pause)
    raise AssertionError("unreachable")
