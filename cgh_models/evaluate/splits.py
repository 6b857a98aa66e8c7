"""Which labelled images: those held out to choose on, and fixed small shares, functions of the seed and the images."""

import dataclasses
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.image_set import ImageSet
from ..data.views import uniform
from ..errors import InputError, printable
from ..files import atomic

HELD_OUT = 5_000  # images, or a tenth of a set of fewer than ten times as many
_HELD_OUT_STREAM, _LABELS_STREAM = 1002, 1003  # keep these random numbers apart from those of order and views


def held_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two index arrays, sorted and disjoint: images to train on, and images held out to choose on.

    Held out are 5,000 images or a tenth, whichever is less, of each class its share; one image of a class always stays
    to train on.

    Raises:
        InputError: not one can be held out.
    """
    sizes = np.bincount(labels)
    exact = sizes * min(HELD_OUT, max(1, len(labels) // 10)) / len(labels)
    take = np.floor(exact).astype(int)
    short = round(exact.sum()) - take.sum()
    take[np.argsort(take - exact, kind="stable")[:short]] += 1
    chosen = _places(labels, seed, _HELD_OUT_STREAM) < np.minimum(take, sizes - 1)[labels]
    if not chosen.any():
        raise InputError(
            f"{len(labels)} training images of {np.count_nonzero(sizes)} classes: none can be held out to choose on; "
            "give more of each class, or --protocol sgd with its --lr"
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def draw(labels: np.ndarray, percent: int, seed: int) -> np.ndarray:
    """Indices (n,), sorted, of the labelled share: equally many of every class, or all that a smaller class has.

    The 1 % of a seed are among its 10 %.

    Raises:
        InputError: fewer labels than classes.
    """
    count, classes = len(labels) * percent // 100, int(labels.max()) + 1
    if percent < 100 and count < classes:
        enough = next(more for more in (10, 100) if len(labels) * more // 100 >= classes)
        raise InputError(
            f"--labels {percent}%: {count} of {len(labels)} training images, fewer labels than the {classes} classes; "
            f"give --labels {enough}%, or more images"
        )
    if percent == 100:
        return np.arange(len(labels))
    return np.flatnonzero(_places(labels, seed, _LABELS_STREAM) < count // classes)


def _places(labels: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """(N,) place of each image in a random order of its class, from 0."""
    order = np.lexsort((uniform(seed, 0, np.arange(len(labels)), 1, stream)[:, 0], labels))
    sizes = np.bincount(labels)
    places = np.empty(len(labels), int)
    places[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places


def labelled(images: ImageSet, percent: int, seed: int, file: str | Path | None = None) -> tuple[np.ndarray, str]:
    """Indices of the labelled images, and the sha256 of their names, a line each.

    Args:
        file: a text file of names relative to train/. Where it is there, its images are taken and the seed plays no
            part; else the names that the seed draws are written to it.

    Raises:
        InputError: fewer labels than classes, or a file that does not hold such a share of these images.
        DiskError: the file cannot be written.
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


def _read(file: Path, images: ImageSet, percent: int, drawn: int) -> np.ndarray:
    if not file.is_file():
        raise InputError(f"{printable(file)}: not a file; give --splits-file a text file of image names, or a new name")
    lines = [line for line in os.fsdecode(file.read_bytes()).splitlines() if line]
    where = {name: index for index, name in enumerate(images.names)}
    expected = f"expected names of images in {printable(images.root)}, one a line; or give a new --splits-file"
    if strange := [line for line in lines if line not in where]:
        what = f"{len(strange)} of its {len(lines)} lines name no such image, the first is"
        raise InputError(f"{printable(file)}: {what} {printable(strange[0])[:80]!r}; {expected}")
    if twice := [name for name, times in Counter(lines).items() if times > 1]:
        raise InputError(f"{printable(file)}: names {printable(twice[0])[:80]!r} more than once; {expected}")
    indices = np.sort(np.array([where[line] for line in lines], int))
    most = -(-len(images) * percent // 100)
    if not drawn <= len(lines) <= most:
        given = f"{len(lines)} images, which are not {percent}% of {len(images)} ({drawn} to {most})"
        raise InputError(f"{printable(file)}: {given}; give another --labels or a new --splits-file")
    assert images.labels is not None
    if missing := set(range(len(images.classes))) - set(images.labels[indices].tolist()):
        name = printable(images.classes[min(missing)])
        raise InputError(f"{printable(file)}: has no image of {len(missing)} classes, {name!r} first; {expected}")
    return indices


def subset(images: ImageSet, indices: np.ndarray) -> ImageSet:
    """These images as a set of their own, with the same classes and a digest of its own."""
    digest = hashlib.sha256(images.digest.encode() + np.asarray(indices, "<i8").tobytes()).hexdigest()
    pixels = images.pixels
    if pixels is not None:
        pixels = pixels[indices] if isinstance(pixels, Tensor) else [pixels[index] for index in indices]
    assert images.labels is not None
    return dataclasses.replace(
        images, names=[images.names[index] for index in indices], labels=images.labels[indices], digest=digest,
        archive=images.archive and images.archive.take(indices), pixels=pixels, bad={}, bad_file=None,
    )  # fmt: skip
