"""Images of Hugging Face's datasets: of the Hub by name, on disk, or as an object."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from timm.data.readers import create_reader

from ..errors import InputError, printable
from .archive import Archive

_SAMPLED = 64  # images that tell a dataset from others


def open_hub_dataset(text: str) -> Archive:
    """``hfds/NAME`` or ``hfds/NAME:SPLIT``; NAME may be the full path of a folder in that form."""
    _check_library(text)
    name, _, split = text.partition(":")
    try:
        reader: Any = create_reader(name, split=split or "train")
        if reader.class_to_idx:
            labels = [int(label) for label in reader.iter_targets()]
        else:  # timm's reader wants some label with every image
            reader = create_reader(name, split=split or "train", target_key=reader.image_key)
            labels = [0] * len(reader)
    except Exception as error:  # datasets raises what its dozen back ends raise
        raise _refused(text, error, "hfds/NAME or hfds/NAME:SPLIT") from error
    positions = list(range(len(reader)))
    names = [f"{position:08d}" for position in positions]
    classes = [str(name) for name in reader.class_to_idx or ()]
    fingerprint = f"{reader.dataset._fingerprint}\t{len(names)}"
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    opener = _OfReader(reader)
    return Archive(text, names, labels, classes, digest, positions, opener)


def hub_splits(text: str) -> list[str]:
    """Names of the splits of ``hfds/NAME``."""
    _check_library(text)
    import datasets

    try:
        return datasets.get_dataset_split_names(text.removeprefix("hfds/"))
    except Exception as error:
        raise _refused(text, error, "hfds/NAME") from error


def open_saved(path: Path, split: str) -> Archive:
    """A folder of `Dataset.save_to_disk`, or a split of one of `DatasetDict.save_to_disk`."""
    _check_library(str(path))
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path / split))
    except Exception as error:
        raise _refused(str(path / split), error, "a folder of Dataset.save_to_disk") from error
    return open_dataset(dataset, str(path / split))


def is_saved(path: Path) -> bool:
    """Whether it is a folder that `save_to_disk` of a Dataset or a DatasetDict made."""
    names = ("state.json", "dataset_info.json")
    of_dataset = all(os.path.isfile(path / name) for name in names)
    return of_dataset or os.path.isfile(path / "dataset_dict.json")


def saved_splits(path: Path) -> list[str]:
    """Names of the splits in a folder of `DatasetDict.save_to_disk`; none in one of a Dataset."""
    try:
        return json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
    except (OSError, ValueError, LookupError, TypeError):
        return []


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
    labels = bare[label][:] if label else [0] * len(dataset)
    if -1 in labels or None in labels:  # of a test split that is not labelled
        classes, labels = [], [0] * len(dataset)
    feature = type(dataset.features[column])(decode=False)
    opener = _Column(bare.select_columns([column]).cast_column(column, feature), column)
    positions = list(range(len(dataset)))
    sampled = np.linspace(0, len(positions) - 1, min(_SAMPLED, len(positions))).astype(int)
    digest = hashlib.sha256(f"{len(positions)}\n".encode())
    for position in sampled.tolist():
        with opener(position) as file:
            digest.update(hashlib.sha256(file.read()).digest())
    names = [f"{position:08d}" for position in positions]
    index = (names, labels, classes, digest.hexdigest(), positions, opener)
    return Archive(source, *index, source=source, stamp=str(dataset._fingerprint))


@dataclass(frozen=True)
class _Column:
    dataset: Any
    name: str

    def __call__(self, position: int) -> IO[bytes]:
        image = self.dataset[position][self.name]
        return io.BytesIO(image["bytes"]) if image["bytes"] else open(image["path"], "rb")


@dataclass(frozen=True)
class _OfReader:
    reader: Any

    @contextlib.contextmanager
    def __call__(self, position: int) -> Iterator[IO[bytes]]:
        with self.reader[position][0] as file:
            yield file


def _check_library(text: str) -> None:
    if importlib.util.find_spec("datasets") is None:
        install = "pip install '.[datasets]'"
        raise InputError(f"{printable(text)}: needs the datasets library; type `{install}`")


def _refused(text: str, error: Exception, expected: str) -> InputError:
    reason = printable(" ".join(str(error).split()))[:160]
    what = f"{printable(text)}: cannot be read as a dataset of images ({reason})"
    return InputError(f"{what}; give {expected}")
