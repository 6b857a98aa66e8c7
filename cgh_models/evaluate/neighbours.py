"""kNN: how many images have neighbours of their own class."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data import ImageSet
from ..errors import InputError
from .extraction import extract

_SCORES = 2**24  # similarities held at once: 64 MiB


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
    keys = F.normalize(torch.from_numpy(memory).float())
    classes = torch.from_numpy(labels.astype(np.int64))
    count = int(classes.max()) + 1
    predicted = []
    for chunk in F.normalize(torch.from_numpy(queries).float()).split(max(1, _SCORES // len(keys))):
        cosine, nearest = (chunk @ keys.t()).topk(k)  # (n, k)
        weights = ((cosine - 1) / temperature).exp()
        votes = torch.zeros(len(chunk), count).scatter_add_(1, classes[nearest], weights)  # (n, classes)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


def knn_accuracy(
    backbone: nn.Module, train: ImageSet, val: ImageSet, *, k: int = 20, temperature: float = 0.07, **extraction
) -> float:
    """Share of val images whose class kNN over the train embeddings finds, in percent."""
    assert train.labels is not None and val.labels is not None
    memory = extract(backbone, train, **extraction)
    queries = extract(backbone, val, **extraction)
    found = knn(memory, train.labels, queries, k=k, temperature=temperature)
    return 100 * float((found == val.labels).mean())
