"""Reads what a row says of every image, in processes of their own."""

import contextlib
import hashlib
import sys
from collections.abc import Generator
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..data.bands import is_npy
from ..data.decode import BadFile, decode_rgb, describe
from ..data.image_set import ImageSet
from ..data.pixels import as_picture, moments
from ..data.reading import format_of
from ..data.workers import Batch, Key, Sample, read_batches
from ..errors import BadImage, printable
from ..progress import bar
from .page import library

_MIN_SIDE = 256  # large JPEGs are decoded smaller, but not than this
_BATCH = 64  # images that a process reads before it sends them


def batches_of_rows(
    images: ImageSet, indices: np.ndarray, workers: int, kind: np.dtype
) -> Generator[tuple[Batch, np.ndarray], None, None]:
    """Batches of the images, and the rows (n,), of this kind, of those that can be read."""
    keys = [(0, int(index)) for index in indices]
    parts = [keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)]
    processes = workers if sys.platform == "linux" and len(parts) > 1 else 0
    reading = contextlib.closing(read_batches(_Rows(images, kind), parts, images.where, processes))
    with reading as read, bar(len(indices), "reading") as shown:
        for batch in read:
            rows = np.zeros(0, kind)
            if batch.tensors:
                rows = batch.tensors[0].numpy().view(kind)[:, 0]
            yield batch, rows
            shown.update(len(rows) + len(batch.bad_files))


class _Rows(Dataset[Sample]):
    """(0, index) -> the bytes of the image's row, without its key; none of a bad image."""

    def __init__(self, images: ImageSet, kind: np.dtype):
        self.images = images
        self.kind = kind

    def __getitem__(self, key: Key) -> Sample:
        index = key[1]
        try:
            return Sample(index, [torch.from_numpy(_row(self.images, index, self.kind))], [])
        except BadImage as reason:
            return Sample(index, [], [BadFile(index, str(reason))])


def _row(images: ImageSet, index: int, kind: np.dtype) -> np.ndarray:
    """The row (1,) of an image as bytes. Raises BadImage."""
    if images.in_chans != 3 or images.reader:
        return _row_of_bands(images, index, kind)
    row = np.zeros(1, kind)
    with images.open(index) as file:
        if is_npy(file):  # an array that was given in Python
            return _row_of_bands(images, index, kind)
        form, mode, bits, (width, height) = describe(file)
        image = decode_rgb(file, _MIN_SIDE, images.pixel_range)
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


def _row_of_bands(images: ImageSet, index: int, kind: np.dtype) -> np.ndarray:
    row = np.zeros(1, kind)
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
