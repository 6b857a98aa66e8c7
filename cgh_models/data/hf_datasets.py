"""Images of Hugging Face's datasets: of the Hub by name, on disk, or as an object."""

import functools
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError, printable
from .archive import Archive, check_library
from .file_cache import LARGER, Cache, CachedFile
from .listing import pick_split

_SPLITS = "dataset_dict.json"  # names the folders of a DatasetDict
_FILES = ("state.json", "dataset_info.json")
_NEEDED = re.compile(r"(?!cache-)[^/]+\.(arrow|json)")  # datasets leaves caches there, too
_SAMPLED = 64  # images that tell a dataset from others


def open_hub_dataset(text: str) -> Archive:
    """``hfds/NAME`` or ``hfds/NAME:SPLIT``; NAME may be the full path of a folder in that form."""
    check_library("datasets", "datasets", text)
    from timm.data.readers import create_reader  # imported late: timm takes seconds

    name, _, split = text.partition(":")
    try:
        reader: Any = create_reader(name, split=split or "train")
        if reader.class_to_idx:
            labels = np.array([int(label) for label in reader.iter_targets()])
        else:  # timm's reader wants some label with every image
            reader = create_reader(name, split=split or "train", target_key=reader.image_key)
            labels = None
    except Exception as error:  # datasets raises what its dozen back ends raise
        raise _refused(text, error, "hfds/NAME or hfds/NAME:SPLIT") from error
    positions = list(range(len(reader)))
    names = [f"{position:08d}" for position in positions]
    classes = [str(name) for name in reader.class_to_idx or ()]
    digest = hashlib.sha256(f"{reader.dataset._fingerprint}\t{len(names)}".encode()).hexdigest()
    opener = functools.partial(_open_of_reader, reader)
    return Archive(text, names, labels, classes, digest, positions, opener)


def hub_splits(text: str) -> list[str]:
    """Names of the splits of ``hfds/NAME``."""
    check_library("datasets", "datasets", text)
    import datasets

    try:
        return datasets.get_dataset_split_names(text.removeprefix("hfds/"))
    except Exception as error:
        raise _refused(text, error, "hfds/NAME") from error


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether it is such a folder."""
    names = (_SPLITS, *_FILES)
    return has_saved({name for name in names if os.path.isfile(os.path.join(path, name))})


def has_saved(names: Collection[str]) -> bool:
    """Whether it is such a folder that has files of these names."""
    return _SPLITS in names or all(name in names for name in _FILES)


def open_saved(path: Path, split: str) -> Archive:
    """The images of such a folder, or of a split in it. Raises InputError."""
    part = path / _part(path, path / _SPLITS, split)
    return _open_part(part, str(part))


def open_saved_at(address: str, files: dict[str, CachedFile], split: str, cache: Cache) -> Archive:
    """The same of a folder at an address that has these files, of which those needed are fetched.

    They are opened side by side, so that all have to fit in the cache.
    """
    part = _part(address, files.get(_SPLITS), split)
    home = f"{address}/{part}".rstrip("/")
    begin = f"{part}/" if part else ""
    inside = {name.removeprefix(begin): files[name] for name in files if name.startswith(begin)}
    needed = {name: file for name, file in inside.items() if _NEEDED.fullmatch(name)}
    total = sum(file.size for file in needed.values())
    if total > 0.9 * cache.limit:
        what = f"{printable(home)}: {total / 2**30:.3g} GiB, which are fetched as a whole"
        raise InputError(f"{what}, more than --cache-gib {cache.limit / 2**30:g} holds; {LARGER}")
    opener = _Fetched(home, needed, cache)
    return replace(opener.archive, opener=opener)


class _Fetched:
    """Opens images of a folder of files at an address; sent to another process, anew."""

    def __init__(self, address: str, files: dict[str, CachedFile], cache: Cache):
        self._arguments = (address, files, cache)
        for file in files.values():
            file.open().close()
        # What is opened stays readable when its names are gone, here and in the cache.
        links = tempfile.TemporaryDirectory(dir=cache.folder.parent, ignore_cleanup_errors=True)
        with links as folder:
            for name, file in files.items():
                file.link(Path(folder, name))
            self.archive = _open_part(Path(folder), address)

    def __call__(self, position: int) -> Any:
        return self.archive.opener(position)

    def __reduce__(self) -> tuple[object, ...]:
        return _Fetched, self._arguments


def _part(place: object, file: Path | CachedFile | None, split: str) -> str:
    """The folder of a split, of those that ``file`` names; "" if there are none."""
    try:
        with file.open("rb") as opened:  # pyright: ignore[reportOptionalMemberAccess]
            splits = json.loads(opened.read())["splits"]
    except (AttributeError, OSError, ValueError, LookupError, TypeError):
        splits = []
    if splits and not split:
        what = f"{printable(place)}: holds the splits {printable(', '.join(splits))}"
        raise InputError(f"{what}; give one of them: {printable(place)}:{printable(splits[0])}")
    return pick_split(splits, split, place) if split else ""


def _open_part(path: Path, source: str) -> Archive:
    """A folder of `Dataset.save_to_disk`, called ``source``."""
    check_library("datasets", "datasets", source)
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:
        raise _refused(source, error, "a folder of Dataset.save_to_disk") from error
    return open_dataset(dataset, source)


def open_dataset(dataset: Any, source: str) -> Archive:
    """A `datasets.Dataset`: its column of images, and its labels if a column is a ClassLabel.

    The digest is of the number of images and the bytes of 64 of them, evenly spaced.
    """
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    column = next((name for name, kind in kinds.items() if kind == "Image"), None)
    if column is None:
        found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        what = f"{printable(source)}: has no column of images, only {printable(found)[:120]}"
        raise InputError(f"{what}; cast one: dataset.cast_column(NAME, datasets.Image())")
    label = next((name for name, kind in kinds.items() if kind == "ClassLabel"), None)
    classes = list(dataset.features[label].names) if label else []
    bare = dataset.with_format(None)
    labels = bare[label][:] if label else []
    if -1 in labels or None in labels:  # of a test split that is not labelled
        classes = []
    feature = type(dataset.features[column])(decode=False)
    bare = bare.select_columns([column]).cast_column(column, feature)
    opener = functools.partial(_open_of_column, bare, column)
    positions = list(range(len(dataset)))
    sampled = np.linspace(0, len(positions) - 1, min(_SAMPLED, len(positions))).astype(int)
    digest = hashlib.sha256(f"{len(positions)}\n".encode())
    for position in sampled.tolist():
        with opener(position) as file:
            digest.update(hashlib.sha256(file.read()).digest())
    names = [f"{position:08d}" for position in positions]
    index = (names, np.array(labels) if classes else None, classes, digest.hexdigest(), positions)
    return Archive(source, *index, opener, source=source, stamp=str(dataset._fingerprint))


def _open_of_column(dataset: Any, column: str, position: int) -> IO[bytes]:
    image = dataset[position][column]
    return io.BytesIO(image["bytes"]) if image["bytes"] else open(image["path"], "rb")


def _open_of_reader(reader: Any, position: int) -> IO[bytes]:
    return reader[position][0]


def _refused(text: str, error: Exception, expected: str) -> InputError:
    reason = printable(" ".join(str(error).split()))[:160]
    what = f"{printable(text)}: cannot be read as a dataset of images ({reason})"
    return InputError(f"{what}; give {expected}")
