"""Files at an address of fsspec, and unpacked ones, kept in a folder of bounded size."""

import errno
import gzip
import hashlib
import io
import os
import re
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import InputError, NetworkError, printable, say

T = TypeVar("T")

PAUSES = (1.0, 5.0, 15.0, 40.0, 60.0)  # seconds between tries, while a server does not answer
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
_BLOCK = 2**20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_REQUESTS = 32  # at a time, of those that only ask whether a file is there
_AT_ONCE = 2**26  # bytes that are asked for by one request
LARGER = "give a larger one; to commands without that flag, CGH_CACHE_GIB=20"
_UNFINISHED = 600  # seconds in which a file that is being made is written to
_made: Counter[Path] = Counter()  # bytes by folder since this process last looked what is in it


@dataclass(frozen=True)
class Cache:
    """A folder of files that can be made again; the least recently used go first."""

    folder: Path
    limit: int  # bytes


def user_cache() -> Path | None:
    """The user's folder for what can be made again; None without a home."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "cgh-models") if os.path.isabs(home) else None


def cache_of(gib: float | None) -> Cache:
    """The user's cache for such files, or one among the temporary files without a home.

    Of None GiB: as many as CGH_CACHE_GIB says, else 10. Raises InputError if that is no number.
    """
    if gib is None:
        given = os.environ.get("CGH_CACHE_GIB", "10")
        if not re.fullmatch(r"\d+(\.\d+)?", given):
            what = f"CGH_CACHE_GIB={printable(given)[:40]}"
            raise InputError(f"{what}: expected a number of GiB, such as CGH_CACHE_GIB=10")
        gib = float(given)
    home = user_cache() or Path(tempfile.gettempdir(), "cgh-models")
    return Cache(home / "files", int(gib * 2**30))


@dataclass(frozen=True)
class CachedFile:
    """A file that comes into the cache when it is opened."""

    of: "Path | CachedFile | str"  # what is unpacked, or the address that is fetched
    size: int  # bytes there; -1: not known
    tag: str  # etag or time of change there
    cache: Cache

    def __str__(self) -> str:
        return str(self.of)

    @property
    def changed(self) -> int:
        """A number below 2**63 that changes with the tag; 0 without one."""
        digest = hashlib.sha256(self.tag.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:7], "big") if self.tag else 0

    @property
    def path(self) -> Path:
        """Where it is kept."""
        of = self.of.absolute() if isinstance(self.of, Path) else self.of
        key = hashlib.sha256(f"{of}\n{self.size}\n{self.tag}".encode("utf-8", "replace"))
        kind = "" if isinstance(self.of, str) else ".unpacked"
        return self.cache.folder / f"{key.hexdigest()}{kind}"

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, fetched or unpacked if it is not kept. Raises NetworkError after some tries."""
        return self._with_path(lambda path: path.open(mode))  # pyright: ignore

    def link(self, place: Path) -> None:
        """Puts it at another place on the disk of the cache, likewise; there it stays."""

        def put(path: Path) -> None:
            try:
                os.link(path, place)
            except OSError:  # of a disk without hard links
                shutil.copyfile(path, place)

        self._with_path(put)

    def _with_path(self, use: Callable[[Path], T]) -> T:
        for _ in range(3):  # another process may remove it before it is used
            try:
                os.utime(self.path)
                return use(self.path)
            except (FileNotFoundError, NotADirectoryError):
                if isinstance(self.of, str):
                    persistently(str(self), lambda: self._make(_fetched(self)))
                else:
                    with self.of.open("rb") as packed:
                        self._make(gzip.GzipFile(fileobj=packed))  # pyright: ignore
        what = f"{printable(self)}: other runs remove it from {printable(self.cache.folder)}"
        raise InputError(f"{what} before it is used; --cache-gib is small: {LARGER}")

    def _make(self, source: IO[bytes] | gzip.GzipFile) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.tmp")
        count = 0
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with source, temporary.open("wb") as file:
                while block := source.read(_BLOCK):
                    count += len(block)
                    if count > self.cache.limit:
                        most = f"more than --cache-gib {self.cache.limit / 2**30:g}"
                        raise InputError(f"{printable(self)}: {most}; {LARGER}")
                    file.write(block)
            if isinstance(self.of, str) and self.size not in (-1, count):
                raise ConnectionError(f"{count} of {self.size} bytes came")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        _made[self.cache.folder] += count
        if _made[self.cache.folder] > self.cache.limit / 50:
            _made[self.cache.folder] = 0
            _evict(self.cache, self.path)


def _evict(cache: Cache, kept: Path) -> None:
    """Removes what was not used for longest, so that the rest takes 9 tenths of the limit."""
    files = []
    for entry in os.scandir(cache.folder):
        try:
            found = entry.stat()
        except FileNotFoundError:
            continue
        files.append((found.st_mtime, found.st_size, Path(entry)))
    total = sum(size for _, size, _ in files)
    for changed, size, path in sorted(files):
        if total <= 0.9 * cache.limit:
            return
        in_the_making = path.suffix == ".tmp" and time.time() - changed < _UNFINISHED
        if path != kept and not in_the_making:
            path.unlink(missing_ok=True)
            total -= size


def is_address(text: str) -> bool:
    """Whether it is an address of fsspec, as s3://BUCKET/FOLDER."""
    return _ADDRESS.match(text) is not None


