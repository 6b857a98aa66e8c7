"""Times several ways to do the same thing, in turns in one process.

Other work on the machine slows all of them.
"""

import statistics
import time
from collections.abc import Callable


def milliseconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each way. All take turns; a first turn that warms up does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def table(what: str, taken: dict[str, float], per: int = 1, unit: str = "ms") -> None:
    """Prints times and how many times as fast as the first way the others are."""
    base = next(iter(taken.values()))
    print(f"\n| {what} | {unit} | times as fast |\n|---|---|---|")
    for name, value in taken.items():
        print(f"| {name} | {value / per:.4g} | {base / value:.2f} |")
