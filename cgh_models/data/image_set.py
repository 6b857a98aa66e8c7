"""Image sets: the frozen index of a folder, list or archive, with pixels in memory or on disk."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from torch import Tensor

from ..config import check_pixel_range
from ..errors import BadImage, InputError, printable, say
from .archives import Archive, open_archive
from .decode import BadFile, decide_range, decode, decoded_bytes, open_file, simplejpeg
from .file_names import ARCHIVES, HIDDEN
from .formats import EXPECTED
from .listing import counted, find_split, refuse_compressed, refuse_splits, walk
from .memory import pixels_in_memory
from .path_list import read_list
from .views import uniform

MAX_BAD = 0.01  # share of bad files at which a run stops
_SUBSTITUTE_STREAM = 1001  # keeps these random numbers apart from those of views and order


@dataclass
class ImageSet:
    """The frozen index of a set, and its pixels where they fit in memory."""

    source: str  # what `load` finds it by: a path from the root, or hfds/NAME
    root: Path  # the folder that names are relative to
    names: list[str]  # sorted relative paths
    labels: np.ndarray | None  # (N,) class of each image; None: no class folders
    classes: list[str]  # of folders sorted, of an archive as timm's reader numbers them
    digest: str  # sha256 of names and sizes
    skipped: Counter[str] = field(default_factory=Counter)  # files left out, by extension or "link"
    archive: Archive | None = None  # what reads images that are no files of their own
    # uint8 (N, H, W, 3) if all images are equally large, else a list of (H, W, 3); None: streamed
    pixels: Tensor | list[Tensor] | None = None
    places: np.ndarray | None = None  # (N,) of the images in ``pixels``; None: in their own order
    bad: dict[int, str] = field(default_factory=dict)  # why images cannot be used, by index
    bad_file: Path | None = None  # names each of them once
    pixel_range: str = "auto"  # of pixels of more than 8 bits, as `deep_pixels` has it

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hidden(self) -> int:
        """How many hidden or system files and folders were left out."""
        return sum(count for kind, count in self.skipped.items() if kind.startswith(HIDDEN))

    def path(self, index: int) -> Path:
        """The image's file, or for messages where it is in an archive."""
        if self.archive:
            return Path(f"{self.root}/{self.names[index]}")
        return self.root / self.names[index]

    def image(self, index: int, min_side: float = 0) -> Image.Image:
        """The image as 8-bit RGB; ``min_side`` as in `read_image`. Raises `BadImage`."""
        if self.pixels is not None:
            place = index if self.places is None else int(self.places[index])
            return Image.fromarray(self.pixels[place].numpy())
        with self.open(index) as file:
            return decode(file, min_side, self.pixel_range)

    def why_bad(self, index: int) -> str:
        """Why the image cannot be used now; empty if it can."""
        try:
            self.image(index)
            return ""
        except BadImage as reason:
            return str(reason)

    def decoded_bytes(self, index: int) -> int:
        """Bytes of its pixels, by its header; 0 if that cannot be read."""
        with contextlib.suppress(BadImage), self.open(index) as file:
            return decoded_bytes(file)
        return 0

    def open(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """The bytes of the image as an open file. Raises `BadImage`."""
        return self.archive.open(index) if self.archive else open_file(self.path(index))

    def changed(self, index: int) -> int:
        """Its time of change in nanoseconds; 0 where that is not known, or the file is gone."""
        if self.archive:
            return self.archive.changed(index)
        with contextlib.suppress(OSError):
            changed = os.stat(self.path(index)).st_mtime_ns
            return changed if abs(changed) < 2**63 else 0
        return 0

    def load_or_substitute(
        self, index: int, min_side: float = 0
    ) -> tuple[Image.Image, list[BadFile]]:
        """The image, or for a bad one another that depends on the index alone; and bad files."""
        bad_files = []
        for candidate in self._with_substitutes(index):
            try:
                return self.image(candidate, min_side), bad_files
            except BadImage as reason:
                bad_files.append(BadFile(candidate, str(reason)))
        what = f"{printable(self.path(index))}: {bad_files[0].reason}"
        raise InputError(f"{what}, and neither could its replacements be read")

    def _with_substitutes(self, index: int) -> Iterator[int]:
        yield index
        u = uniform(0, 0, np.array([index]), 8, _SUBSTITUTE_STREAM)[0]
        yield from (u * len(self)).astype(int).tolist()

    def record_bad_files(self, bad_files: list[BadFile]) -> list[BadFile]:
        """Counts bad files, at most 1 %, and names them in ``bad_file``; returns the new ones."""
        new = []
        for bad in bad_files:
            if bad.index not in self.bad:
                self.bad[bad.index] = bad.reason
                new.append(bad)
        if self.bad_file and new:
            lines = []
            for bad in new:
                size = "" if self.archive else f"\t{_size(self.path(bad.index))} bytes"
                lines.append(f"{printable(self.names[bad.index])}\t{bad.reason}{size}\n")
            try:
                with open(self.bad_file, "a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                what = f"bad files cannot be named in it ({error.strerror})"
                say(f"warning: {printable(self.bad_file)}: {what}; make room")
        if len(self.bad) > MAX_BAD * len(self):
            index, reason = next(iter(self.bad.items()))
            what = f"{len(self.bad)} of {len(self)} images cannot be read, more than 1 %"
            names = f"all are named in {printable(self.bad_file)}; " if self.bad_file else ""
            raise InputError(f"{printable(self.path(index))}: {reason}; {what}; {names}remove them")
        return new

    def log_bad_files_to(self, path: Path) -> None:
        """Names bad files in ``path`` from now on; those that it names already are read again."""
        self.bad_file = path
        named = self._named_in(path) if self.pixels is None else {}
        reasons = {index: self.why_bad(index) for index in named}
        self.bad |= {index: reason for index, reason in reasons.items() if reason}
        mended = len(named.keys() - self.bad.keys())
        if mended:
            say(f"{printable(path)}: {mended} of the images that it names can be read now")
        self.record_bad_files([])  # are they too many?

    def accept_mended(self, path: Path, digest: str) -> None:
        """Takes the digest of a run if only images that ``path`` names have another size now."""
        if self.digest == digest or self.archive:
            return
        if digest == _digest(self.root, self.names, self._named_in(path)):
            self.digest = digest

    def _named_in(self, path: Path) -> dict[int, int]:
        """The images, by index, that a list of bad files names, and their bytes at that time."""
        index_of = {printable(name): index for index, name in enumerate(self.names)}
        named = {}
        lines = path.read_text("utf-8", "replace").split("\n") if path.exists() else []
        for line in lines:
            name, *rest = line.split("\t")
            if name in index_of:
                size = rest[-1].removesuffix(" bytes") if rest else ""
                index = index_of[name]
                known = size.removeprefix("-").isdecimal()
                named[index] = int(size) if known else _size(self.path(index))
        return named

    def cache_pixels(self, gib: float) -> None:
        """Keeps all decoded pixels if they fit in ``gib``; else streams them."""
        self.pixels = pixels_in_memory(self, gib * 2**30)

    def report_skipped(self) -> None:
        """Says on stderr what was left out."""
        if self.skipped:
            say(f"{printable(self.root)}: left out {counted(self.skipped, 5)}")

    def report_decoder(self) -> None:
        """Says on stderr what to install to read JPEG files faster, if they are streamed."""
        if self.pixels is not None or simplejpeg:
            return
        if any(name.lower().endswith((".jpg", ".jpeg")) for name in self.names):
            install = "`pip install '.[jpeg]'`"
            say(f"JPEG files are decoded by Pillow; with {install} the same pixels come sooner")


def load(
    data: str | Path, follow_links: bool = False, pixel_range: str = "auto", splits: bool = False
) -> ImageSet:
    """The index of a folder of images (flat, nested or in class folders), or of a list of paths.

    Also of what timm's readers read: a tar archive, a folder of those, or ``hfds/NAME``, a dataset
    of the Hub. ``pixel_range`` is that of TrainConfig. Raises InputError if there are no images, or
    folders of splits and not ``splits``, which takes all of them as one set.
    """
    check_pixel_range(pixel_range)
    path = Path(data)
    is_folder = os.path.isdir(path)
    is_file = os.path.isfile(path)
    if is_file:
        refuse_compressed(path)
    archive = open_archive(data)
    if archive is None and not (is_folder or is_file):
        what = f"{printable(path)}: there is no such folder or list"
        raise InputError(f"{what}; give --data a folder of images")
    of_rows: list[str] | None = None  # labels of a table
    if archive:
        root, names, skipped = archive.root, archive.names, archive.skipped
    elif is_folder:
        root = path
        names, skipped = walk(path, follow_links)
    else:
        root = path.parent
        names, of_rows, skipped = read_list(path)
    if not names:
        found = counted(skipped, 3) or "nothing"
        expected = EXPECTED
        if ARCHIVES & set(skipped):
            expected += ", or tar archives and nothing else: unpack the archives"
        raise InputError(f"{printable(path)}: no images ({found} found); {expected}")
    source = str(path.resolve() if is_folder or is_file else data)
    if archive:
        classes = archive.classes if len(archive.classes) > 1 else []
        labels = np.array(archive.labels) if classes else None
        digest = archive.digest
    else:
        labels, classes = _class_folders(names) if is_folder else _numbered(of_rows)
        digest = _digest(root, names, {})
    if (is_folder or archive) and not splits:
        refuse_splits(root, names, 2 if archive else 1)  # `tar cf train.tar train`
    index = (names, labels, classes, digest, skipped, archive)
    return decide_range(ImageSet(source, root, *index, pixel_range=pixel_range))


def _class_folders(names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and classes, the outermost folders; none if an image lies in none of them."""
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    return _numbered(None if "" in folders else folders)


def _numbered(labels: list[str] | None) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and sorted classes for the class of each image."""
    classes = sorted(set(labels or ()))
    return (np.searchsorted(classes, labels) if labels else None), classes


def _digest(root: Path, names: list[str], sizes: dict[int, int]) -> str:
    """Hex sha256 of names and sizes; ``sizes`` are those of some of the files at another time."""
    lines = []
    for index, name in enumerate(names):
        size = sizes[index] if index in sizes else _size(root / name)
        lines.append(f"{name}\t{size}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing: it is found bad when it is read
        return -1


def load_splits(
    root: str | Path, follow_links: bool = False, pixel_range: str = "auto"
) -> tuple[ImageSet, ImageSet]:
    """The train and val class folders under ``root``, with one numbering of the classes.

    The range of deep pixels is that of train/ in both.
    """
    train_root, val_root = [find_split(Path(root), split) for split in ("train", "val")]
    train = _load_split(train_root, follow_links, pixel_range)
    val = _load_split(val_root, follow_links, train.pixel_range)
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        what = f"val/ has the class {unknown[0]!r} that train/ has not ({len(unknown)} such)"
        raise InputError(f"{printable(root)}: {what}")
    numbers = {name: number for number, name in enumerate(train.classes)}
    val.labels = np.array([numbers[name] for name in val.classes])[val.labels]
    return train, val


def _load_split(folder: Path, follow_links: bool, pixel_range: str) -> ImageSet:
    images = load(folder, follow_links, pixel_range)
    images.report_skipped()
    if images.labels is None:
        stray = next((name for name in images.names if "/" not in name), "")
        found = "lies in no class folder" if stray else "has no two classes"
        expected = f"expected {printable(folder)}/<class>/<image>"
        raise InputError(f"{printable(folder / stray)}: {found}; {expected}")
    return images
