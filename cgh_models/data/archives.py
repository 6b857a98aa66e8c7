"""Images in tar archives and in datasets of the Hub, read by timm's readers."""

import dataclasses
import hashlib
import importlib.util
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from timm.data.readers import create_reader, img_extensions
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from ..errors import BadImage, InputError, printable
from .formats import EXPECTED, EXTENSIONS

# timm's readers that go through a set in an order of their own.
_UNORDERED = ("hfids/", "tfds/", "wds/")


@dataclass
class Archive:
    """The index of an archive, and its reader."""

    reader: Any  # timm's
    root: Path  # the folder that names are relative to, for messages
    names: list[str]  # of the images, sorted
    labels: list[int]  # class of each image
    classes: list[str]  # in the reader's order
    digest: str  # sha256 of names and sizes, or of the dataset's own fingerprint
    positions: list[int]  # of the images in the reader

    def take(self, indices: Iterable[int]) -> "Archive":
        """These images alone, in this order."""
        indices = list(indices)
        return dataclasses.replace(
            self,
            names=[self.names[index] for index in indices],
            labels=[self.labels[index] for index in indices],
            positions=[self.positions[index] for index in indices],
        )

    def open(self, index: int) -> IO[bytes]:
        """An image's bytes as an open file. Raises `BadImage`."""
        try:
            return self.reader[self.positions[index]][0]
        except (tarfile.TarError, OSError, EOFError, AssertionError) as error:
            raise BadImage(f"cannot be read from its archive: {printable(error)[:120]}") from error

    def changed(self, index: int) -> int:
        """As `ImageSet.changed`; 0 for a dataset of the Hub, whose fingerprint says all of it."""
        if not isinstance(self.reader, ReaderImageInTar):
            return 0
        return int(self.reader.samples[self.positions[index]][0].mtime * 1e9)


def open_archive(data: str | Path) -> Archive | None:
    """The archive, if ``data`` is a tar, a folder of nothing but those, or ``hfds/NAME``."""
    text = str(data)
    path = Path(data)
    if text.startswith("hfds/") and not path.exists():
        return _open_hub_dataset(text)
    if text.startswith(_UNORDERED) and not path.exists():
        what = f"{printable(text)}: gives its images in an order that no run could resume"
        raise InputError(f"{what}; give a folder, a tar archive or hfds/NAME")
    if _is_tar(path) or _holds_only_tars(path):
        return _open_tar(path)
    return None


def _is_tar(path: Path | os.DirEntry) -> bool:
    return path.name.endswith(".tar") and path.is_file()


def _holds_only_tars(path: Path) -> bool:
    """Stops at the first entry that is no archive: a folder may hold millions of images."""
    try:
        with os.scandir(path) as entries:
            kinds = (_is_tar(entry) for entry in entries if not entry.name.startswith("."))
            return next(kinds, False) and all(kinds)
    except OSError:  # no folder, or one that cannot be read: whoever reads it as a folder says so
        return False


def _open_tar(path: Path) -> Archive:
    timms = img_extensions.get_img_extensions()  # png, jpg and jpeg only
    img_extensions.set_img_extensions([*timms, *sorted(EXTENSIONS - set(timms))])
    try:
        # No cache of the index: timm would write a pickle beside it, and read one that is there.
        reader = ReaderImageInTar(str(path), cache_tarfiles=False, cache_tarinfo=False)
    except (tarfile.TarError, EOFError, OSError) as error:
        what = f"{printable(path)}: no readable tar archive ({printable(error)[:120]})"
        raise InputError(f"{what}; pack it anew") from error
    except ValueError as error:  # timm unpacks a list of no images
        raise InputError(f"{printable(path)}: no images in it; {EXPECTED}") from error
    finally:
        img_extensions.set_img_extensions(timms)
    names = []
    lines = []
    for member, tar, child in reader.samples:
        parts = (tar, child.name if child else None, member.name)
        names.append("/".join(filter(None, parts)))
        lines.append(f"{names[-1]}\t{member.size}\n")
    labels = [int(label) for label in reader.targets]
    classes = [str(name) for name in reader.class_name_to_idx or ()]
    digest = hashlib.sha256("".join(sorted(lines)).encode("utf-8", "replace")).hexdigest()
    positions = list(range(len(names)))
    archive = Archive(reader, path, names, labels, classes, digest, positions)
    return archive.take(sorted(positions, key=names.__getitem__))


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
    return Archive(reader, Path(text), names, labels, classes, digest, positions)
