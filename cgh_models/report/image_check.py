"""What a set of images holds and what is wrong with it, before anything is trained on it."""

import csv
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import TrainConfig
from ..data.file_names import split_of
from ..data.image_set import MAX_BAD, ImageSet
from ..data.listing import splits_among
from ..data.pixels import statistics
from ..errors import InputError, printable
from ..evaluate.splits import subset
from ..files import atomic
from .duplicates import Groups, equal, near_embeddings, near_hashes
from .image_facts import cache_folder, read_rows

# Of 96 pairs of CIFAR-10 that were looked at, all 64 whose pHash differs in at most 4 bits are one
# picture, and 27 of the 32 at 5 or 6 bits.
HAMMING = 4
# With resnet18.cgh on CIFAR-10's val/, 12 of the 14 pairs above it are one picture, and 10 of 16
# that were looked at from 0.97 on.
COSINE = 0.98
TINY = 32  # pixels of the shorter side
LONG = 3  # the longer side, in shorter ones
CONSTANT = 2 / 255  # standard deviation of each channel within an image, in [0, 1]
_CONSTANT_BANDS = 1e-5  # bands may use a small part of their range
FILES = ("check.json", "keep.csv", "views.png")  # what `cgh check --out` writes


@dataclass(frozen=True)
class Checked:
    """What was found, ready for JSON, and which images are worth training on."""

    found: dict[str, Any]
    kept: np.ndarray  # (n,) indices of readable images that repeat no other, of splits train/ alone
    trained: ImageSet  # what a training takes, which replaces a few unreadable images


def check(images: ImageSet, config: TrainConfig, workers: int, weights: str = "") -> Checked:
    """Reads all images and says what they are.

    Args:
        images: of `load(..., splits=True)`.
        config: the trainer's settings.
        weights: near duplicates are found by the embeddings of this network; "": by pHash.

    Raises InputError if no image can be read.
    """
    rows, indices, bad = read_rows(images, workers, cache_folder())
    if not len(rows):
        index, reason = next(iter(bad.items()))
        what = f"{printable(images.where(index))}: {reason} (none of {len(images)} images can be"
        raise InputError(f"{what} used); give others")
    splits, classes = _splits_and_classes(images)
    reasons = {images.names[index]: reason for index, reason in bad.items()}
    found = {
        "images": len(images),
        "bytes": int(rows["bytes"].sum()),
        "archive": images.archive is not None,
        "left_out": dict(images.skipped),
        "splits": dict(Counter(filter(None, splits))),
        "classes": dict(Counter(filter(None, classes))),
        "unreadable": {"count": len(bad), "files": reasons},
    }
    names = [images.names[index] for index in indices]
    found |= _pixels(rows, names, config)

    good = _spread(rows) >= _constant(config)
    same = equal(rows["sha256"])
    candidates = good.copy()
    for group in same:
        candidates[group[1:]] = False
    near, rule = _near_duplicates(
        images, indices, rows, np.flatnonzero(candidates), weights, workers
    )
    where = [(splits[index], classes[index]) for index in indices]
    found["duplicates"] = {"rule": "equal bytes"} | _described(same, names, where)
    found["near_duplicates"] = {"rule": rule} | _described(near, names, where)

    trains = _first_split(splits)
    for group in (*same, *near):
        elsewhere = any(where[place][0] != trains for place in group)
        good[group if elsewhere else group[1:]] = False
    chosen = np.array([index for index, split in enumerate(splits) if split == trains])
    readable = np.intersect1d(chosen, indices)
    few = len(chosen) - len(readable) <= MAX_BAD * len(chosen)
    trained = subset(images, chosen if few else readable)
    return Checked(found, np.intersect1d(chosen, indices[good]), trained)


def write_files(folder: Path, checked: Checked, images: ImageSet) -> None:
    """Writes check.json and, of images that are files, keep.csv, which `cgh pretrain` takes."""
    text = json.dumps(checked.found, indent=2) + "\n"
    with atomic(folder / FILES[0], len(text)) as temporary:
        temporary.write_text(text, "utf-8")
    if images.archive:
        return
    _, classes = _splits_and_classes(images)
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    labelled = all(classes[index] for index in checked.kept)
    lines.writerow(["path", "label"] if labelled else ["path"])
    for index in checked.kept:
        path = os.path.abspath(images.path(index))
        lines.writerow([path, classes[index]] if labelled else [path])
    with atomic(folder / FILES[1]) as temporary:
        temporary.write_bytes(os.fsencode(table.getvalue()))


