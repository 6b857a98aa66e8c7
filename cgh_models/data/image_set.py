"""Image sets: what is in a folder or list, frozen, with pixels kept in memory or read when asked for."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, printable, say
from .archives import Archive, open_archive
from .decode import EXTENSIONS, BadImage, read_image, simplejpeg
from .views import uniform

MAX_BAD = 0.01  # share of bad files at which a run stops
_SPLITS = {"train", "val", "test"}
_REPLACE_STREAM = 1001  # keeps these random numbers apart from those of views and order


@dataclass
class ImageSet:
    """The frozen index of a set, and its pixels where they fit in memory.

    Attributes:
        source: what `load` finds it by again: a path from the root, or hfds/NAME.
        root: folder the names are relative to.
        names: sorted relative paths.
        labels: (N,) class of each image, or None where the set has no class folders.
        classes: their names: of class folders sorted, of an archive as timm's reader numbers them.
        digest: sha256 of names and sizes.
        skipped: files left out, counted by extension (or "link").
        archive: what reads the images where they are no files of their own.
        pixels: uint8 (N, H, W, 3) if all images are equally large, a list of (H, W, 3) if not, None if streamed.
        bad: reasons of the files that could not be used, by index.
        bad_file: where each of them is named once.
    """

    source: str
    root: Path
    names: list[str]
    labels: np.ndarray | None
    classes: list[str]
    digest: str
    skipped: Counter = field(default_factory=Counter)
    archive: Archive | None = None
    pixels: Tensor | list[Tensor] | None = None
    bad: dict[int, str] = field(default_factory=dict)
    bad_file: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int, least: float = 0) -> Image.Image:
        """The image as 8-bit RGB; a large one may come smaller, its shorter side ``least`` long. Raises `BadImage`."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index].numpy())
        if self.archive:
            return self.archive.image(index, least)
        return read_image(self.root / self.names[index], least)

    def changed(self, index: int) -> int:
        """When it was last changed, in nanoseconds; 0 where that is not known, or the file is gone."""
        if self.archive:
            return self.archive.changed(index)
        path = self.root / self.names[index]
        return path.stat().st_mtime_ns if path.exists() else 0

    def usable(self, index: int, least: float = 0) -> tuple[Image.Image, list[tuple[int, str]]]:
        """The image, or in place of a bad one another that depends on the index alone; and the bad ones met."""
        met: list[tuple[int, str]] = []
        candidates = [index, *(uniform(0, 0, np.array([index]), 8, _REPLACE_STREAM)[0] * len(self)).astype(int)]
        for candidate in map(int, candidates):
            try:
                return self.image(candidate, least), met
            except BadImage as reason:
                met.append((candidate, str(reason)))
        raise InputError(f"{self._path(index)}: {met[0][1]}, and neither could its replacements be read")

    def note_bad(self, met: list[tuple[int, str]]) -> None:
        """Names new bad files in ``bad_file``. Raises InputError above 1 %."""
        new = {index: reason for index, reason in met if index not in self.bad}
        self.bad.update(new)
        if self.bad_file and new:
            try:
                with open(self.bad_file, "a", encoding="utf-8") as file:
                    file.writelines(f"{printable(self.names[index])}\t{reason}\n" for index, reason in new.items())
            except OSError as error:
                say(f"warning: {self.bad_file}: bad files cannot be named in it ({error.strerror}); make room")
        if len(self.bad) > MAX_BAD * len(self):
            index, reason = next(iter(self.bad.items()))
            what = f"{len(self.bad)} of {len(self)} images cannot be read, more than 1 %"
            where = f"all are named in {self.bad_file}; remove them" if self.bad_file else "remove them"
            raise InputError(f"{self._path(index)}: {reason}; {what}; {where}")

    def log_bad_to(self, path: Path) -> None:
        """Names bad files in ``path`` from now on, and counts those it names already, as a resumed run must."""
        self.bad_file = path
        if path.exists():
            places = {printable(name): index for index, name in enumerate(self.names)}
            lines = (line.partition("\t") for line in path.read_text("utf-8").splitlines())
            self.bad.update({places[name]: reason for name, _, reason in lines if name in places})

    def keep_pixels(self, gib: float, stopped: Callable[[], bool] = lambda: False) -> None:
        """Decodes every image once and keeps the pixels if they fit in ``gib``; else, or if stopped, streams them."""
        sample = [self.usable(i)[0] for i in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int)]
        budget = gib * 2**30
        if np.mean([i.width * i.height * 3 for i in sample]) * len(self) > budget:
            return
        pixels: list[Tensor] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(self), 4096):
                for image, met in pool.map(self.usable, range(start, min(start + 4096, len(self)))):
                    self.note_bad(met)
                    pixels.append(torch.from_numpy(np.array(image)))
                    budget -= pixels[-1].numel()
                if budget < 0 or stopped():
                    return
        if len({p.shape for p in pixels}) > 1:
            self.pixels = pixels
            return
        self.pixels = torch.empty(len(pixels), *pixels[0].shape, dtype=torch.uint8)
        for place in reversed(range(len(pixels))):  # one by one: never both copies of the set at once
            self.pixels[place] = pixels.pop()

    def say_skipped(self) -> None:
        """What was left out, to stderr."""
        if self.skipped:
            say(f"{self.root}: left out " + ", ".join(f"{n} x {kind}" for kind, n in self.skipped.most_common(5)))

    def decoder_hint(self) -> str:
        """What would read these files sooner, if it is not installed."""
        if simplejpeg or not any(name.lower().endswith((".jpg", ".jpeg")) for name in self.names):
            return ""
        return "JPEG files are decoded by Pillow; with `pip install 'cgh-models[jpeg]'` the same pixels come sooner"

    def _path(self, index: int) -> str:
        return printable(self.root / self.names[index])


