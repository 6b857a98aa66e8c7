"""All pixels of a set in memory, if they fit."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ..progress import watched

if TYPE_CHECKING:
    from torch import Tensor

    from .decode import BadFile
    from .image_set import ImageSet

DECODERS = "image decoder"  # names of threads begin with it


def pixels_in_memory(images: "ImageSet", budget: float) -> "Tensor | list[Tensor] | None":
    """(N, H, W, C) of equally large images, else a list of (H, W, C); None: they don't fit.

    ``budget`` is in bytes. An image is decoded only if its header says that it fits beside those
    whose headers were read before. Raises InputError for too many bad files.
    """
    import torch  # imported late: an index alone needs none

    sample = np.linspace(0, len(images) - 1, min(64, len(images))).astype(int).tolist()
    if np.mean([images.decoded_bytes(index) for index in sample]) * len(images) > budget:
        return None
    used = 0
    pixels: list[Tensor] = []
    stacked = None  # never two copies of the set at once: images as large as the first go here
    for image, bad_files in watched(_decode_all(images, budget), "decoding", len(images)):
        images.record_bad_files(bad_files)
        decoded = torch.from_numpy(np.array(image))
        used += decoded.nbytes
        if used > budget:  # a substitute, or a header that was not right
            return None
        if not pixels and decoded.nbytes * len(images) <= budget:
            stacked = torch.empty(len(images), *decoded.shape, dtype=decoded.dtype)
        kind = (decoded.shape, decoded.dtype)
        if stacked is not None and kind == (stacked.shape[1:], stacked.dtype):
            stacked[len(pixels)] = decoded
            decoded = stacked[len(pixels)]
        pixels.append(decoded)
    if len(pixels) < len(images):
        return None
    kinds = {(image.shape, image.dtype) for image in pixels}
    return stacked if stacked is not None and len(kinds) == 1 else pixels


def _decode_all(images: "ImageSet", budget: float) -> Iterator[tuple[object, "list[BadFile]"]]:
    """All images in order, or as many as fit, decoded by threads that are a few images ahead."""
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, DECODERS)
    ahead: deque[Future[tuple[object, list[BadFile]] | None]] = deque()
    lock = Lock()

    def decode_if_it_fits(index: int) -> "tuple[object, list[BadFile]] | None":
        nonlocal budget
        size = images.decoded_bytes(index)  # over a network this takes a while
        with lock:
            budget -= size
            fits = budget >= 0
        return images.load_or_substitute(index) if fits else None

    try:
        for index in range(len(images) + 4 * threads):
            if index < len(images):
                ahead.append(pool.submit(decode_if_it_fits, index))
            if index >= 4 * threads:
                decoded = ahead.popleft().result()
                if decoded is None:
                    return
                yield decoded
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
