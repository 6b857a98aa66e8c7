"""`cgh neighbours`: a page of nearest images, near duplicates, outliers and a map of a set."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ..data.image_set import ImageSet
from ..errors import InputError, printable
from ..evaluate.embedder import check_finite, embeddings
from ..evaluate.extraction import open_images
from ..evaluate.neighbours import groups, nearest
from ..evaluate.protocols import EvalSettings
from ..evaluate.splits import subset
from ..version import __version__
from . import galleries, page

_MOST_COMPARED = 50_000  # images that are compared with each other
_MOST_GROUPS = 20
_MOST_OF_GROUP = 10  # images of a group that are shown
_OUTLIERS = 24
_SIDES = (96, 64, 40)  # pixels of a thumbnail: the first with which all have room
_PICTURE_BYTES = 2_200_000  # of these thumbnails; those of the map take as much


@dataclass(frozen=True)
class Asked:
    """What the page shows."""

    queries: tuple[str, ...] = ()  # files; none: some of the set, drawn by the seed
    k: int = 8  # nearest images of each
    count: int = 40  # queries that are drawn
    projection: str = "pca"  # of the map, or umap
    same: float = 0.98  # cosine from which two images are near duplicates

    def __post_init__(self):
        for flag, value in (("--k", self.k), ("--count", self.count)):
            if value < 1:
                raise InputError(f"{flag} {value}: expected at least 1")
        if not 0 < self.same <= 1:
            raise InputError(f"--same {self.same}: expected a cosine above 0 and at most 1")
        galleries.check_projection(self.projection)


class Entry(NamedTuple):
    """A picture in a row."""

    image: int
    note: str = ""
    of: int | None = None  # the image beside which another class is marked
    is_file: bool = False  # one of the files that are queries, not one of the set


def write_neighbours(
    model: nn.Module,
    images: ImageSet,
    out: Path,
    settings: EvalSettings,
    asked: Asked,
    weights: str = "",
) -> dict[str, Any]:
    """Writes the page and returns its numbers.

    Raises InputError for images or queries that cannot be read, DiskError if it cannot be written.
    """
    how = (images.pixel_range, images.in_chans, images.reader)
    files = open_images(list(asked.queries), *how) if asked.queries else None
    rows, images, left_out = _embedded(model, images, settings)
    rng = np.random.default_rng(settings.seed)
    if files:
        of_files, _ = embeddings(model, files, np.arange(len(files)), settings)
        queries = _near_files(of_files, rows, files, images, asked.k)
    else:
        queries = _near_drawn(_sample(rng, len(rows), asked.count), rows, asked.k)
    compared = _sample(rng, len(rows), _MOST_COMPARED)
    indices, cosines = galleries.neighbour_rows(rows[compared], np.arange(len(compared)), asked.k)
    means = cosines.mean(1)
    least = means.argsort()[:_OUTLIERS]
    outliers = [Entry(int(compared[place]), f"{means[place]:.3f}") for place in least]
    same = [compared[group] for group in groups(rows[compared], asked.same)]
    duplicates = [_row(int(group[0]), *_beside(rows, group)) for group in same[:_MOST_GROUPS]]
    lines = _pictures(images, files, asked.queries, [*queries, *duplicates, outliers])
    on_map = _sample(rng, len(rows), galleries.MOST_POINTS)
    points = {"": galleries.project(rows[on_map], asked.projection)}
    numbers = {"images": len(rows), "left_out": left_out, "compared": len(compared)}
    numbers |= {"groups": len(same), "in_groups": sum(map(len, same))}
    numbers |= {"nearest": _median(cosines[:, 0]), "random": _median(_of_random_pairs(rng, rows))}
    numbers |= {"same_class": _same_class(images, compared, indices)}
    page.write_page(
        out,
        "neighbours.html",
        title=f"Neighbours in {printable(images.root.resolve().name or images.source)}",
        version=__version__,
        weights=printable(weights),
        width=rows.shape[1],
        classes=len(images.classes),
        **{"asked": asked, "numbers": numbers},
        queries=lines[: len(queries)],
        duplicates=list(zip(map(len, same), lines[len(queries) : -1], strict=False)),
        outliers=lines[-1],
        map=galleries.map_points(images, on_map, points),
    )
    return numbers | {"outliers": [picture["name"] for picture in lines[-1]]}


def _embedded(
    model: nn.Module, images: ImageSet, settings: EvalSettings
) -> tuple[np.ndarray, ImageSet, int]:
    """Embeddings (n, D), the images that they are of, and how many cannot be read."""
    rows, kept = embeddings(model, images, np.arange(len(images)), settings, "skip")
    if len(rows) < 2:
        raise InputError(f"{printable(images.place)}: one image; expected two or more")
    check_finite(rows)
    left_out = len(images) - len(kept)
    return rows, (subset(images, kept) if left_out else images), left_out


def _sample(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    """All indices up to ``count``, or ``most`` of them, sorted."""
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _row(query: int, near: np.ndarray, cosines: np.ndarray) -> list[Entry]:
    beside = zip(near.tolist(), cosines.tolist(), strict=True)
    return [Entry(query), *(Entry(index, f"{cosine:.3f}", query) for index, cosine in beside)]


def _near_drawn(drawn: np.ndarray, rows: np.ndarray, k: int) -> list[list[Entry]]:
    """A row for each of these images of the set."""
    near = galleries.neighbour_rows(rows, drawn, k)
    return [_row(*line) for line in zip(drawn.tolist(), *near, strict=True)]


def _near_files(
    of_files: np.ndarray, rows: np.ndarray, files: ImageSet, images: ImageSet, k: int
) -> list[list[Entry]]:
    """A row for each file; if it is one of the set, without itself."""
    lines = []
    for number, near in enumerate(zip(*nearest(rows, of_files, k + 1), strict=True)):
        path = os.path.realpath(files.path(number))
        others = [
            Entry(int(index), f"{cosine:.3f}")
            for index, cosine in zip(*near, strict=True)
            if os.path.realpath(images.path(index)) != path
        ]
        lines.append([Entry(number, is_file=True), *others[:k]])
    return lines


def _beside(rows: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of a group that are shown beside its first image, and their cosines to it."""
    near, cosines = nearest(rows[group[1:]], rows[group[:1]], _MOST_OF_GROUP - 1)
    return group[1:][near[0]], cosines[0]