def load(data: str | Path, follow_links: bool = False) -> ImageSet:
    """The index of a folder of images (flat, nested or in class folders), or of a text file with a path a line.

    Also of a tar archive, a folder of tar archives, or ``hfds/NAME``, a dataset of the Hub: what timm's readers read.

    Raises:
        InputError: nothing there, or no image in it.
    """
    if archive := open_archive(data):
        classes = archive.classes
        labels = np.array(archive.labels) if len(classes) > 1 else None
        source = str(Path(data).resolve() if Path(data).exists() else data)
        classes = classes if labels is not None else []
        return ImageSet(source, archive.root, archive.names, labels, classes, archive.digest, archive=archive)
    path = Path(data)
    if path.is_dir():
        entries, skipped = _walk(path, follow_links)
        root = path
    elif path.is_file():
        entries, skipped, root = _read_list(path), Counter(), path.parent
    else:
        raise InputError(f"{printable(path)}: there is no such folder or list; give --data a folder of images")
    if not entries:
        found = ", ".join(f"{n} x {ext}" for ext, n in skipped.most_common(3)) or "nothing"
        kinds = " ".join(sorted(EXTENSIONS))
        raise InputError(f"{printable(path)}: no images ({found} found); expected files ending in {kinds}")
    lines = "".join(f"{name}\t{_size(root / name)}\n" for name in entries)
    digest = hashlib.sha256(lines.encode("utf-8", "replace")).hexdigest()
    tops = [name.partition("/")[0] if "/" in name else "" for name in entries]
    classes = sorted(set(tops))
    if "" in classes or path.is_file():
        labels, classes = None, []
    elif set(classes) <= _SPLITS:
        splits = ", ".join(classes)
        raise InputError(
            f"{printable(path)}: holds the splits {splits}; give one of them: {printable(path / classes[0])}"
        )
    else:
        labels = np.searchsorted(classes, tops)
    return ImageSet(str(path.resolve()), root, entries, labels, classes, digest, skipped)


def _read_list(path: Path) -> list[str]:
    start = path.open("rb").read(4096)
    if b"\0" in start:
        raise InputError(f"{printable(path)}: neither a folder nor a text file of paths; unpack an archive first")
    lines = path.read_text("utf-8", errors="replace").splitlines()
    entries = sorted({line.strip() for line in lines if line.strip()})
    missing = [name for name in entries if len(name) > 4000 or not os.path.isfile(path.parent / name)]
    if missing:
        raise InputError(
            f"{printable(path)}: {len(missing)} of its {len(entries)} lines are not files, the first is "
            f"{printable(missing[0])[:80]!r}; expected one image path a line, relative to the list's folder"
        )
    return entries


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing: it is found bad when it is read
        return -1


def load_splits(root: str | Path, follow_links: bool = False) -> tuple[ImageSet, ImageSet]:
    """The train and val class folders under ``root``, with one common numbering of the classes.

    Raises:
        InputError: a split or its class folders are missing, or val has a class that train has not.
    """
    sets = []
    for split in ("train", "val"):
        folder = Path(root) / split
        if not folder.is_dir():
            raise InputError(
                f"{printable(root)}: has no {split}/ folder; expected train/ and val/, class folders in both"
            )
        sets.append(load(folder, follow_links))
        sets[-1].say_skipped()
        if sets[-1].labels is None:
            stray = next((name for name in sets[-1].names if "/" not in name), "")
            found = "lies in no class folder" if stray else "has no two classes"
            raise InputError(f"{printable(folder / stray)}: {found}; expected {folder}/<class>/<image>")
    train, val = sets
    if strange := sorted(set(val.classes) - set(train.classes)):
        raise InputError(
            f"{printable(root)}: val/ has the class {strange[0]!r} that train/ has not ({len(strange)} such)"
        )
    place = {name: number for number, name in enumerate(train.classes)}
    val.labels = np.array([place[name] for name in val.classes])[val.labels]
    return train, val


def _unreadable(error: OSError) -> None:
    raise InputError(f"{printable(error.filename)}: cannot be read ({error.strerror}); mend or remove it") from error


def _walk(root: Path, follow_links: bool) -> tuple[list[str], Counter]:
    names: list[str] = []
    skipped: Counter = Counter()
    home = root.resolve()
    for folder, folders, files in os.walk(root, followlinks=follow_links, onerror=_unreadable):
        for link in [name for name in folders if not follow_links and Path(folder, name).is_symlink()]:
            skipped["linked folder (--follow-links reads it)"] += 1
            folders.remove(link)
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
