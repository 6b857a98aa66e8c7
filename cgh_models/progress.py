"""Progress of what takes longer than a second, on a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from .errors import Output

Item = TypeVar("Item")

_DELAY = 1.0  # seconds before a bar is shown


def bar(total: int | None, what: str, unit: str = "image") -> tqdm:
    """A bar with the time left, on stderr after a second; nothing where that is no terminal."""
    stderr = Output(sys.stderr)
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        file=stderr,
        delay=_DELAY,
        leave=False,
        disable=not stderr.isatty(),
        dynamic_ncols=True,
    )


def watched(
    items: Iterable[Item], what: str, total: int | None = None, unit: str = "image"
) -> Iterator[Item]:
    """The same items, counted by a `bar`."""
    with bar(total, what, unit) as shown:
        for item in items:
            yield item
            shown.update()
