"""Learning rate, teacher momentum and views' size by a run's progress in [0, 1]. No torch."""

import itertools
import math
import re


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

    Empty for text that is no such schedule, or whose sizes do not rise.
    """
    if not re.fullmatch(r"(\d+:0?\.\d+,)+\d+", schedule, re.ASCII):
        return []
    *phases, last = schedule.split(",")
    pairs = [phase.split(":") for phase in phases]
    sizes = [int(size) for size, _ in pairs] + [int(last)]
    ends = [*itertools.accumulate(float(share) for _, share in pairs), 1.0]
    rising = all(a < b for row in (sizes, ends) for a, b in itertools.pairwise([0, *row]))
    return list(zip(sizes, ends, strict=True)) if rising else []
