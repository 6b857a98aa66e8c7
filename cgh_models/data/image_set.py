"""Image sets: the frozen index of a folder, list or archive, with pixels in memory or on disk."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import check_pixel_range
from ..errors import BadImage, InputError, printable, say
from .archives import Archive, open_archive
from .decode import BadFile, decide_range, decode, open_file, simplejpeg
from .formats import EXPECTED, EXTENSIONS
from .views import uniform

MAX_BAD = 0.01  # share of bad files at which a run stops
_SPLITS = {"train", "val", "test"}
_SUBSTITUTE_STREAM = 1001  # keeps these random numbers apart from those of views and order
DECODERS = "image decoder"  # names of threads begin with it


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
    bad: dict[int, str] = field(default_factory=dict)  # why images cannot be used, by index
    bad_file: Path | None = None  # names each of them once
    pixel_range: str = "auto"  # of pixels of more than 8 bits, as `deep_pixels` has it

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The image's file."""
        return self.root / self.names[index]

    def image(self, index: int, min_side: float = 0) -> Image.Image:
        """The image as 8-bit RGB; ``min_side`` as in `read_image`. Raises `BadImage`."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].numpy())
        with self.open(index) as file:
            return decode(file, min_side, self.pixel_range)

    def open(self, index: int) -> IO[bytes]:
        """The bytes of the image as an open file. Raises `BadImage`."""
        return self.archive.open(index) if self.archive else open_file(self.path(index))

    def changed(self, index: int) -> int:
        """Its time of change in nanoseconds; 0 where that is not known, or the file is gone."""
        if self.archive:
            return self.archive.changed(index)
        path = self.path(index)
        return path.stat().st_mtime_ns if path.exists() else 0

    def load_or_substitute(
        self, index: int, min_side: float = 0
    ) -> tuple[Image.Image, list[BadFile]]:
        """The image, or for a bad one another that depends on the index alone; and bad files."""
        bad_files = []
        u = uniform(0, 0, np.array([index]), 8, _SUBSTITUTE_STREAM)[0]
        for candidate in (index, *(u * len(self)).astype(int).tolist()):
            try:
                return self.image(candidate, min_side), bad_files
            except BadImage as reason:
                bad_files.append(BadFile(candidate, str(reason)))
        what = f"{printable(self.path(index))}: {bad_files[0].reason}"
        raise InputError(f"{what}, and neither could its replacements be read")

    def record_bad_files(self, bad_files: list[BadFile]) -> list[BadFile]:
        """Counts bad files, at most 1 %, and names them in ``bad_file``; returns the new ones."""
        new = []
        for bad in bad_files:
            if bad.index not in self.bad:
                self.bad[bad.index] = bad.reason
                new.append(bad)
        if self.bad_file and new:
            lines = [f"{printable(self.names[bad.index])}\t{bad.reason}\n" for bad in new]
            try:
                with open(self.bad_file, "a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                what = f"bad files cannot be named in it ({error.strerror})"
                say(f"warning: {self.bad_file}: {what}; make room")
        if len(self.bad) > MAX_BAD * len(self):
            index, reason = next(iter(self.bad.items()))
            what = f"{len(self.bad)} of {len(self)} images cannot be read, more than 1 %"
            names = f"all are named in {self.bad_file}; " if self.bad_file else ""
            raise InputError(f"{printable(self.path(index))}: {reason}; {what}; {names}remove them")
        return new

    def log_bad_files_to(self, path: Path) -> None:
        """Names bad files in ``path`` from now on, and counts those that it names already."""
        self.bad_file = path
        if not path.exists():
            return
        indices = {printable(name): index for index, name in enumerate(self.names)}
        for line in path.read_text("utf-8").splitlines():
            name, _, reason = line.partition("\t")
            if name in indices:
                self.bad[indices[name]] = reason

    def cache_pixels(self, gib: float) -> None:
        """Keeps all decoded pixels if they fit in ``gib``; else streams them."""
        budget = gib * 2**30
        sizes = []
        for index in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int).tolist():
            image, _ = self.load_or_substitute(index)
            sizes.append(image.width * image.height * 3)
        if np.mean(sizes) * len(self) > budget:
            return
        pixels: list[Tensor] = []
        for image, bad_files in self._decode_all():
            self.record_bad_files(bad_files)
            pixels.append(torch.from_numpy(np.array(image)))
            budget -= pixels[-1].numel()
            if budget < 0:
                return
        if len({p.shape for p in pixels}) > 1:
            self.pixels = pixels
            return
        stacked = torch.empty(len(pixels), *pixels[0].shape, dtype=torch.uint8)
        for index in reversed(range(len(pixels))):  # never two copies of the set at once
            stacked[index] = pixels.pop()
        self.pixels = stacked

    def _decode_all(self) -> Iterator[tuple[Image.Image, list[BadFile]]]:
        """All images in order, decoded by threads that are a few images ahead."""
        threads = os.cpu_count() or 1
        pool = ThreadPoolExecutor(threads, DECODERS)
        ahead: deque[Future[tuple[Image.Image, list[BadFile]]]] = deque()
        try:
            for index in range(len(self)):
                ahead.append(pool.submit(self.load_or_substitute, index))
                if len(ahead) > 4 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def report_skipped(self) -> None:
        """Says on stderr what was left out."""
        if self.skipped:
            counts = [f"{count} x {kind}" for kind, count in self.skipped.most_common(5)]
            say(f"{self.root}: left out {', '.join(counts)}")

    def report_decoder(self) -> None:
        """Says on stderr what to install to read JPEG files faster, if they are streamed."""
        if self.pixels is not None or simplejpeg:
            return
        if any(name.lower().endswith((".jpg", ".jpeg")) for name in self.names):
            install = "`pip install '.[jpeg]'`"
            say(f"JPEG files are decoded by Pillow; with {install} the same pixels come sooner")


def load(data: str | Path, follow_links: bool = False, pixel_range: str = "auto") -> ImageSet:
    """The index of a folder of images (flat, nested or in class folders), or of a list of paths.

    Also of what timm's readers read: a tar archive, a folder of those, or ``hfds/NAME``, a dataset
    of the Hub. ``pixel_range`` is that of TrainConfig. Raises InputError if there are no images.
    """
    check_pixel_range(pixel_range)
    path = Path(data)
    source = str(path.resolve() if path.exists() else data)
    archive = open_archive(data)
    if archive:
        classes = archive.classes if len(archive.classes) > 1 else []
        labels = np.array(archive.labels) if classes else None
        index = (archive.root, archive.names, labels, classes, archive.digest)
        return decide_range(ImageSet(source, *index, archive=archive, pixel_range=pixel_range))
    if path.is_dir():
        root = path
        names, skipped = _walk(path, follow_links)
    elif path.is_file():
        root = path.parent
        names, skipped = _read_list(path), Counter()
    else:
        what = f"{printable(path)}: there is no such folder or list"
        raise InputError(f"{what}; give --data a folder of images")
    if not names:
        found = ", ".join(f"{n} x {kind}" for kind, n in skipped.most_common(3)) or "nothing"
        raise InputError(f"{printable(path)}: no images ({found} found); {EXPECTED}")
    lines = "".join(f"{name}\t{_size(root / name)}\n" for name in names)
    digest = hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest()
    labels, classes = (None, []) if path.is_file() else _class_folders(path, names)
    index = (names, labels, classes, digest, skipped)
    return decide_range(ImageSet(source, root, *index, pixel_range=pixel_range))


def _class_folders(root: Path, names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and classes, the folders in ``root``; none if an image lies in none of them."""
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = sorted(set(folders))
    if "" in classes:
        return None, []
    if set(classes) <= _SPLITS:
        what = f"{printable(root)}: holds the splits {', '.join(classes)}"
        raise InputError(f"{what}; give one of them: {printable(root / classes[0])}")
    return np.searchsorted(classes, folders), classes


