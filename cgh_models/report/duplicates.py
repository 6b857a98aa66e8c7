"""Images that are there more than once: equal bytes, equal to the eye, or of near embeddings."""

from collections.abc import Callable

import numpy as np

from ..progress import bar

Groups = list[np.ndarray]  # positions (n,) of each group's images, n > 1
# (start, stop) -> bool (stop - start, N - start): which images from ``start`` on are near each
_Near = Callable[[int, int], np.ndarray]

_BLOCK = 2**22  # pairs that are compared at once
_ONES = np.array([number.bit_count() for number in range(2**16)], np.uint8)


def equal(keys: np.ndarray) -> Groups:
    """Groups of images whose keys (N,) are equal, in their order."""
    _, owners = np.unique(keys, return_inverse=True)
    return _groups(owners)


def near_hashes(hashes: np.ndarray, distance: int) -> Groups:
    """Groups of images whose 64-bit hashes (N,) differ in at most ``distance`` bits."""

    def near(start: int, stop: int) -> np.ndarray:
        return _bit_count(hashes[start:stop, None] ^ hashes[None, start:]) <= distance

    return _groups(_owners(len(hashes), near))


def near_embeddings(embeddings: np.ndarray, cosine: float) -> Groups:
    """Groups of images the cosine of whose embeddings (N, D) is at least ``cosine``."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(lengths, 1e-12)

    def near(start: int, stop: int) -> np.ndarray:
        return unit[start:stop] @ unit[start:].T >= cosine

    return _groups(_owners(len(unit), near))


def _owners(count: int, near: _Near) -> np.ndarray:
    """(N,) the first image of each one's group, to which all images of the group are near.

    Each image in turn takes those after it that are near and not yet taken: no chain of images, of
    which only neighbours are alike, becomes a group.
    """
    owners = np.arange(count)
    with bar(count, "comparing") as shown:
        start = 0
        while start < count:
            stop = min(count, start + max(1, _BLOCK // (count - start)))
            found = near(start, stop)
            found[np.arange(stop - start), np.arange(stop - start)] = False
            for row in np.flatnonzero(found.any(1)):
                if owners[start + row] == start + row:
                    others = start + row + np.flatnonzero(found[row, row:])
                    owners[others[owners[others] == others]] = start + row
            shown.update(stop - start)
            start = stop
    return owners


def _groups(owners: np.ndarray) -> Groups:
    order = np.argsort(owners, kind="stable")
    starts = np.flatnonzero(np.diff(owners[order])) + 1
    groups = [group for group in np.split(order, starts) if len(group) > 1]
    return sorted(groups, key=lambda group: group[0])


def _bit_count(words: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words)
    return _ONES[words.view(np.uint16)].reshape(*words.shape, 4).sum(-1)
