"""Images that are no files of their own, read by timm's readers: in tar archives, in datasets of the Hub."""

import contextlib
import copy
import hashlib
import importlib.util
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers import create_reader, img_extensions
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from ..errors import InputError, printable
from .decode import EXTENSIONS, BadImage, decode

_OTHERS = ("hfids/", "tfds/", "wds/")  # timm's readers that go through a set in an order of their own


class Archive:
    """The index of an archive and its reader.

    Attributes:
        root: the folder that names are relative to, for messages.
        names: of the images, sorted.
        labels: class of each image.
        classes: their names, in the reader's order; empty where it knows of none.
        digest: sha256 of names and sizes, or of the dataset's own fingerprint.
    """

    def __init__(self, reader: Any, root: Path, names: list[str], labels: list[int], digest: str):
        self.reader, self.root, self.digest = reader, root, digest
        self.places = sorted(range(len(names)), key=names.__getitem__)  # in the reader's order
        self.names, self.labels = [names[place] for place in self.places], [labels[place] for place in self.places]
        self.classes = [str(name) for name in getattr(reader, "class_name_to_idx", None) or reader.class_to_idx or ()]

    def take(self, indices: Iterable[int]) -> "Archive":
        """These images alone, in this order."""
        taken = copy.copy(self)
        taken.places, taken.names, taken.labels = (
            [values[index] for index in indices] for values in (self.places, self.names, self.labels)
        )
        return taken

    def image(self, index: int, least: float = 0) -> Image.Image:
        """As `images.read_image`. Raises `BadImage`."""
        try:
            file = self.reader[self.places[index]][0]
        except (tarfile.TarError, OSError, EOFError, AssertionError) as error:
            raise BadImage(f"cannot be read from its archive: {printable(error)[:120]}") from error
        with file:
            return decode(file, least)

    def changed(self, index: int) -> int:
        """As `ImageSet.changed`; the fingerprint of a dataset of the Hub says all of it."""
        samples = getattr(self.reader, "samples", None)  # of a tar archive: (member, ...)
        return 0 if samples is None else int(samples[self.places[index]][0].mtime * 1e9)


def open_archive(data: str | Path) -> Archive | None:
    """What ``data`` names if it is a tar archive, a folder of nothing but those, or ``hfds/NAME``; None if not.

    Raises:
        InputError: it cannot be read, or holds no images.
    """
    text, path = str(data), Path(data)
    if text.startswith("hfds/") and not path.exists():
        return _from_hub(text)
    if text.startswith(_OTHERS) and not path.exists():
        raise InputError(
            f"{printable(text)}: gives its images in an order of its own, which no run could resume; "
            "give a folder, a tar archive or hfds/NAME"
        )
    return _from_tar(path) if _is_tar(path) or _holds_only_tars(path) else None


def _is_tar(path: Path | os.DirEntry) -> bool:
    return path.name.endswith(".tar") and path.is_file()


def _holds_only_tars(path: Path) -> bool:
    """Decided by the first entry that is none: a folder may hold millions of images."""
    try:
        with os.scandir(path) as entries:
            kinds = (_is_tar(entry) for entry in entries if not entry.name.startswith("."))
            return next(kinds, False) and all(kinds)
    except OSError:  # no folder, or one that cannot be read: whoever reads it as a folder says so
        return False


def _from_tar(path: Path) -> Archive:
    try:
        with _all_extensions():  # no cache of its index: timm would write code beside it, and run a stranger's
            reader = ReaderImageInTar(str(path), cache_tarfiles=False, cache_tarinfo=False)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"{printable(path)}: no readable tar archive ({printable(error)[:120]}); pack it anew"
        ) from error
    except ValueError as error:  # timm unpacks a list of no images
        kinds = " ".join(sorted(EXTENSIONS))
        raise InputError(f"{printable(path)}: no images in it; expected files ending in {kinds}") from error
    names = [
        "/".join(part for part in (tar, child.name if child else None, member.name) if part)
        for member, tar, child in reader.samples
    ]
    lines = sorted(f"{name}\t{member[0].size}\n" for name, member in zip(names, reader.samples, strict=True))
    digest = hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()
    return Archive(reader, path, names, [int(label) for label in reader.targets], digest)


@contextlib.contextmanager
def _all_extensions() -> Iterator[None]:
    """timm looks for png, jpg and jpeg only."""
    before = img_extensions.get_img_extensions()
    img_extensions.set_img_extensions([*before, *sorted(EXTENSIONS - set(before))])
    try:
        yield
    finally:
        img_extensions.set_img_extensions(before)


def _from_hub(text: str) -> Archive:
    """``hfds/NAME`` or ``hfds/NAME:SPLIT``."""
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"{printable(text)}: needs the datasets library; type `pip install 'cgh-models[datasets]'`")
    name, _, split = text.removeprefix("hfds/").partition(":")
    try:
        reader: Any = create_reader(f"hfds/{name}", split=split or "train")
        if reader.class_to_idx:
            labels = [int(label) for label in reader.iter_targets()]
        else:  # timm's reader wants some label with every image
            reader = create_reader(f"hfds/{name}", split=split or "train", target_key=reader.image_key)
            labels = [0] * len(reader)
    except Exception as error:  # datasets raises what its dozen back ends raise
        reason = printable(" ".join(str(error).split()))[:160]
        what = f"{printable(text)}: cannot be read as a dataset of images ({reason})"
        raise InputError(f"{what}; give hfds/NAME or hfds/NAME:SPLIT") from error
    names = [f"{index:08d}" for index in range(len(reader))]
    fingerprint = hashlib.sha256(f"{reader.dataset._fingerprint}\t{len(names)}".encode()).hexdigest()
    return Archive(reader, Path(text), names, labels, fingerprint)