def _walk(root: Path, follow_links: bool) -> tuple[list[str], Counter[str]]:
    """Sorted names of the images under ``root``, and what was left out."""
    names: list[str] = []
    skipped: Counter[str] = Counter()
    home = root.resolve()
    for folder, folders, files in os.walk(root, followlinks=follow_links, onerror=_unreadable):
        for name in list(folders):
            if not follow_links and Path(folder, name).is_symlink():
                skipped["linked folder (--follow-links reads it)"] += 1
                folders.remove(name)
        folders.sort()
        for file in files:
            path = Path(folder, file)
            if path.suffix.lower() not in EXTENSIONS:
                skipped[printable(path.suffix.lower()) or "no extension"] += 1
            elif not follow_links and path.is_symlink() and home not in path.resolve().parents:
                skipped["link out of the folder (--follow-links reads it)"] += 1
            else:
                names.append(path.relative_to(root).as_posix())
    return sorted(names), skipped


def _unreadable(error: OSError) -> None:
    what = f"{printable(error.filename)}: cannot be read ({error.strerror})"
    raise InputError(f"{what}; mend or remove it") from error


def _read_list(path: Path) -> list[str]:
    with path.open("rb") as file:
        if b"\0" in file.read(4096):
            what = f"{printable(path)}: neither a folder nor a text file of paths"
            raise InputError(f"{what}; unpack an archive first")
    lines = path.read_text("utf-8", errors="replace").splitlines()
    names = sorted({line.strip() for line in lines if line.strip()})
    missing = [n for n in names if len(n) > 4000 or not os.path.isfile(path.parent / n)]
    if missing:
        what = f"{len(missing)} of its {len(names)} lines are not files"
        first = f"the first is {printable(missing[0])[:80]!r}"
        expected = "expected one image path a line, relative to the list's folder"
        raise InputError(f"{printable(path)}: {what}, {first}; {expected}")
    return names


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
    train = _load_split(Path(root) / "train", follow_links, pixel_range)
    val = _load_split(Path(root) / "val", follow_links, train.pixel_range)
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        what = f"val/ has the class {unknown[0]!r} that train/ has not ({len(unknown)} such)"
        raise InputError(f"{printable(root)}: {what}")
    numbers = {name: number for number, name in enumerate(train.classes)}
    val.labels = np.array([numbers[name] for name in val.classes])[val.labels]
    return train, val


def _load_split(folder: Path, follow_links: bool, pixel_range: str) -> ImageSet:
    if not folder.is_dir():
        what = f"{printable(folder.parent)}: has no {folder.name}/ folder"
        raise InputError(f"{what}; expected train/ and val/, class folders in both")
    images = load(folder, follow_links, pixel_range)
    images.report_skipped()
    if images.labels is None:
        stray = next((name for name in images.names if "/" not in name), "")
        found = "lies in no class folder" if stray else "has no two classes"
        expected = f"expected {folder}/<class>/<image>"
        raise InputError(f"{printable(folder / stray)}: {found}; {expected}")
    return images
