"""kNN: how many images have neighbours of their own class."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.image_set import ImageSet
from ..errors import InputError
from .extraction import extract, pick_precision

_SCORES = 2**23  # numbers held at once: 32 MiB in float32; more, where that were fewer queries than
_LEAST = 64  # at a time: each time all keys are read


def knn(
    memory: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Predicted classes (M,) of queries (M, D) from the memory (N, D) with labels (N,).

    Cosine similarity; each of the k nearest votes for its class with weight exp(cosine / temperature).

    Raises:
        InputError: k is not between 1 and N, or the temperature is not positive.

    Source: Wu et al., arXiv 1805.01978, section 3.4.
    """
    if not 1 <= k <= len(memory):
        raise InputError(f"k={k}: expected 1 to {len(memory)}, the number of training images; give another --k")
    if not temperature > 0:
        raise InputError(f"temperature={temperature}: it has to be positive")
    keys = torch.from_numpy(memory).float()
    norms = keys.norm(dim=1).clamp(min=1e-12)
    rough = _Rough(keys, norms) if pick_precision("auto", keys.device) is torch.bfloat16 else None
    classes = torch.from_numpy(labels.astype(np.int64))
    count = int(classes.max()) + 1
    predicted = []
    for chunk in F.normalize(torch.from_numpy(queries).float()).split(max(_LEAST, _SCORES // len(keys))):
        cosine, nearest = rough.nearest(chunk, k) if rough else _nearest(chunk, keys, norms, k)  # (n, k)
        weights = ((cosine - cosine[:, :1]) / temperature).exp()  # the nearest has 1: they cannot all underflow
        votes = torch.zeros(len(chunk), count).scatter_add_(1, classes[nearest], weights)  # (n, classes)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


def _nearest(queries: Tensor, keys: Tensor, norms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and places (n, k) of the k keys (N, D) nearest to unit vectors (n, D), nearest first."""
    return (queries @ keys.t()).div_(norms).topk(k)


class _Rough:
    """Looks for the nearest of keys (N, D) in bfloat16, and settles which they are in float32: exact.

    The rounding of two vectors moves their product by at most the sum of the rounding's own lengths, and the product
    is rounded once more. Where a key that was not looked at again could still be nearer than the k-th found, all keys
    are compared in float32.
    """

    def __init__(self, keys: Tensor, norms: Tensor):
        self.keys, self.norms = keys, norms
        self.rounded, errors = torch.empty_like(keys, dtype=torch.bfloat16), []
        for start in range(0, len(keys), 256):  # what a cache holds
            part = slice(start, start + 256)
            unit = keys[part] / norms[part, None]
            errors.append(_rounding(unit, self.rounded[part].copy_(unit)).max())
        self.error = torch.stack(errors).max()

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The same as `_nearest`."""
        looked, width = k + max(k, 32), queries.shape[1]
        if looked >= len(self.keys):
            return _nearest(queries, self.keys, self.norms, k)
        rounded = queries.bfloat16()
        scores, places = (rounded @ self.rounded.t()).topk(looked)  # (n, looked)
        cosine = torch.empty(scores.shape)
        for part in torch.arange(len(queries)).split(max(1, _SCORES // (2 * looked * width))):
            products = torch.bmm(self.keys[places[part]], queries[part, :, None])[..., 0]
            cosine[part] = products.div_(self.norms[places[part]])
        cosine, best = cosine.topk(k)
        places = places.gather(1, best)
        last = scores[:, -1].float()
        most = last + last.abs() / 256 + self.error + _rounding(queries, rounded) + 1e-4  # of what was not looked at
        if (unsure := (most >= cosine[:, -1]).nonzero()[:, 0]).numel():
            cosine[unsure], places[unsure] = _nearest(queries[unsure], self.keys, self.norms, k)
        return cosine, places


def _rounding(vectors: Tensor, rounded: Tensor) -> Tensor:
    """(N,) lengths of what rounding took away, a hair more than that."""
    return 1.01 * (vectors - rounded.float()).norm(dim=1)


def knn_accuracy(
    backbone: nn.Module, train: ImageSet, val: ImageSet, *, k: int = 20, temperature: float = 0.07, **extraction
) -> float:
    """Share of val images whose class kNN over the train embeddings finds, in percent."""
    assert train.labels is not None and val.labels is not None
    memory = extract(backbone, train, **extraction)
    queries = extract(backbone, val, **extraction)
    found = knn(memory, train.labels, queries, k=k, temperature=temperature)
    return 100 * float((found == val.labels).mean())
