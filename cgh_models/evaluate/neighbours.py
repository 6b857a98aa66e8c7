"""kNN: the classes of embeddings by the votes of their nearest neighbours."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .devices import pick_precision

_MAX_SCORES = 2**23  # similarities held at once: 32 MiB in float32
_MIN_CHUNK = 64  # queries at a time, whatever they take: each chunk reads all keys


def knn(
    memory: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Predicted classes (M,) of queries (M, D) from the memory (N, D) with labels (N,).

    Cosine similarity; each of the k nearest votes for its class with weight
    exp(cosine / temperature). Source: Wu et al., arXiv 1805.01978, section 3.4.

    Raises:
        InputError: k is not between 1 and N, or the temperature is not positive.
    """
    count = len(memory)
    if not 1 <= k <= count:
        what = f"k={k}: expected 1 to {count}, the number of training images"
        raise InputError(f"{what}; give another --k")
    if not temperature > 0:
        raise InputError(f"temperature={temperature}: it has to be positive")
    keys = torch.from_numpy(memory).float()
    norms = keys.norm(dim=1).clamp(min=1e-12)
    search = None
    if pick_precision("auto", keys.device) is torch.bfloat16:
        search = _Bfloat16Search(keys, norms)
    targets = torch.from_numpy(labels.astype(np.int64))
    classes = int(targets.max()) + 1
    predicted = []
    chunk_size = max(_MIN_CHUNK, _MAX_SCORES // count)
    for chunk in F.normalize(torch.from_numpy(queries).float()).split(chunk_size):
        cosine, nearest = search(chunk, k) if search else _nearest(keys, norms, chunk, k)  # (n, k)
        # Relative to the nearest one, which has weight 1, so that they cannot all underflow.
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = torch.zeros(len(chunk), classes)  # (n, classes)
        votes.scatter_add_(1, targets[nearest], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


def _nearest(keys: Tensor, norms: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices (n, k) of the k keys (N, D) nearest to unit queries (n, D), in order."""
    return (queries @ keys.t()).div_(norms).topk(k)


class _Bfloat16Search:
    """`_nearest` by candidates that are found in bfloat16, and compared in float32.

    Rounding two unit vectors changes their product by at most the sum of the lengths of the two
    rounding errors, and the product itself is rounded once more. Where, within this bound, a key
    outside of the candidates could be nearer than the k-th of them, all keys are compared in
    float32. 1.7 to 2 times as fast on a CPU with bfloat16 instructions.
    """

    def __init__(self, keys: Tensor, norms: Tensor):
        self.keys = keys
        self.norms = norms
        self.rounded = torch.empty_like(keys, dtype=torch.bfloat16)
        self.max_error = torch.zeros(())
        for start in range(0, len(keys), 256):  # as many rows as fit in the CPU's cache
            rows = slice(start, start + 256)
            unit = keys[rows] / norms[rows, None]
            self.rounded[rows] = unit
            error = _rounding_error(unit, self.rounded[rows]).max()
            self.max_error = torch.maximum(self.max_error, error)

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        candidates = k + max(k, 32)
        if candidates >= len(self.keys):
            return _nearest(self.keys, self.norms, queries, k)
        rounded = queries.bfloat16()
        scores, indices = (rounded @ self.rounded.t()).topk(candidates)  # (n, candidates)
        cosine, best = self._cosine(queries, indices).topk(k)
        indices = indices.gather(1, best)
        lowest = scores[:, -1].float()
        query_error = _rounding_error(queries, rounded)
        # (n,) what a key outside of the candidates can reach
        bound = lowest + lowest.abs() / 256 + self.max_error + query_error + 1e-4
        unsure = (bound >= cosine[:, -1]).nonzero()[:, 0]
        if len(unsure):
            exact = _nearest(self.keys, self.norms, queries[unsure], k)
            cosine[unsure], indices[unsure] = exact
        return cosine, indices

    def _cosine(self, queries: Tensor, indices: Tensor) -> Tensor:
        """Cosines (n, candidates) in float32 of queries (n, D) and the keys of these indices."""
        cosine = torch.empty(indices.shape)
        rows = max(1, _MAX_SCORES // (2 * indices.shape[1] * queries.shape[1]))
        for part in torch.arange(len(queries)).split(rows):
            keys = self.keys[indices[part]]  # (rows, candidates, D)
            products = torch.bmm(keys, queries[part, :, None])[..., 0]
            cosine[part] = products.div_(self.norms[indices[part]])
        return cosine


def _rounding_error(vectors: Tensor, rounded: Tensor) -> Tensor:
    """(N,) upper bounds of the lengths of the differences that rounding made."""
    return 1.01 * (vectors - rounded.float()).norm(dim=1)
