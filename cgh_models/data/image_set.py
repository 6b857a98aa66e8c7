"""Image sets: the frozen index of a folder, list or archive, with pixels in memory or on disk."""

import functools
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import BadImage, InputError, printable, say
from ..progress import watched
from . import listing, reading
from .archive import Archive
from .bad_files import named_in, too_many
from .decode import BadFile, open_file, simplejpeg
from .draws import uniform
from .file_cache import cache_of
from .file_names import HIDDEN
from .kept_index import walk_or_kept
from .memory import pixels_in_memory
from .names import Names
from .sources import find_images, splits_of
from .walk import Walked

if TYPE_CHECKING:
    from torch import Tensor

MAX_BAD = 0.01  # share of bad files at which a run stops
_SUBSTITUTE_STREAM = 1001  # keeps these random numbers apart from those of views and order


@dataclass
class ImageSet:
    """The frozen index of a set, and its pixels where they fit in memory."""

    source: str  # what `load` finds it by: a path from the root, or hfds/NAME
    root: Path  # the folder that names are relative to
    names: Names  # sorted relative paths
    labels: np.ndarray | None  # (N,) class of each image; None: no class folders
    classes: list[str]  # of folders sorted, of an archive as timm's reader numbers them
    digest: str  # sha256 of names and sizes
    skipped: Counter[str] = field(default_factory=Counter)  # files left out, by extension or "link"
    archive: Archive | None = None  # what reads images that are no files of their own
    # (N, H, W, C) if all images are equally large, else a list of (H, W, C); None: streamed
    pixels: "Tensor | list[Tensor] | None" = None
    places: np.ndarray | None = None  # (N,) of the images in ``pixels``; None: in their own order
    bad: dict[int, str] = field(default_factory=dict)  # why images cannot be used, by index
    bad_file: Path | None = None  # names each of them once
    max_bad: float = MAX_BAD  # share of them at which a run stops
    pixel_range: str = "auto"  # of pixels of more than 8 bits, as `deep_pixels` has it
    in_chans: int = 3  # channels of an image
    reader: str = ""  # MODULE:FUNCTION of the user's that reads the files; "": ours do
    walked: Walked | None = None  # of a folder of files: what was found there

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hidden(self) -> int:
        """How many hidden or system files and folders were left out."""
        return sum(count for kind, count in self.skipped.items() if kind.startswith(HIDDEN))

    def path(self, index: int) -> Path:
        """The image's file, or in an archive what stands for it."""
        return Path(self.where(index)) if self.archive else self.root / self.names[index]

    @property
    def place(self) -> str:
        """The folder, archive or address, for messages: a `Path` has one slash of s3://."""
        return self.archive.root if self.archive else str(self.root)

    def where(self, index: int) -> str:
        """The image's file or where it is in an archive, for messages."""
        return self.archive.where(index) if self.archive else str(self.path(index))

    def image(self, index: int, min_side: float = 0) -> Any:
        """The image as 8-bit RGB, or an array (H, W, in_chans). Raises `BadImage`.

        ``min_side`` as in `decode_rgb`.
        """
        if self.pixels is not None:
            pixels = self.pixels[int(self.places_of(index))].numpy()
            return Image.fromarray(pixels) if self.in_chans == 3 else pixels
        with self.open(index) as file:
            return self.decode(index, file, min_side)

    def places_of(self, indices: Any) -> Any:
        """Where an image, or an array of them, is in ``pixels``."""
        return indices if self.places is None else self.places[indices]

    def decode(self, index: int, file: IO[bytes], min_side: float = 0) -> Any:
        """`image`, of these bytes."""
        return reading.decode_image(file, self, index, min_side)

    def why_bad(self, index: int) -> str:
        """Why the image cannot be used now; empty if it can."""
        try:
            self.image(index)
            return ""
        except BadImage as reason:
            return str(reason)

    def decoded_bytes(self, index: int) -> int:
        """Bytes of its pixels, by its header; 0 if that cannot be read."""
        return reading.decoded_bytes(self, index)

    def open(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """The bytes of the image as an open file. Raises `BadImage`."""
        return self.archive.open(index) if self.archive else open_file(self.path(index))

    def changed(self, index: int) -> int:
        """Its time of change in nanoseconds; 0 where that is not known, or the file is gone."""
        if self.archive:
            return self.archive.changed(index)
        return listing.size_and_change(self.path(index))[1]

    def load_or_substitute(self, index: int, min_side: float = 0) -> tuple[Any, list[BadFile]]:
        """The image, or for a bad one another that depends on the index alone; and bad files."""
        bad_files = []
        for candidate in self._with_substitutes(index):
            try:
                return self.image(candidate, min_side), bad_files
            except BadImage as reason:
                bad_files.append(BadFile(candidate, str(reason)))
        what = f"{printable(self.where(index))}: {bad_files[0].reason}"
        raise InputError(f"{what}, and neither could its replacements be read")

    def _with_substitutes(self, index: int) -> Iterator[int]:
        yield index
        u = uniform(0, 0, np.array([index]), 8, _SUBSTITUTE_STREAM)[0]
        yield from (u * len(self)).astype(int).tolist()

    def record_bad_files(self, bad_files: list[BadFile]) -> list[BadFile]:
        """Names bad files in ``bad_file``, each once; returns the new ones. At most ``max_bad``."""
        new = []
        for bad in bad_files:
            if bad.index not in self.bad:
                self.bad[bad.index] = bad.reason
                new.append(bad)
        if self.bad_file and new:
            lines = []
            for bad in new:
                size = "" if self.archive else f"\t{listing.size_of(self.path(bad.index))} bytes"
                lines.append(f"{printable(self.names[bad.index])}\t{bad.reason}{size}\n")
            try:
                with open(self.bad_file, "a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                what = f"bad files cannot be named in it ({error.strerror})"
                say(f"warning: {printable(self.bad_file)}: {what}; make room")
        if len(self.bad) > self.max_bad * len(self):
            raise too_many(self)
        return new

    def log_bad_files_to(self, path: Path) -> None:
        """Names bad files in ``path`` from now on; those that it names already are read again."""
        self.bad_file = path
        named = named_in(path, self) if self.pixels is None else {}
        reasons = {index: self.why_bad(index) for index in named}
        self.bad |= {index: reason for index, reason in reasons.items() if reason}
        if mended := len(named.keys() - self.bad.keys()):
            say(f"{printable(path)}: {mended} of the images that it names can be read now")
        self.record_bad_files([])  # are they too many?

    def accept_mended(self, path: Path, digest: str) -> None:
        """Takes the digest of a run if only images that ``path`` names have another size now."""
        if self.digest == digest or self.archive:
            return
        if digest == _digest(self.root, self.names, self.walked, named_in(path, self)):
            self.digest = digest

    def cache_pixels(self, gib: float) -> None:
        """Keeps all decoded pixels if they fit in ``gib``; else streams them."""
        self.pixels = pixels_in_memory(self, gib * 2**30)

    def report_skipped(self) -> None:
        """Says on stderr what was left out."""
        if self.skipped:
            say(f"{printable(self.place)}: left out {listing.counted(self.skipped, 5)}")

    def report_decoder(self) -> None:
        """Says on stderr what to install to read JPEG files faster, if they are streamed."""
        by_pillow = self.pixels is None and not simplejpeg
        if by_pillow and any(name.lower().endswith((".jpg", ".jpeg")) for name in self.names):
            install = "`pip install '.[jpeg]'`"
            say(f"JPEG files are decoded by Pillow; with {install} the same pixels come sooner")


def load(
    data: Any,
    follow_links: bool = False,
    pixel_range: str = "auto",
    splits: bool = False,
    in_chans: int = 3,
    reader: str = "",
    cache_gib: float | None = None,
    kept: Path | None = None,
) -> ImageSet:
    """The index of images, whatever holds them; docs/data.md has a line for each kind.

    A folder (flat, nested or in class folders), a list or table of paths; a tar, zip or parquet
    file, a folder or a pattern of those; ``hfds/NAME``, a dataset of the Hub; an address of fsspec
    as s3://BUCKET/FOLDER; NAME:SPLIT of these; or a Python object as `open_object` takes it.
    ``pixel_range``, ``in_chans``, ``reader``, ``cache_gib`` as in TrainConfig (without the last it
    is CGH_CACHE_GIB), ``kept`` as in `walk_or_kept`. Raises InputError without images, or for
    folders of splits unless ``splits``.
    """
    if isinstance(data, ImageSet):
        return reading.read_as(data, pixel_range)
    endings = reading.endings(pixel_range, in_chans, reader)
    rounded = in_chans == 3 and "," not in pixel_range
    lister = functools.partial(walk_or_kept, kept)
    found = find_images(data, follow_links, cache_of(cache_gib), endings, rounded, lister)
    source, root, names, labels, classes, skipped, archive, is_folder, walked = found
    place = printable(archive.root if archive else root)
    if not names:
        what = f"{place}: no images ({listing.counted(skipped, 3) or 'nothing'} found)"
        raise InputError(f"{what}; {reading.expected_endings(skipped)}")
    if reader and archive:
        raise InputError(f"--reader {reader}: takes paths of files; unpack {place}")
    known = archive.digest if archive else walked and walked.digest
    if is_folder and not splits and (archive or not known):
        listing.refuse_splits(root, names, 2 if archive else 1)  # `tar cf train.tar train`
    names = names if isinstance(names, Names) else Names(names)
    if archive:
        archive.names = names
    digest = known or _digest(root, names, walked, {})
    index = (names, labels, classes, digest, skipped, archive)
    how = {"pixel_range": pixel_range, "in_chans": in_chans, "reader": reader}
    return reading.decide_range(ImageSet(source, root, *index, **how, walked=walked))


def _digest(root: Path, names: Sequence[str], walked: Walked | None, then: dict[int, int]) -> str:
    """Hex sha256 of names and sizes; ``then`` are those of some of the files at another time."""
    if walked:
        sizes = array("q", walked.sizes)
    else:
        listed = watched(names, "sizes of files", len(names))
        sizes = array("q", (listing.size_of(root / name) for name in listed))
    for index, size in then.items():
        sizes[index] = size
    return listing.digest_of(names, sizes)


def load_splits(
    root: Any,
    follow_links: bool = False,
    pixel_range: str = "auto",
    in_chans: int = 3,
    reader: str = "",
    cache_gib: float | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The train and val sets of ``root``, with one numbering of the classes.

    They are class folders in it, or splits of a table, archive or dataset, or in Python the values
    of a dict. The range of deep pixels is that of train in both.
    """
    splits = ("train", "val")
    if isinstance(root, Mapping):
        found = {split: root[listing.pick_split(list(root), split, "data")] for split in splits}
    elif isinstance(root, (str, os.PathLike)):
        found = splits_of(root)
        found = found or {split: listing.find_split(Path(root), split) for split in splits}
    else:
        given = f"data: a {type(root).__name__}"
        raise InputError(f"{given}: expected a folder, or a dict of a train and a val set")
    how: dict[str, Any] = {"in_chans": in_chans, "reader": reader, "cache_gib": cache_gib}
    train = _load_split(found["train"], follow_links, pixel_range, how)
    val = _load_split(found["val"], follow_links, train.pixel_range, how)
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        what = f"val/ has the class {unknown[0]!r} that train/ has not ({len(unknown)} such)"
        raise InputError(f"{printable(root)}: {what}")
    numbers = {name: number for number, name in enumerate(train.classes)}
    labels = np.array([numbers[name] for name in val.classes])[val.labels]
    return train, replace(val, labels=labels, classes=train.classes)


def _load_split(data: Any, follow_links: bool, pixel_range: str, how: dict[str, Any]) -> ImageSet:
    images = load(data, follow_links, pixel_range, **how)
    images.report_skipped()
    if images.labels is None:
        stray = next((name for name in images.names if "/" not in name), "")
        found = "lies in no class folder" if stray else "has no two classes"
        expected = f"expected {printable(images.place)}/<class>/<image>"
        place = images.where(images.names.index(stray)) if stray else images.place
        raise InputError(f"{printable(place)}: {found}; {expected}")
    return images
