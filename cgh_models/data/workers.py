"""Reads batches in worker processes, through torch's DataLoader, and ends these at once."""

import atexit
import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from ..errors import InputError, printable
from .decode import BadFile

Key = tuple[int, int]  # epoch, image index

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_DIED = re.compile(r"worker \(pid(?:\(s\))? (\d+)[\d, ]*\) (.*?)\.? *$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """What was read for one image."""

    index: int
    tensors: list[Tensor]  # one for each view; none if the image is left out
    bad_files: list[BadFile]


class Batch(NamedTuple):
    """The samples of a batch that have tensors, stacked."""

    indices: np.ndarray  # (N,)
    tensors: list[Tensor]  # [(N, ...)], one for each view
    bad_files: list[BadFile]


def collate(samples: list[Sample]) -> Batch:
    """Few tensors a batch: each that a worker sends takes a file descriptor."""
    used = [sample for sample in samples if sample.tensors]
    indices = np.array([sample.index for sample in used])
    views = zip(*[sample.tensors for sample in used], strict=True)
    bad_files = [bad for sample in samples for bad in sample.bad_files]
    return Batch(indices, [torch.stack(view) for view in views], bad_files)


def read_batches(
    dataset: Dataset[Sample],
    batch_sampler: Iterable[list[Key]],
    path: Callable[[int], Path],
    num_workers: int,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches in the sampler's order. Closing the generator kills its workers.

    Args:
        path: the file of an image, for messages.

    Raises:
        InputError: what the dataset raised, or a worker died.
    """
    workers = _Workers()
    loader = DataLoader(
        dataset,
        batch_sampler=workers.record(batch_sampler, path),  # pyright: ignore[reportArgumentType]
        num_workers=min(num_workers, _processors()),  # how many there are changes no result
        collate_fn=collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # a private one: the run's own random state does not move
        pin_memory=pin_memory,
    )
    _RUNNING.append(workers)
    with explain_dead_workers():
        try:
            with _signals_deferred():  # until the processes are known, lest one stays behind
                workers.iterator = iter(loader)
            for number, batch in enumerate(workers.iterator):
                del workers.pending[number]
                yield batch
        except InputError as error:  # torch writes a worker's traceback before its message
            message = str(error).rpartition(f"{InputError.__module__}.InputError: ")[2]
            raise InputError(message.strip()) from None
        finally:
            _RUNNING.remove(workers)
            workers.kill()


@contextlib.contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Turns torch's RuntimeError about a worker that died into an InputError that names its batch.

    torch raises it in the middle of whatever the trainer does, so this goes around the whole loop.
    """
    try:
        yield
    except RuntimeError as error:
        found = _DIED.search(str(error.__cause__)) or _DIED.search(str(error))
        if not found:
            raise
        for workers in _RUNNING:
            workers.note_dead()
        batch = _DEAD.get(int(found[1]), "an unknown batch")
        raise InputError(
            f"a process that reads images {found[2]}, at {batch}; often memory was short: "
            "try again with --workers 0"
        ) from error


class _Workers:
    """The worker processes of one DataLoader, and the batches that they still owe."""

    def __init__(self) -> None:
        self.iterator: Any = None  # torch's; its private attributes are used
        self.pid = os.getpid()
        self.pending: dict[int, str] = {}

    def record(
        self, batch_sampler: Iterable[list[Key]], path: Callable[[int], Path]
    ) -> Iterator[list[Key]]:
        """The batches; each is pending from now on."""
        for number, keys in enumerate(batch_sampler):
            first = printable(path(keys[0][1]))
            self.pending[number] = f"a batch of {len(keys)} images, the first of them {first}"
            yield keys

    def note_dead(self) -> None:
        """Notes the batches of processes that died: torch deals batches out in turn."""
        processes = getattr(self.iterator, "_workers", ())
        for worker, process in enumerate(processes):
            own = [n for n in self.pending if n % len(processes) == worker]
            if process.exitcode and own:
                _DEAD[process.pid] = self.pending[min(own)]

    def kill(self) -> None:
        """Ends the processes now, if they have not ended by themselves.

        torch would wait 5 s for each, then send SIGTERM, which they ignore. Its own way is not
        taken afterwards, because a killed process may hold a lock for which it would wait.
        """
        processes = getattr(self.iterator, "_workers", ())
        inherited = self.pid != os.getpid()  # by a worker that was forked later
        if not processes or inherited or self.iterator._shutdown:
            return
        self.note_dead()
        self.iterator._shutdown = True
        if self.iterator._worker_pids_set:  # else torch reports their end as an accident
            signal_handling._remove_worker_pids(id(self.iterator))
            self.iterator._worker_pids_set = False
        if hasattr(self.iterator, "_pin_memory_thread_done_event"):
            self.iterator._pin_memory_thread_done_event.set()
        for process in processes:
            process.kill()
        for process in processes:
            process.join(timeout=1)


_RUNNING: list[_Workers] = []
_DEAD: dict[int, str] = {}  # process id of a worker that died -> its batch


@atexit.register
def _kill_all() -> None:
    """For generators that nobody closed: Python would wait for their workers at its end."""
    for workers in _RUNNING:
        workers.kill()


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Python's signal handlers run afterwards: what they raise would be lost while Python forks."""
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, lambda n, _: received.append(n))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


def _start_worker(_worker: int) -> None:
    """Workers leave signals to the trainer, which saves and then ends them."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
