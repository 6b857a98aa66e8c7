"""The order of very many images in an epoch, of which any part is computed and none is stored."""

import math
from dataclasses import dataclass

import numpy as np

from .draws import uniform

_STREAM = 1010  # of the first round: keeps these random numbers apart from those of views
_ROUNDS = 6  # four make it hard to tell from chance (Luby and Rackoff), two are spare


@dataclass(frozen=True)
class BigOrder:
    """A permutation of ``count`` images; a slice of it is an array of their indices.

    A Feistel network on pairs below the root of ``count``, rounded up. What falls outside goes
    through it again until it is one of the images.

    Source: Luby and Rackoff, SIAM J. Comput. 17 (1988), why rounds of it are a random permutation;
    Black and Rogaway, CT-RSA 2002, the generalized Feistel cipher and cycle walking. Its random
    function is `uniform`.
    """

    seed: int
    epoch: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self._once(np.arange(*part.indices(self.count)))
        while (outside := found >= self.count).any():
            found[outside] = self._once(found[outside])
        return found

    def _once(self, places: np.ndarray) -> np.ndarray:
        side = math.isqrt(self.count - 1) + 1
        left, right = np.divmod(places, side)
        for number in range(_ROUNDS):
            u = uniform(self.seed, self.epoch, right, 1, _STREAM + number)[:, 0]
            left, right = right, (left + (u * side).astype(np.int64)) % side
        return left * side + right
