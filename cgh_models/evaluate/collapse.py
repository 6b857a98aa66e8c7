"""Signs of collapse in embeddings."""

import numpy as np
import torch
import torch.nn.functional as F

# A feature_std below it: all images have nearly one embedding. On 128 photographs of CIFAR-10 a
# random ResNet-18 has 0.2, a random ResNet-101 0.016; trained networks have 0.6.
COLLAPSED = 0.01


def spread(embeddings: np.ndarray) -> dict[str, float]:
    """Two signs of collapse for embeddings (N, D).

    ``feature_std``: mean over dimensions of unit embeddings' standard deviation, times sqrt(D): 0
    if all are equal, 1 if they fill the sphere. ``effective_rank``: exp of the entropy of centred
    embeddings' normalized singular values, 1 to D (Roy and Vetterli, EUSIPCO 2007).
    """
    rows = F.normalize(torch.from_numpy(embeddings).double())
    values = torch.linalg.svdvals(rows - rows.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    std = feature_std(torch.from_numpy(embeddings).double())
    return {"feature_std": std, "effective_rank": float(entropy.exp())}


def feature_std(rows: torch.Tensor) -> float:
    """The ``feature_std`` of `spread` for rows (N, D)."""
    spreads = F.normalize(rows).std(0, correction=0)
    return float(spreads.mean() * rows.shape[1] ** 0.5)
