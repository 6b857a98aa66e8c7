"""Progress of what takes longer than a second, on a terminal."""

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from .errors import Output

Item = TypeVar("Item")

_DELAY = 1.0  # seconds before a bar is shown


class Bar(tqdm):
    """tqdm's bar in a process that may be forked.

    Its lock is of this process alone: one that forked processes share, as tqdm's own, stays locked
    where one of them is killed. No thread refreshes it, which could hold the lock at a fork.
    """

    monitor_interval = 0


Bar.set_lock(threading.RLock())


def bar(total: int | None, what: str, unit: str = "image") -> Bar:
    """A bar with the time left, on stderr after a second; nothing where that is no terminal."""
    stderr = Output(sys.stderr)
    return Bar(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        file=stderr,
        delay=_DELAY,
        leave=False,
        disable=not stderr.isatty(),
        dynamic_ncols=True,
        miniters=1,
    )


def watched(
    items: Iterable[Item], what: str, total: int | None = None, unit: str = "image"
) -> Iterator[Item]:
    """The same items, counted by a `bar`."""
    with bar(total, what, unit) as shown:
        for item in items:
            yield item
            shown.update()
