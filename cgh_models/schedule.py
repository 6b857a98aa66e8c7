"""Learning rate and teacher momentum as functions of the run's progress in [0, 1]. No torch."""

import math


def learning_rate(progress: float, lr: float, warmup: float, step: float = 0.0) -> float:
    """Rises linearly to ``lr`` over the first ``warmup`` of the run, then a cosine to 0.

    ``step`` is the share of the run of one step: the first step's rate is the first above 0.
    """
    if progress < warmup:
        return lr * min(1.0, (progress + step) / warmup)
    return 0.5 * lr * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def cosine_momentum(start: float, progress: float) -> float:
    """A cosine from ``start`` to 1. Source: BYOL (arXiv 2006.07733) 3.3, LEWEL (2203.14898)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
