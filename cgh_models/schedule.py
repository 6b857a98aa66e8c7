"""Learning rate and teacher momentum as functions of the run's progress in [0, 1]. No torch."""

import math


def learning_rate(progress: float, lr: float, warmup: float) -> float:
    """Rises linearly from 0 to ``lr`` over the first ``warmup`` of the run, then a cosine to 0."""
    if progress < warmup:
        return lr * progress / warmup
    return 0.5 * lr * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def cosine_momentum(start: float, progress: float) -> float:
    """A cosine from ``start`` to 1. Source: BYOL (arXiv 2006.07733) 3.3, LEWEL (2203.14898)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
