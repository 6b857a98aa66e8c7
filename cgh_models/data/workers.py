"""Reads batches in worker processes, through torch's DataLoader, and ends these at once."""

import contextlib
import multiprocessing.queues
import os
import pickle
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.util import Finalize
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..errors import InputError, NetworkError, printable

if TYPE_CHECKING:
    from .decode import BadFile

Key = tuple[int, int]  # epoch, image index
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has no HUP and no USR1
STOP_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]

_NO_HANDLES = re.compile("Too many open files|ancdata")  # in RuntimeErrors of torch's


@dataclass(frozen=True)
class Sample:
    """What was read for one image."""

    index: int
    tensors: list[Tensor]  # one for each view; none if the image is left out
    bad_files: "list[BadFile]"


class Batch(NamedTuple):
    """The samples of a batch that have tensors, stacked."""

    indices: np.ndarray  # (N,)
    tensors: list[Tensor]  # [(N, ...)], one for each view
    bad_files: "list[BadFile]"


class _Part(NamedTuple):
    """What a worker sends of a batch: little, for half a message of a killed one would block."""

    left_out: list[int]  # places in the batch of samples without tensors
    tensors: list[Tensor]
    bad_files: "list[BadFile]"


def _collate(samples: list[Sample]) -> _Part:
    """Few tensors a batch: each that a worker sends takes a file descriptor."""
    left_out = [place for place, sample in enumerate(samples) if not sample.tensors]
    views = zip(*[sample.tensors for sample in samples if sample.tensors], strict=True)
    bad_files = [bad for sample in samples for bad in sample.bad_files]
    return _Part(left_out, [_stack(view) for view in views], bad_files)


def _stack(tensors: tuple[Tensor, ...]) -> Tensor:
    """(N, ...); in a worker in memory that the trainer maps, too.

    torch takes that memory from /dev/shm, of which a container has 64 MB unless it is asked for
    more. The kernel's anonymous files have no such limit.
    """
    if get_worker_info() is None or not hasattr(os, "memfd_create"):
        return torch.stack(tensors)
    first = tensors[0]
    size = len(tensors) * first.nbytes
    file = os.memfd_create("batch")
    try:
        os.ftruncate(file, size)
        storage_class: Any = torch.UntypedStorage
        storage = storage_class._new_shared_fd_cpu(file, size)  # keeps a copy of the handle
    finally:
        os.close(file)
    memory = torch.empty(0, dtype=first.dtype).set_(storage)
    return torch.stack(tensors, out=memory.view(len(tensors), *first.shape))


def read_batches(
    dataset: Dataset[Sample],
    batch_sampler: Iterable[list[Key]],
    path: Callable[[int], object],
    num_workers: int,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches in the sampler's order. Closing the generator kills its workers.

    ``path`` gives the file of an image, for messages. Raises InputError if a worker died, or the
    system lacks what processes need: file handles, semaphores, sockets.
    """
    ahead: deque[list[Key]] = deque()  # what workers have been given and have not sent

    def given() -> Iterator[list[Key]]:
        for keys in batch_sampler:
            ahead.append(keys)
            yield keys

    loader = DataLoader(
        dataset,
        batch_sampler=given(),  # pyright: ignore[reportArgumentType]
        num_workers=min(num_workers, _processors()),  # how many there are changes no result
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # a private one: the run's own random state does not move
        pin_memory=pin_memory,
    )
    received = 0
    with contextlib.ExitStack() as stack:
        with _signals_deferred():  # until the processes are known, lest one stays behind
            iterator = _start(loader)
            processes = getattr(iterator, "_workers", [])
            if processes:
                # Python's end, too, runs this: it would wait for workers that nobody closed.
                stack.callback(Finalize(None, _kill, [iterator], exitpriority=0))
        try:
            for received, part in enumerate(iterator, start=1):  # noqa: B007 - used below
                indices = np.array([index for _, index in ahead.popleft()])
                yield Batch(np.delete(indices, part.left_out), *part[1:])
        except (InputError, NetworkError) as error:  # torch puts a traceback before the message
            kind = type(error)
            message = str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")[2]
            raise kind(message.strip()) from None
        except Exception as error:  # RuntimeError, or what broken connections to a worker raise
            reason = _why_it_ended(error, processes, received, ahead, path)
            if reason is None:
                raise
            raise reason from error


def _why_it_ended(
    error: Exception,
    processes: list[multiprocessing.Process],
    received: int,
    ahead: deque[list[Key]],
    path: Callable[[int], object],
) -> InputError | None:
    """The error for people; None if the code that reads is wrong."""
    if not processes:
        return None
    ending = connection.wait([process.sentinel for process in processes], timeout=1)
    for worker, process in enumerate(processes):
        if process.sentinel in ending:  # its files are closed, its exit code may be still to come
            process.join(timeout=1)
        if process.exitcode:
            turn = (worker - received) % len(processes)  # torch deals batches out in turn
            keys = ahead[min(turn, len(ahead) - 1)]
            code = process.exitcode
            end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            first = printable(path(keys[0][1]))
            batch = f"a batch of {len(keys)} images, the first of them {first}"
            advice = "often memory was short: try again with --workers 0"
            return InputError(f"a process that reads images ended ({end}) at {batch}; {advice}")
    if isinstance(error, OSError) or _NO_HANDLES.search(str(error)):
        return _no_connection(error)
    return None


def _start(loader: DataLoader) -> Iterator[_Part]:
    """An iterator, of which private attributes are used; or InputError, and no process is left."""
    if not loader.num_workers:
        return iter(loader)
    iterator: Any = object.__new__(_MultiProcessingDataLoaderIter)
    iterator._workers = []
    try:
        iterator.__init__(loader)
    except OSError as error:
        _kill(iterator)
        raise _no_connection(error) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # of processes not forked
        _kill(iterator)
        what = f"the images cannot be sent to other processes ({printable(error)[:120]})"
        raise InputError(f"{what}; give what pickle takes, or --workers 0") from error
    # Else torch raises a worker's death in the middle of whatever the caller does.
    signal_handling._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    return iterator


def _no_connection(error: Exception) -> InputError:
    lines = str(error).splitlines() or [type(error).__name__]
    reason = lines[-1].partition(". ")[0]
    what = f"processes that read images cannot send them ({reason})"
    return InputError(f"{what}; give fewer --workers, or --workers 0")


def _send_error(queue: Any, error: Exception, batch: tuple[int, object]) -> None:
    """In place of a batch that cannot be sent, for which the trainer would wait for ever."""
    queue.put((batch[0], ExceptionWrapper((InputError, _no_connection(error), None))))


def _kill(iterator: Any) -> None:
    """Ends the processes now, if they have not ended by themselves.

    torch would wait 5 s for each, then send SIGTERM, which they ignore. Its own way is not taken
    afterwards, because a killed process may hold a lock for which it would wait.
    """
    thread = getattr(iterator, "_pin_memory_thread", None)
    if thread is not None and not iterator._shutdown:  # it would meet their end with a traceback
        iterator._pin_memory_thread_done_event.set()
        iterator._worker_result_queue.put((None, None))
        thread.join(timeout=1)
        iterator._worker_result_queue.cancel_join_thread()
        iterator._worker_result_queue.close()
    iterator._shutdown = True
    for process in iterator._workers:
        process.kill()
    for process in iterator._workers:
        process.join(timeout=1)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Python's signal handlers run afterwards: what they raise would be lost while Python forks."""
    received: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
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
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", _send_error)  # noqa: B010
    sys.excepthook = _print_unless_left


def _print_unless_left(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """A trainer that stops may leave a worker in the middle of a greeting, which is no fault."""
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
