"""Learning rate, teacher momentum and size of the views as functions of a run's progress. No torch.

Progress is in [0, 1].
"""

import itertools
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


def sizes_of(schedule: str) -> list[tuple[int, float]]:
    """(pixels, share of the epochs done when it ends) of each phase; ``24:0.75,32``.

    Raises ValueError for text that is no such schedule.
    """
    *phases, last = schedule.split(",")
    pairs = [phase.split(":") for phase in phases]
    sizes = [int(size) for size, _ in pairs] + [int(last)]
    ends = [*itertools.accumulate(float(share) for _, share in pairs), 1.0]
    rising = all(before < after for before, after in itertools.pairwise([0.0, *ends]))
    if len(sizes) < 2 or min(sizes) < 1 or not rising:
        raise ValueError("sizes of at least 1 pixel, shares that leave a rest")
    return list(zip(sizes, ends, strict=True))
