"""Which labelled images: those held out to choose on, and fixed small shares, drawn by the seed."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.draws import uniform
from ..data.names import Names
from ..data.path_list import read_text
from ..errors import InputError, printable
from ..files import atomic

if TYPE_CHECKING:
    from ..data.image_set import ImageSet

HELD_OUT = 5_000  # images, or a tenth of a set of fewer than ten times as many
# Keep these random numbers apart from those of order and views.
_HELD_OUT_STREAM = 1002
_LABELS_STREAM = 1003


def held_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on, and of those held out to choose on; sorted and disjoint.

    5,000 images or a tenth are held out, whichever is less, of each class its share; one image of a
    class always stays to train on. Raises InputError if not one can be held out.
    """
    sizes = np.bincount(labels)
    exact = sizes * min(HELD_OUT, max(1, len(labels) // 10)) / len(labels)
    take = np.floor(exact).astype(int)
    short = round(exact.sum()) - take.sum()
    take[np.argsort(take - exact, kind="stable")[:short]] += 1
    chosen = _class_ranks(labels, seed, _HELD_OUT_STREAM) < np.minimum(take, sizes - 1)[labels]
    if not chosen.any():
        if len(sizes) == 1:  # of no classes
            raise InputError(f"{len(labels)} training images: none can be held out; give more")
        what = f"{len(labels)} training images of {np.count_nonzero(sizes)} classes"
        advice = "give more of each class, or --protocol sgd with its --lr"
        raise InputError(f"{what}: none can be held out to choose on; {advice}")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def draw(labels: np.ndarray, percent: int, seed: int) -> np.ndarray:
    """Indices (n,), sorted, of the labelled share: equally many of every class, or all it has.

    The 1 % of a seed are among its 10 %. Raises InputError for fewer labels than classes.
    """
    total = len(labels)
    count = total * percent // 100
    classes = int(labels.max()) + 1
    if percent == 100:
        return np.arange(total)
    if count < classes:
        enough = 10 if total * 10 // 100 >= classes else 100
        found = f"{count} of {total} training images, fewer labels than the {classes} classes"
        raise InputError(f"--labels {percent}%: {found}; give --labels {enough}%, or more images")
    return np.flatnonzero(_class_ranks(labels, seed, _LABELS_STREAM) < count // classes)


def _class_ranks(labels: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """(N,) rank of each image in a random order of its class, from 0."""
    order = np.lexsort((uniform(seed, 0, np.arange(len(labels)), 1, stream)[:, 0], labels))
    sizes = np.bincount(labels)
    ranks = np.empty(len(labels), int)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def labelled(
    images: "ImageSet", percent: int, seed: int, file: str | Path | None = None
) -> tuple[np.ndarray, str]:
    """Indices of the labelled images, and the sha256 of their names, one a line.

    If ``file``, a text file of names relative to train/, exists, its images are taken and the seed
    plays no part; else the names that the seed draws are written to it.
    """
    assert images.labels is not None
    indices = draw(images.labels, percent, seed)
    if file and Path(file).exists():
        indices = _read(Path(file), images, percent, len(indices))
    names = b"".join(os.fsencode(images.names[index]) + b"\n" for index in indices)
    if file and not Path(file).exists():
        with atomic(Path(file)) as temporary:
            temporary.write_bytes(names)
    return indices, hashlib.sha256(names).hexdigest()


def _read(file: Path, images: "ImageSet", percent: int, drawn: int) -> np.ndarray:
    if not file.is_file():
        what = f"{printable(file)}: not a file"
        raise InputError(f"{what}; give --splits-file a text file of image names, or a new name")
    lines = [line for line in read_text(file).split("\n") if line]
    index_of = {name: index for index, name in enumerate(images.names)}
    unknown = [line for line in lines if line not in index_of]
    indices = np.array([index_of[line] for line in lines if line in index_of], int)
    assert images.labels is not None
    missing = len(images.classes) - len(set(images.labels[indices].tolist()))
    most = -(-len(images) * percent // 100)
    problem = ""
    if unknown:
        first = printable(unknown[0])[:80]
        problem = f"{len(unknown)} of its {len(lines)} lines name no such image, {first!r} first"
    elif len(set(lines)) < len(lines):
        problem = "names an image more than once"
    elif not drawn <= len(lines) <= most:
        problem = f"{len(lines)} images, which are not {percent}% of {len(images)}"
    elif missing:
        problem = f"has no image of {missing} classes"
    if problem:
        names = f"{drawn} to {most} names of images in {printable(images.place)}, one a line"
        hint = "give another --labels or a new --splits-file"
        raise InputError(f"{printable(file)}: {problem}; expected {names}: {hint}")
    return np.sort(indices)


def subset(images: "ImageSet", indices: np.ndarray) -> "ImageSet":
    """These images as a set of their own, with the same classes and a digest of its own."""
    digest = hashlib.sha256(images.digest.encode() + np.asarray(indices, "<i8").tobytes())
    places = None if images.pixels is None else images.places_of(indices)  # they are not copied
    return dataclasses.replace(
        images,
        names=Names(images.names[index] for index in indices),
        labels=None if images.labels is None else images.labels[indices],
        digest=digest.hexdigest(),
        archive=images.archive and images.archive.take(indices),
        places=places,
        bad={},
        bad_file=None,
        walked=None,
    )
