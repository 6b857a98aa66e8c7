"""What is read of every image of a set, a row each, and the rows of earlier calls."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..data.bands import is_npy
from ..data.decode import BadFile, decode, describe
from ..data.file_cache import user_cache
from ..data.image_set import ImageSet
from ..data.pixels import as_picture, moments
from ..data.reading import format_of
from ..data.workers import Batch, Key, Sample, read_batches
from ..errors import BadImage, DiskError, printable, say
from ..files import atomic
from ..progress import bar
from .page import library

_VERSION = 1  # of what rows mean
_MIN_SIDE = 256  # large JPEGs are decoded smaller, but not than this
_BATCH = 64  # images that a process reads before it sends them


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


class _Rows(Dataset[Sample]):
    """(0, index) -> the bytes of the image's row, without its key; none of a bad image."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __getitem__(self, key: Key) -> Sample:
        index = key[1]
        try:
            return Sample(index, [torch.from_numpy(_row(self.images, index))], [])
        except BadImage as reason:
            return Sample(index, [], [BadFile(index, str(reason))])


def _row(images: ImageSet, index: int) -> np.ndarray:
    """The row (1,) of an image as bytes. Raises BadImage."""
    if images.in_chans != 3 or images.reader:
        return _row_of_bands(images, index)
    row = np.zeros(1, row_type(3))
    with images.open(index) as file:
        if is_npy(file):  # an array that was given in Python
            return _row_of_bands(images, index)
        form, mode, bits, (width, height) = describe(file)
        image = decode(file, _MIN_SIDE, images.pixel_range)
        row["bytes"], row["sha256"] = _sha256(file)
    if form != "JPEG":  # all of an icon, and upright
        width, height = image.size
    elif (width < height) != (image.width < image.height):
        width, height = height, width
    row["size"] = width, height
    row["kind"] = f"{form} {mode} {bits}".encode()
    row["phash"] = _phash(image)
    counts = np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
    values = np.arange(256) / 255
    row["mean"] = counts @ values
    row["square"] = counts @ values**2
    return row.view(np.uint8)


def _row_of_bands(images: ImageSet, index: int) -> np.ndarray:
    row = np.zeros(1, row_type(images.in_chans))
    with images.open(index) as file:
        image = images.decode(index, file)
        form = "reader" if images.reader else format_of(file)
        row["bytes"], row["sha256"] = _sha256(file)
    pixels = np.array(image)
    row["size"] = pixels.shape[1::-1]
    row["kind"] = f"{form} {images.in_chans}-band {8 * pixels.itemsize}".encode()
    row["phash"] = _phash(as_picture(pixels))
    row["mean"], row["square"] = moments(pixels)
    return row.view(np.uint8)


def _phash(image: Image.Image) -> int:
    bits = library("imagehash").phash(image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "little")


def _sha256(file: IO[bytes]) -> tuple[int, bytes]:
    """How many bytes a file has, and their sha256. Raises BadImage."""
    digest = hashlib.sha256()
    try:
        file.seek(0)
        while block := file.read(2**20):
            digest.update(block)
        return file.tell(), digest.digest()
    except Exception as error:  # an archive of the Hub's may raise anything
        raise BadImage(f"cannot be read: {printable(error)[:120]}") from error


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
    bad: dict[int, str] = {}
    try:
        with contextlib.closing(_read(images, unread, workers)) as batches:
            for batch, read in batches:
                rows[batch.indices] = read
                rows["key"][batch.indices] = keys[batch.indices]
                known[batch.indices] = True
                bad |= {file.index: file.reason for file in batch.bad_files}
    finally:  # what an interrupted call has read is known to the next
        if path and known[unread].any():
            _keep(path, rows[known])
    return rows[known], np.flatnonzero(known), bad


def _read(
    images: ImageSet, indices: np.ndarray, workers: int
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    """Batches of the images, and the rows (n,) of those that can be read."""
    keys = [(0, int(index)) for index in indices]
    parts = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    kind = row_type(images.in_chans)
    processes = workers if sys.platform == "linux" and len(parts) > 1 else 0
    reading = contextlib.closing(read_batches(_Rows(images), parts, images.where, processes))
    with reading as read, bar(len(indices), "reading") as shown:
        for batch in read:
            rows = np.zeros(0, kind)
            if batch.tensors:
                rows = batch.tensors[0].numpy().view(kind)[:, 0]
            yield batch, rows
            shown.update(len(rows) + len(batch.bad_files))


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
    stamp = content
    with contextlib.suppress(OSError):
        if not images.archive:
            stamp = str(os.stat(images.path(index)).st_size)
    text = f"{images.names[index]}\t{stamp}\t{images.changed(index)}"
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