def _splits_and_classes(images: ImageSet) -> tuple[list[str], list[str]]:
    """The split's folder and the class of each image, "" where there are none."""
    from_list = not images.archive and not os.path.isdir(images.source)
    fewest = 2 if images.archive else 1
    shared, folders = ("", {}) if from_list else splits_among(images.names, fewest)
    classes = [""] * len(images)
    if not folders:
        if images.labels is not None:
            classes = [images.classes[label] for label in images.labels]
        return [""] * len(images), classes
    splits = [""] * len(images)
    for index, name in enumerate(images.names):
        folder, _, rest = name[len(shared) :].partition("/")
        if folder in folders:
            splits[index] = shared + folder
            classes[index] = rest.partition("/")[0] if "/" in rest else ""
    return splits, classes


def _first_split(splits: list[str]) -> str:
    """The folder to train on: that of train/, or the first; "" if there are no splits."""
    folders = sorted(set(splits))
    trains = [folder for folder in folders if split_of(folder.rpartition("/")[2]) == "train"]
    return [*trains, *filter(None, folders), ""][0]


def _pixels(rows: np.ndarray, names: list[str], config: TrainConfig) -> dict[str, object]:
    """What the rows say of formats, sizes and colours."""
    found: dict[str, object] = {}
    for place, name in enumerate(("formats", "modes", "bits")):
        counts: Counter[str] = Counter()
        for kind, count in Counter(rows["kind"].tolist()).items():
            counts[kind.decode().split(" ")[place]] += count
        found[name] = dict(counts.most_common())
    shorter, longer = np.sort(rows["size"], 1).T
    found["sizes"] = _sizes(rows["size"])
    found["views"] = config.image_size
    found["smaller_than_views"] = int((shorter < config.image_size).sum())
    found["tiny"] = _count_and_names(names, shorter < TINY)
    found["long"] = _count_and_names(names, longer > LONG * shorter)
    found["constant"] = _count_and_names(names, _spread(rows) < _constant(config))
    mean, square = rows["mean"].mean(0), rows["square"].mean(0)  # every image counts alike
    if config.in_chans != 3:  # bands may use a small part of their range
        return found | dict(zip(("mean", "std"), statistics(mean, square), strict=True))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    found |= {"mean": mean.round(4).tolist(), "std": std.round(4).tolist()}
    return found | {"recipe_mean": list(config.mean), "recipe_std": list(config.std)}


def _constant(config: TrainConfig) -> float:
    return CONSTANT if config.in_chans == 3 else _CONSTANT_BANDS


def _spread(rows: np.ndarray) -> np.ndarray:
    """(n,) the standard deviation of the channel of each image that has the largest."""
    return np.sqrt(np.maximum(rows["square"] - rows["mean"] ** 2, 0)).max(1)


def _sizes(sizes: np.ndarray) -> dict[str, object]:
    """Of widths and heights (n, 2), by their pixels."""
    order = np.argsort(sizes.prod(1, dtype=np.int64), kind="stable")
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    return {
        "smallest": sizes[order[0]].tolist(),
        "median": sizes[order[len(order) // 2]].tolist(),
        "largest": sizes[order[-1]].tolist(),
        "most_common": different[counts.argmax()].tolist(),
        "of_most_common": int(counts.max()),
    }


def _count_and_names(names: list[str], chosen: np.ndarray) -> dict[str, object]:
    files = [names[place] for place in np.flatnonzero(chosen)]
    return {"count": len(files), "files": files}


def _near_duplicates(
    images: ImageSet,
    indices: np.ndarray,
    rows: np.ndarray,
    candidates: np.ndarray,
    weights: str,
    workers: int,
) -> tuple[Groups, str]:
    """Groups of near duplicates among the candidates, places in rows, and by what rule."""
    if not weights:
        found = near_hashes(rows["phash"][candidates], HAMMING)
        rule = f"at most {HAMMING} of 64 bits of their pHash differ"
        return [candidates[group] for group in found], rule
    from ..evaluate.embedder import embeddings
    from ..evaluate.protocols import EvalSettings
    from ..hub.registry import create_model

    model = create_model(weights)
    chosen = subset(images, indices[candidates])
    settings = EvalSettings(workers=workers, cache_dir=cache_folder())
    made, kept = embeddings(model, chosen, np.arange(len(chosen)), settings, "skip")
    rule = f"cosine of at least {COSINE} of the embeddings of {printable(weights)}"
    return [candidates[kept[group]] for group in near_embeddings(made, COSINE)], rule


def _described(groups: Groups, names: list[str], where: list[tuple[str, str]]) -> dict[str, object]:
    """Groups by name, how many images repeat another, how many groups cross splits or classes."""
    across = [0, 0]
    for group in groups:
        for number, values in enumerate(zip(*[where[place] for place in group], strict=True)):
            across[number] += len({*values} - {""}) > 1
    return {
        "count": len(groups),
        "spare": sum(len(group) - 1 for group in groups),
        "across_splits": across[0],
        "across_classes": across[1],
        "groups": [[names[place] for place in group] for group in groups],
    }
