"""Images in tar archives, read by Python's tarfile, and in datasets of the Hub, by timm."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from timm.data.readers import create_reader
from timm.utils.misc import natural_key

from ..errors import BadImage, InputError, printable
from .file_names import common_folder, is_hidden, is_tar, why_hidden
from .formats import EXTENSIONS

# timm's readers that go through a set in an order of their own.
_UNORDERED = ("hfids/", "tfds/", "wds/")
_BLOCK = 512  # bytes; an archive ends in one or two of zeros


@dataclass(frozen=True, slots=True)
class Member:
    """Where an image lies in a tar, or in a tar within it; the names are those of `TarInfo`."""

    tar: Path
    name: str  # of the image in the set
    label: str  # the folder it lies in, or the tar; "" for neither
    size: int  # bytes
    offset_data: int  # bytes from the start of the outer tar
    sparse: Any  # the parts that are not zeros; None: all of it is stored
    changed: int  # nanoseconds


@dataclass
class Archive:
    """The index of an archive."""

    root: Path  # the folder that names are relative to, for messages
    names: list[str]  # of the images, sorted
    labels: list[int]  # class of each image
    classes: list[str]  # sorted as timm's readers do
    digest: str  # sha256 of names and sizes, or of the dataset's own fingerprint
    places: list[Any]  # a Member for each image, or its position in the reader
    reader: Any = None  # timm's, of a dataset of the Hub
    skipped: Counter[str] = field(default_factory=Counter)  # as in `ImageSet`

    def take(self, indices: Iterable[int]) -> "Archive":
        """These images alone, in this order."""
        indices = list(indices)
        return dataclasses.replace(
            self,
            names=[self.names[index] for index in indices],
            labels=[self.labels[index] for index in indices],
            places=[self.places[index] for index in indices],
        )

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[IO[bytes]]:
        """An image's bytes as an open file. Raises `BadImage`."""
        place = self.places[index]
        with contextlib.ExitStack() as stack:
            try:
                if self.reader:
                    file = stack.enter_context(self.reader[place][0])
                else:
                    tar: Any = SimpleNamespace(fileobj=stack.enter_context(open(place.tar, "rb")))
                    file = tarfile.ExFileObject(tar, place)
                yield file
            except (tarfile.TarError, OSError, EOFError, AssertionError) as error:
                reason = f"cannot be read from its archive: {printable(error)[:120]}"
                raise BadImage(reason) from error

    def changed(self, index: int) -> int:
        """As `ImageSet.changed`; 0 for a dataset of the Hub, whose fingerprint says all of it."""
        return 0 if self.reader else self.places[index].changed


def open_archive(data: str | Path) -> Archive | None:
    """The archive, if ``data`` is a tar, a folder of nothing but those, or ``hfds/NAME``."""
    text = str(data)
    path = Path(data)
    if text.startswith("hfds/") and not os.path.exists(path):
        return _open_hub_dataset(text)
    if text.startswith(_UNORDERED) and not os.path.exists(path):
        what = f"{printable(text)}: gives its images in an order that no run could resume"
        raise InputError(f"{what}; give a folder, a tar archive or hfds/NAME")
    if os.path.isfile(path):
        return _open_tars(path, [path]) if is_tar(path.name) else None
    tars = _only_tars(path) if os.path.isdir(path) else []
    return _open_tars(path, tars) if tars else None


def _only_tars(path: Path) -> list[Path]:
    """The tars of a folder of nothing else; it may have millions of other entries."""
    tars = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not is_tar(entry.name) or not entry.is_file():
                    return []
                tars.append(Path(entry))
    except OSError:  # no folder, or one that cannot be read: whoever reads it as a folder says so
        return []
    return sorted(tars)


def _open_tars(root: Path, tars: list[Path]) -> Archive:
    found: dict[str, Member] = {}  # by the path they are unpacked to: the last of a name counts
    skipped: Counter[str] = Counter()
    for tar in tars:
        try:
            with open(tar, "rb") as file:
                for location, info, start in _images(str(tar), file, 0, skipped):
                    member = _member(tar, location[len(str(root)) + 1 :], info, start)
                    unpacked = posixpath.normpath(member.name.lstrip("/"))
                    skipped["named again"] += unpacked in found
                    found[unpacked] = member
        except OSError as error:
            what = f"{printable(tar)}: cannot be read ({printable(error)[:120]})"
            raise InputError(f"{what}; mend it or pack it anew") from error
    shared = common_folder([member.name for member in found.values()])
    members = []
    for member in sorted(found.values(), key=lambda member: member.name):
        kind = why_hidden(member.name, shared)
        if kind:
            skipped[kind] += 1
        else:
            members.append(member)
    # The order of classes is that of timm's reader, from the names alone.
    classes = sorted(sorted({member.label for member in members}), key=natural_key)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[member.label] for member in members]
    names = [member.name for member in members]
    lines = sorted(f"{member.name}\t{member.size}\n" for member in members)
    digest = hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()
    if "" in classes:
        classes = []
    return Archive(root, names, labels, classes, digest, members, skipped=+skipped)


def _images(
    location: str, file: IO[bytes], start: int, skipped: Counter[str]
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
            yield from _images(inside, child, start + info.offset_data, skipped)
        elif kind in EXTENSIONS:
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


def _member(tar: Path, name: str, info: tarfile.TarInfo, start: int) -> Member:
    folders = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    label = re.sub(r"\.tar$", "", folders[-1], flags=re.IGNORECASE) if folders else ""
    nanoseconds = info.mtime * 1e9
    changed = int(nanoseconds) if abs(nanoseconds) < 2**63 else 0  # not for nan
    return Member(tar, name, label, info.size, start + info.offset_data, info.sparse, changed)


def _check_end(file: IO[bytes], offset: int, location: str, last: str) -> None:
    """Raises InputError unless the archive ends, and no other one follows its end."""
    file.seek(offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise _damaged(location, last, "its end is missing")
    while True:
        block = file.read(2**20)
        if not block:
            return
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


def _open_hub_dataset(text: str) -> Archive:
    """``hfds/NAME`` or ``hfds/NAME:SPLIT``."""
    if importlib.util.find_spec("datasets") is None:
        install = "pip install '.[datasets]'"
        raise InputError(f"{printable(text)}: needs the datasets library; type `{install}`")
    name, _, split = text.partition(":")
    try:
        reader: Any = create_reader(name, split=split or "train")
        if reader.class_to_idx:
            labels = [int(label) for label in reader.iter_targets()]
        else:  # timm's reader wants some label with every image
            reader = create_reader(name, split=split or "train", target_key=reader.image_key)
            labels = [0] * len(reader)
    except Exception as error:  # datasets raises what its dozen back ends raise
        reason = printable(" ".join(str(error).split()))[:160]
        what = f"{printable(text)}: cannot be read as a dataset of images ({reason})"
        raise InputError(f"{what}; give hfds/NAME or hfds/NAME:SPLIT") from error
    positions = list(range(len(reader)))
    names = [f"{position:08d}" for position in positions]
    classes = [str(name) for name in reader.class_to_idx or ()]
    fingerprint = f"{reader.dataset._fingerprint}\t{len(names)}"
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    return Archive(Path(text), names, labels, classes, digest, positions, reader)
