"""No process of a run waits for one that is dead: `meet` as they begin, `Watch` as they train.

A collective call would wait for it: minutes by the time limits of libraries, or for ever.
"""

import json
import multiprocessing
import os
import secrets
import signal
import threading
import time
from typing import Any

from ..errors import NetworkError
from .launch import tell


def meet(store: Any, rank: int, count: int, most: float) -> str:
    """A name for this start of a run, new and the same for all of its processes.

    torchrun keeps one store for all its restarts: an address in it may be a killed process's. So
    each leaves a new name of its own there, and rank 0 answers with the names that it finds, until
    each has found its own among them. Keys that begin with the first name are of this start alone.

    Raises NetworkError if one is not there in ``most`` seconds.
    """
    own = secrets.token_hex(8)
    store.set(f"name/{rank}", own)
    end = time.monotonic() + most
    while time.monotonic() < end:
        if rank:
            names = json.loads(store.get("names"))
            if names[rank : rank + 1] == [own]:
                store.set(f"{names[0]}/found/{rank}", "")
                store.wait([f"{names[0]}/all"])
                return names[0]
        else:
            names = [own, *(store.get(f"name/{other}").decode() for other in range(1, count))]
            store.set("names", json.dumps(names))
            if store.check([f"{own}/found/{other}" for other in range(1, count)]):
                store.set(f"{own}/all", "")
                return own
        time.sleep(0.05)
    error = NetworkError(f"not all of the {count} processes of the run began within {most:.0f} s")
    if rank:
        tell(rank, count, error)
    raise error


class Watch:
    """A thread that tells the others, every few seconds, that this process is alive.

    It ends the process when the next one has been silent, or when its launcher has ended.
    """

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

    def __enter__(self) -> "Watch":
        self._store.set(f"alive/{self._rank}", "0")
        threading.Thread(target=self._watch, daemon=True, name="cgh-watch").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        """Counts its own turns, not seconds: if all are suspended together, none is silent."""
        seen, missed, turn = b"", 0, 0
        while not self._done.wait(self.EVERY):
            turn += 1
            if self._launcher and os.getppid() != self._launcher:
                os.kill(os.getpid(), signal.SIGTERM)  # it saves and ends, as all others do
                if not self._done.wait(self.SAVES):
                    self._end("what started this process has ended; it could not save in time")
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

    def _end(self, text: str) -> None:
        tell(self._rank, self._count, text)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(NetworkError.exit_code)
