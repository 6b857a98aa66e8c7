"""Signals that ask a run to save its state and end: TERM, INT, USR1 and HUP."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from ..data.workers import STOP_SIGNALS

Item = TypeVar("Item")


class StopSignals:
    """Remembers the first stop signal while entered; a second one ends the process at once.

    What ``launched`` the process passes on what a terminal or a cluster sent to both, and sends
    TERM to all when the first has ended: there the second has to be of the same kind, and later.
    """

    PASSED_ON = 5.0  # seconds in which a second one may be the first

    def __init__(self, launched: bool = False) -> None:
        self._launched = launched
        self.received = ""  # name of the first signal
        self._received_at = 0.0
        self._interrupts = False  # whether a signal leaves what is being done
        self._process = os.getpid()
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup does with HUP
                    before = signal.signal(number, self._handle)
                    self._exits.callback(signal.signal, number, before)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked a moment ago
            return
        name = signal.Signals(number).name
        soon = time.monotonic() - self._received_at < self.PASSED_ON
        if self.received and self._launched and (soon or self.received != name):
            return
        if self.received:
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(128 + number)
        self.received = name
        self._received_at = time.monotonic()
        if self._interrupts:
            self._interrupts = False
            raise _Stop

    def unless_stopped(self, work: Callable[[], Item]) -> Item | None:
        """What ``work`` returns; None after a signal, which leaves it in the middle."""
        try:
            self._interrupts = True
            return None if self.received else work()
        except _Stop:
            return None
        finally:
            self._interrupts = False

    def until_stopped(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items up to the first signal, which also ends the wait for the next item."""
        while (item := self.unless_stopped(lambda: next(items, None))) is not None:
            yield item


class _Stop(BaseException):  # an Exception would be taken for that of a bad image
    pass
