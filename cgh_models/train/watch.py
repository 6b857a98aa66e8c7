"""A process that has died or stopped is noticed by the next one, and its launcher's end by all.

A collective call would wait for it: minutes by the time limits of libraries, or for ever.
"""

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from ..errors import NetworkError, Output


class Watch:
    """A thread that tells the others, every few seconds, that this process is alive."""

    EVERY = 4.0  # seconds
    MISSED = 5  # signs of life
    SILENT = round(EVERY * MISSED)
    SAVES = 30.0  # seconds for a process without a launcher to save and end

    def __init__(self, store: Any, rank: int, count: int):
        self._store = store
        self._rank = rank
        self._next = (rank + 1) % count
        self._count = count
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="cgh-watch")

    def __enter__(self) -> "Watch":
        self._store.set(f"alive/{self._rank}", "0")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        """Counts its own turns, not seconds: if all are suspended together, none is silent."""
        seen, missed, turn = b"", 0, 0
        while not self._done.wait(self.EVERY):
            turn += 1
            if self._launcher and os.getppid() != self._launcher:
                self._end_without_launcher()
                return
            try:
                self._store.set(f"alive/{self._rank}", str(turn))
                # One that was killed or stopped just now may not have written it yet.
                has_begun = self._store.check([f"alive/{self._next}"])
                found = self._store.get(f"alive/{self._next}") if has_begun else b""
            except RuntimeError:  # the store ended with its process: the launcher, or rank 0
                found = seen
            missed = missed + 1 if found == seen else 0
            seen = found
            if missed >= self.MISSED and not self._done.is_set():
                what = f"process {self._next} of {self._count} has been silent for {self.SILENT} s"
                self._end(f"{what}; the run can be resumed from its last checkpoint")

    def _end_without_launcher(self) -> None:
        """Asks this process to save and end, as all others are asked; ends it if it cannot."""
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._done.wait(self.SAVES):
            self._end("what started this process has ended; it could not save in time")

    def _end(self, text: str) -> None:
        line = f"process {self._rank} of {self._count}: error: {text}\n"
        Output(sys.__stderr__).write(line)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(NetworkError.exit_code)