def unpacked(packed: Path | CachedFile, cache: Cache) -> CachedFile:
    """What a gzip file holds."""
    if isinstance(packed, CachedFile):
        return CachedFile(packed, packed.size, packed.tag, cache)
    found = packed.stat()
    return CachedFile(packed, found.st_size, str(found.st_mtime_ns), cache)


def listed(address: str, cache: Cache) -> tuple[str, list[CachedFile]]:
    """An address as its server calls it, and the files there, sorted: itself, in it, or matches.

    Raises InputError if there is nothing.
    """
    system, path = _file_system(address)

    def look() -> dict[str, dict[str, object]]:
        if "*" in path:
            return system.glob(path, detail=True)
        info = system.info(path)
        return {path: info} if info["type"] == "file" else system.find(path, detail=True)

    found = sorted(_answer(address, look).items())
    files = [_entry(system, name, info, cache) for name, info in found if info["type"] == "file"]
    if not files:
        raise _refused(address, FileNotFoundError("no files"))
    return called(address), files


def looked_up(addresses: list[str], cache: Cache) -> Iterator[CachedFile | None]:
    """The file at each of these addresses; None where there is none. Raises NetworkError."""

    def look(address: str, system: Any, path: str) -> CachedFile | None:
        try:
            info = _answer(address, lambda: system.info(path))
        except InputError:
            return None
        return _entry(system, path, info, cache) if info["type"] == "file" else None

    systems = zip(*map(_file_system, addresses), strict=True)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(look, addresses, *systems)


def called(address: str) -> str:
    """An address as its server calls it: another one for an alias, as s3a:// for s3://."""
    system, path = _file_system(address)
    return system.unstrip_protocol(path).rstrip("/")


def _answer(address: str, ask: Callable[[], T]) -> T:
    """What a server answers. Raises InputError if there is nothing."""
    try:
        return ask()
    except Exception as error:  # what the clients of a dozen services raise
        if _is_missing(error):
            raise _refused(address, error) from error
        what = f"{printable(address)}: no answer ({_reason(error)})"
        raise NetworkError(f"{what}; try again when its server can be reached") from error


def _entry(system: Any, path: str, info: dict[str, Any], cache: Cache) -> CachedFile:
    size = -1 if info.get("size") is None else int(info["size"])
    tag = str(next((info[key] for key in ("ETag", "etag", "mtime") if info.get(key)), ""))
    return CachedFile(system.unstrip_protocol(path), size, tag, cache)


def persistently(what: str, work: Callable[[], T]) -> T:
    """What ``work`` returns, which is tried again after each of `PAUSES`; then NetworkError."""
    for pause in (*PAUSES, None):
        try:
            return work()
        except InputError:
            raise
        except Exception as error:  # what the clients of a dozen services raise
            if _is_missing(error):
                raise NetworkError(str(_refused(what, error))) from error  # a run is saved
            reason = _reason(error)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                hint = "make room there, or give a smaller --cache-gib (CGH_CACHE_GIB)"
                raise InputError(f"{printable(what)}: cannot be kept ({reason}); {hint}") from error
            if pause is None:
                tried = f"no answer in {len(PAUSES) + 1} tries over {sum(PAUSES):g} s ({reason})"
                raise NetworkError(f"{printable(what)}: {tried}") from error
        say(f"{printable(what)}: {reason}; trying again in {pause:g} s")
        time.sleep(pause)
    raise AssertionError


def _fetched(file: CachedFile) -> IO[bytes]:
    """The bytes at an address. Raises InputError if they are not what was listed."""
    system, path = _file_system(str(file))
    now = _entry(system, path, system.info(path), file.cache)
    if (now.size, now.tag) != (file.size, file.tag):
        what = f"{printable(file)}: was changed since it was listed"
        raise InputError(f"{what}; start a new run on what is there now")
    if 0 <= file.size <= _AT_ONCE:
        return io.BytesIO(system.cat_file(path))
    return system.open(path, "rb")


def _file_system(address: str) -> tuple[Any, str]:
    try:
        import fsspec

        system, path = fsspec.url_to_fs(address)
        system.invalidate_cache()  # it keeps what it was told before
        return system, path
    except (ImportError, ValueError) as error:
        hint = "expected an address as s3://BUCKET/FOLDER"
        if isinstance(error, ImportError):  # of fsspec, or of the package that a protocol needs
            hint = "`pip install '.[remote]'` has fsspec and s3fs"
        raise InputError(f"{printable(address)}: {_reason(error)}; {hint}") from error


def _refused(address: str, error: Exception) -> InputError:
    reason = "may not be read" if isinstance(error, PermissionError) else "there is nothing"
    what = f"{printable(address)}: {reason} ({_reason(error)})"
    return InputError(f"{what}; mend the address, or give a key that may read it")


def _is_missing(error: Exception) -> bool:
    """Whether a server said so: fsspec also raises FileNotFoundError if one of https is silent."""
    says_so = getattr(error.__cause__, "status", 0) in (401, 403, 410)
    is_silent = type(error.__cause__).__module__.startswith("aiohttp") and not says_so
    return isinstance(error, (FileNotFoundError, PermissionError)) and not is_silent


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:120] or type(error).__name__
