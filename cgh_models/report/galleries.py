"""Rows of nearest images and maps of points, as `templates/parts.html` shows them."""

import io
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from ..data.image_set import ImageSet
from ..data.reading import picture
from ..errors import BadImage, InputError, printable
from ..evaluate.neighbours import nearest
from ..progress import watched
from .page import address, thumbnail

MOST_POINTS = 4000  # of a map
_SHEET_BYTES = 1_900_000  # of the thumbnails of a map, before base64
_SHEET_SIDE = 32  # pixels of each of them


def neighbour_rows(
    embeddings: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M, k) and cosines (M, k) of the images nearest to some of them, without themselves.

    ``queries`` (M,) are indices into the embeddings (N, D); all of these are compared. A k above
    N - 1 is N - 1. Raises InputError for fewer than two images.
    """
    if len(embeddings) < 2:
        raise InputError(f"images to compare: {len(embeddings)}; give --data two or more")
    k = min(k, len(embeddings) - 1)
    indices, cosines = nearest(embeddings, embeddings[queries], k + 1)
    others = indices != np.asarray(queries)[:, None]
    others[others.all(1), -1] = False  # so many are equal to it that it is not among them
    return indices[others].reshape(-1, k), cosines[others].reshape(-1, k)


def pictures(images: ImageSet, indices: Iterable[int], side: int = 64) -> dict[int, str]:
    """The thumbnails of these images by index, as addresses of <img>."""
    chosen = sorted({int(index) for index in indices})
    small = _small(images, chosen, side)
    return {index: thumbnail(image, side) for index, image in zip(chosen, small, strict=True)}


def picture_of_set(
    images: ImageSet,
    index: int,
    addresses: Mapping[int, str],
    note: str = "",
    of: int | None = None,
) -> dict[str, object]:
    """One picture of a row: its address, name and class, and a note.

    ``of``: the image it is shown beside; pictures of another class than its are marked.
    """
    label = differs = None
    if images.labels is not None:
        label = printable(images.classes[images.labels[index]])
        differs = of is not None and bool(images.labels[index] != images.labels[of])
    name = printable(images.names[index])
    marks = {"index": int(index), "label": label, "differs": differs}
    return picture_made_here(addresses[int(index)], name, note) | marks


def picture_made_here(address: str, name: str, note: str = "") -> dict[str, object]:
    """One picture of a row that was made here and is none of the set."""
    return {"src": address, "name": name, "label": None, "note": note, "differs": False}


def map_points(
    images: ImageSet, indices: np.ndarray, points: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """What the macro `map` draws: one or more maps of the same images, side by side.

    ``indices`` (n,) are those of the images, of which at most MOST_POINTS are shown; ``points``
    are (n, 2) in [0, 1], as `project` makes them, by the title of their map.
    """
    chosen = np.arange(len(indices))
    if len(chosen) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, MOST_POINTS, replace=False))
    indices = np.asarray(indices)[chosen]
    labels = None if images.labels is None else images.labels[indices].tolist()
    return {
        "maps": [
            {"title": title, "points": np.round(values[chosen], 3).tolist()}
            for title, values in points.items()
        ],
        "names": [printable(images.names[index]) for index in indices],
        "labels": labels,
        "classes": [printable(name) for name in images.classes],
        "sheet": _sheet(images, indices),
    }


def check_projection(method: str) -> Any:
    """umap's module where it is needed. Raises InputError if that is not installed."""
    if method != "umap":
        return None
    try:
        return import_module("umap")
    except ImportError as error:
        advice = "type pip install umap-learn, or give --map pca"
        raise InputError(f"--map umap: umap-learn is not installed; {advice}") from error


def project(embeddings: np.ndarray, method: str = "pca") -> np.ndarray:
    """Points (N, 2) in [0, 1] for embeddings (N, D), of the unit rows, which kNN compares.

    ``pca``: the two directions of most variance, signs fixed. ``umap``: with `umap-learn`, seeded.
    Raises InputError if that is not installed.
    """
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    if method == "umap":
        umap = check_projection(method).UMAP(metric="cosine", random_state=0, n_jobs=1)
        points = umap.fit_transform(rows)
    else:
        rows -= rows.mean(0)
        _, axes = np.linalg.eigh(rows.T @ rows)
        axes = axes[:, ::-1][:, :2]  # (D, 2), most variance first
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        points = rows @ axes
    low, high = np.quantile(points, (0.005, 0.995), axis=0)  # a few far images must not shrink all
    return ((points - low) / np.maximum(high - low, 1e-12)).clip(0, 1).astype(np.float32)


def _sheet(images: ImageSet, indices: np.ndarray) -> dict[str, object]:
    """Thumbnails of the first images, as many as have room, in rows of one picture."""
    side = _SHEET_SIDE
    small = list(_small(images, indices.tolist(), side))
    while True:
        columns = max(1, math.isqrt(len(small)))
        rows = math.ceil(len(small) / columns)
        sheet = Image.new("RGB", (columns * side, rows * side))
        for place, image in enumerate(small):
            row, column = divmod(place, columns)
            left = column * side + (side - image.width) // 2
            sheet.paste(image, (left, row * side + (side - image.height) // 2))
        buffer = io.BytesIO()
        sheet.save(buffer, "WEBP", quality=60)
        if buffer.tell() <= _SHEET_BYTES:
            break
        small = small[: len(small) // 2]
    return {
        "src": address(buffer.getvalue(), "webp"),
        "columns": columns,
        "side": side,
        "count": len(small),
    }


def _small(images: ImageSet, indices: list[int], side: int) -> Iterable[Image.Image]:
    """The images in squares of ``side`` pixels, read by threads; grey for one that is gone."""

    def read(index: int) -> Image.Image:
        try:
            image = picture(images, index, min_side=2 * side)
        except BadImage:
            return Image.new("RGB", (side, side), "grey")
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        return image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from watched(pool.map(read, indices), "thumbnails", len(indices))
