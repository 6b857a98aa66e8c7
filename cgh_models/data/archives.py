"""Images in tar and zip archives, read by Python's tarfile and zipfile."""

import contextlib
import functools
import hashlib
import io
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from ..errors import InputError, printable
from .archive import Archive, below, number_classes
from .file_cache import CachedFile
from .file_names import bare_name, visible, why_hidden

_MOST_BYTES = 2**28  # of an image that are unpacked; `decode` refuses more
_BLOCK = 512  # bytes; an archive ends in one or two of zeros


@dataclass(frozen=True, slots=True)
class Member:
    """Where an image lies in a zip, a tar, or a tar within it; the names are those of `TarInfo`."""

    file: Path | CachedFile  # the archive: its ``open("rb")`` gives the bytes
    name: str  # of the image in the set
    size: int  # bytes
    offset_data: Any  # bytes from the start of the outer tar; in a zip its ZipInfo
    sparse: object  # the parts that are not zeros; None: all of it is stored
    changed: int  # nanoseconds, or a zip's checksum


def open_tars(root: str, tars: Sequence[Path | CachedFile], endings: Collection[str]) -> Archive:
    """The images of some tars, `Path`s or `CachedFile`s, by their endings; named below ``root``."""
    members = []
    skipped: Counter[str] = Counter()
    for tar in tars:
        try:
            with tar.open("rb") as file:
                for location, info, start in _images(str(tar), file, 0, endings, skipped):
                    members.append(_member(tar, below(root, location), info, start))
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(tar, error) from error
    return _index(root, members, skipped, _open_member)


def open_zips(root: str, zips: Sequence[Path | CachedFile], endings: Collection[str]) -> Archive:
    """The images of some zips, as `open_tars` has those of tars."""
    members = []
    skipped: Counter[str] = Counter()
    for path in zips:
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as packed:
                infos = packed.infolist()
        except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from error
        for info in infos:
            extension = posixpath.splitext(info.filename)[1].lower()
            name = below(root, f"{path}/{info.filename}")
            if info.flag_bits & 1:
                skipped["encrypted"] += 1
            elif extension in endings:
                members.append(Member(path, name, info.file_size, info, None, info.CRC))
            elif not info.is_dir():
                skipped[extension or "no extension"] += 1
    return _index(root, members, skipped, _open_zip_member)


def _unreadable(file: object, error: Exception) -> InputError:
    what = f"{printable(file)}: cannot be read ({printable(error)[:120]})"
    return InputError(f"{what}; mend it or pack it anew")


def _index(
    root: str, members: list[Member], skipped: Counter[str], opener: Callable[[Member], Any]
) -> Archive:
    found: dict[str, Member] = {}  # by the path they are unpacked to: the last of a name counts
    for member in members:
        unpacked = posixpath.normpath(member.name.lstrip("/"))
        skipped["named again"] += unpacked in found
        found[unpacked] = member
    by_name = {member.name: member for member in found.values()}
    names = visible(sorted(by_name), skipped)
    members = [by_name[name] for name in names]
    labels, classes = number_classes([_label(name) for name in names])
    lines = sorted(f"{member.name}\t{member.size}\n" for member in members)
    digest = hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()
    return Archive(root, names, labels, classes, digest, members, opener, +skipped)


@contextlib.contextmanager
def _open_member(member: Member) -> Iterator[IO[bytes]]:
    with member.file.open("rb") as file:
        tar: Any = SimpleNamespace(fileobj=file)
        image = tarfile.ExFileObject(tar, member)  # pyright: ignore[reportArgumentType]
        # Of one with holes tarfile reads zeros after it went back.
        yield io.BytesIO(image.read(_MOST_BYTES + 1)) if member.sparse else image


def _open_zip_member(member: Member) -> IO[bytes]:
    stamp = member.file.stat().st_mtime_ns if isinstance(member.file, Path) else 0
    with _zip(member.file, stamp, os.getpid()).open(member.offset_data) as file:
        return io.BytesIO(file.read(_MOST_BYTES + 1))


@functools.lru_cache(maxsize=16)
def _zip(file: Path | CachedFile, _stamp: object, _process: int) -> zipfile.ZipFile:
    """Kept open, by each process for itself: two that share a file share its position, too."""
    return zipfile.ZipFile(file.open("rb"))


def _images(
    location: str, file: IO[bytes], start: int, endings: Collection[str], skipped: Counter[str]
) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """The images of a tar and of those in it: where they are, and where their tar starts in bytes.

    Raises InputError if the tar is not whole.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    last = ""
    try:
        tar: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closes no file of ours
    except Exception as error:  # tarfile raises a dozen kinds for damaged headers
        what = f"{printable(location)}: no readable tar archive ({printable(error)[:120]})"
        raise InputError(f"{what}; pack it anew") from error
    while True:
        try:
            info = tar.next()
        except Exception as error:
            raise _damaged(location, last, str(error)) from error
        if info is None:
            break
        if info.size < 0 or tar.offset > size:
            raise _damaged(location, last, f"{info.name} is cut short")
        last = info.name
        tar.members.clear()  # a million of them take a gigabyte
        kind = _kind(info)
        inside = f"{location}/{info.name}"
        if kind == ".tar" and info.sparse:
            raise _damaged(location, last, f"{info.name} is a sparse tar in it")
        if kind == ".tar":
            child: Any = tar.extractfile(info)
            yield from _images(inside, child, start + info.offset_data, endings, skipped)
        elif kind in endings:
            yield inside, info, start
        elif kind:
            skipped[kind] += 1
    _check_end(file, tar.offset, location, last)


def _kind(info: tarfile.TarInfo) -> str:
    """The extension of an image or a tar, what else a member is, or "" for a folder."""
    if info.isdir():
        return ""
    if not info.isfile():
        return "link or device in the archive"
    extension = posixpath.splitext(info.name)[1].lower()
    if extension == ".tar":
        return why_hidden(info.name, "") or extension  # macOS makes ._NAME.tar, which is none
    return extension or "no extension"


def _member(tar: Path | CachedFile, name: str, info: tarfile.TarInfo, start: int) -> Member:
    nanoseconds = info.mtime * 1e9
    changed = int(nanoseconds) if abs(nanoseconds) < 2**63 else 0  # not for nan
    return Member(tar, name, info.size, start + info.offset_data, info.sparse, changed)


def _label(name: str) -> str:
    """The folder that an image lies in, or the tar; "" for neither."""
    folders = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    return bare_name(folders[-1]) if folders else ""


def _check_end(file: IO[bytes], offset: int, location: str, last: str) -> None:
    """Raises InputError unless the archive ends, and no other one follows its end."""
    file.seek(offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise _damaged(location, last, "its end is missing")
    while block := file.read(2**20):
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            header = block[zeros - zeros % _BLOCK :][:_BLOCK]
            with contextlib.suppress(tarfile.HeaderError):  # something else does no harm
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                raise _damaged(location, last, "another archive follows its end")
            return


def _damaged(location: str, last: str, reason: str) -> InputError:
    after = f"the last whole member is {printable(last)[-100:]!r}" if last else "no member is whole"
    what = f"{printable(location)}: not a whole tar archive, {printable(reason)[:120]}; {after}"
    return InputError(f"{what}: copy it or pack it anew")