def _of_random_pairs(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Cosines (n,) of pairs of different images."""
    first = rng.integers(len(rows), size=2000)
    second = (first + rng.integers(1, len(rows), size=2000)) % len(rows)
    lengths = [np.linalg.norm(rows[some], axis=1) for some in (first, second)]
    return (rows[first] * rows[second]).sum(1) / np.maximum(lengths[0] * lengths[1], 1e-12)


def _median(cosines: np.ndarray) -> float:
    return round(float(np.median(cosines)), 4)


def _same_class(images: ImageSet, compared: np.ndarray, near: np.ndarray) -> float | None:
    """The share of nearest images that are of the same class; None without classes."""
    if images.labels is None:
        return None
    labels = images.labels[compared]
    return round(float((labels[near] == labels[:, None]).mean()), 4)


def _pictures(
    images: ImageSet, files: ImageSet | None, queries: tuple[str, ...], lines: list[list[Entry]]
) -> list[list[dict[str, object]]]:
    """The rows with their thumbnails, of the largest size with which all have room."""
    entries = [entry for line in lines for entry in line]
    addresses: dict[bool, dict[int, str]] = {}
    for side in _SIDES:
        for is_file, of_set in ((False, images), (True, files)):
            if of_set is not None:
                chosen = [entry.image for entry in entries if entry.is_file == is_file]
                addresses[is_file] = galleries.pictures(of_set, chosen, side)
        if sum(len(addresses[entry.is_file][entry.image]) for entry in entries) <= _PICTURE_BYTES:
            break

    def picture(entry: Entry) -> dict[str, object]:
        of_set = files if entry.is_file and files else images
        address = addresses[entry.is_file]
        found = galleries.picture_of_set(of_set, entry.image, address, entry.note, entry.of)
        return found | ({"name": printable(queries[entry.image])} if entry.is_file else {})

    return [[picture(entry) for entry in line] for line in lines]
