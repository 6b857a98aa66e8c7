"""A row of facts for every image of a set, of earlier calls where it has not changed since."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import PIL

from ..data.file_cache import user_cache
from ..data.image_set import ImageSet
from ..data.listing import size_and_change
from ..errors import DiskError, printable, say
from ..files import atomic
from .page import library

_VERSION = 1  # of what rows mean


def row_type(channels: int) -> np.dtype:
    """What a row says of an image: which it is, its bytes, and what its pixels are."""
    return np.dtype(
        [
            ("key", "V16"),  # hash of name, bytes and time of change
            ("sha256", "V32"),  # of its bytes
            ("phash", "<u8"),  # perceptual hash of 64 bits
            ("kind", "S32"),  # format, mode and bits, with spaces between them
            ("bytes", "<i8"),
            ("size", "<i4", 2),  # width and height, upright
            ("mean", "<f8", channels),  # of each channel, in [0, 1]
            ("square", "<f8", channels),  # mean of each channel's squares
        ]
    )


def read_rows(
    images: ImageSet, workers: int, cache: Path | None
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Rows (n,) and indices (n,) of the images that can be read, and why the others cannot.

    What is known from ``cache``, a folder, by name, bytes and time of change is not read again.
    """
    content = images.archive.content() if images.archive and cache else ""
    keys = np.array([_key(images, index, content) for index in range(len(images))], "V16")
    rows = np.zeros(len(images), row_type(images.in_chans))
    known = np.zeros(len(images), bool)
    versions = f"{_VERSION} {PIL.__version__} {library('imagehash').__version__}"
    path = cache / f"{_source_key(images, versions)}.rows" if cache else None
    kept = _load(path, rows.dtype) if path else rows[:0]
    place_of = {key: place for place, key in enumerate(kept["key"].tolist())}
    for index, key in enumerate(keys.tolist()):
        if key in place_of:
            rows[index] = kept[place_of[key]]
            known[index] = True
    unread = np.flatnonzero(~known)
    if not len(unread):
        return rows, np.arange(len(images)), {}
    from .image_rows import batches_of_rows  # imported late: torch takes seconds

    bad: dict[int, str] = {}
    try:
        with contextlib.closing(batches_of_rows(images, unread, workers, rows.dtype)) as batches:
            for batch, read in batches:
                rows[batch.indices] = read
                rows["key"][batch.indices] = keys[batch.indices]
                known[batch.indices] = True
                bad |= {file.index: file.reason for file in batch.bad_files}
    finally:  # what an interrupted call has read is known to the next
        if path and known[unread].any():
            _keep(path, rows[known])
    return rows[known], np.flatnonzero(known), bad


def cache_folder() -> Path | None:
    """The user's folder for rows; None without a home."""
    home = user_cache()
    return home / "check" if home else None


def _source_key(images: ImageSet, versions: str) -> str:
    text = f"{versions} {images.source} {images.pixel_range}"
    if images.in_chans != 3 or images.reader:
        text += f" {images.in_chans} {images.reader}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _key(images: ImageSet, index: int, content: str) -> bytes:
    if images.archive:
        stamp, changed = content, images.changed(index)
    else:
        size, changed = size_and_change(images.path(index))
        stamp = str(size) if size >= 0 else ""
    text = f"{images.names[index]}\t{stamp}\t{changed}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _load(path: Path, kind: np.dtype) -> np.ndarray:
    """Kept rows (n,); none of a file that is missing or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return np.zeros(0, kind)
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() != digest:
        say(f"{printable(path)}: is damaged, so all images are read again")
        return np.zeros(0, kind)
    return np.frombuffer(data, kind)


def _keep(path: Path, rows: np.ndarray) -> None:
    """Keeps rows. A full disk is a remark: the work is done."""
    data = rows.tobytes()
    try:
        os.makedirs(path.parent, exist_ok=True)
        with atomic(path, len(data)) as temporary:
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
    except (OSError, DiskError) as error:
        say(f"what was read of the images is not kept for the next time: {printable(error)}")
