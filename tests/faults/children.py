"""Tries that may hang, crash or take all memory: each runs in a forked child that is watched."""

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

torch.set_num_threads(1)  # a child of a process with more would wait for threads it has not
Problem = str  # "" if the try held
MOST_SECONDS = 1.0  # of CPU time, so that a busy machine changes no count
MOST_BYTES = 2**30
MOST_ASKED = 5 * 2**30  # bytes of address space: a size of 32 bits may be asked for, if not used
HANGS = 60  # seconds without an answer


def fork(work: Callable[[], None]) -> int:
    """Runs ``work`` in a child and returns its process id; the child ends with 0, or 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """Waits for a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watched(
    numbers: Iterable[int], try_one: Callable[[int], Problem], measure: bool = True
) -> Iterator[tuple[int, Problem]]:
    """The number and the problem of each try.

    A try that hangs or ends its process is a problem, and the next has a new process. With
    ``measure``, so is one that takes more than `MOST_SECONDS` or `MOST_BYTES`.
    """
    rest = list(numbers)
    while rest:
        read, write = os.pipe()
        child = fork(lambda: _answer(rest, try_one, measure, write))  # noqa: B023 - runs at once
        os.close(write)
        answers = _lines(read)
        problem = None
        for problem in answers:
            if problem is None:
                break
            yield rest.pop(0), problem
        os.close(read)
        if problem is None:
            os.kill(child, signal.SIGKILL)
        code = exit_code(child)
        if rest:
            end = f"no answer in {HANGS} s" if problem is None else f"the process ended ({code})"
            yield rest.pop(0), end


def _lines(read: int) -> Iterator[str | None]:
    """Answers of a child until it ends; None if the next does not come."""
    text = b""
    while True:
        if not select.select([read], [], [], HANGS)[0]:
            yield None
            return
        block = os.read(read, 65536)
        if not block:
            return
        *whole, text = (text + block).split(b"\n")
        yield from map(json.loads, whole)


def _answer(
    numbers: list[int], try_one: Callable[[int], Problem], measure: bool, write: int
) -> None:
    _limit_memory()
    for number in numbers:
        problem = _measured(number, try_one) if measure else try_one(number)
        os.write(write, json.dumps(problem).encode() + b"\n")


def _measured(number: int, try_one: Callable[[int], Problem]) -> Problem:
    """The problem of a try, or that it took more than a second or a GiB."""
    before = _memory("VmRSS")
    start = time.process_time()
    problem = try_one(number)
    seconds = time.process_time() - start
    used = _memory("VmHWM") - before
    if not problem and seconds > MOST_SECONDS:
        problem = f"{seconds:.1f} s of CPU time"
    if not problem and used > MOST_BYTES:
        problem = f"{used / 2**20:.0f} MiB"
    return problem


def _memory(field: str) -> int:
    """Bytes that this process holds (VmRSS), or held at most since VmRSS was asked (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _limit_memory() -> None:
    """At most `MOST_ASKED` more than now: the machine is not to suffer from what a try takes."""
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_ASKED
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def stated(error: BaseException, kinds: tuple[type[BaseException], ...]) -> Problem:
    """ "" if an error is one of ``kinds``, and not because memory was refused."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return f"asks for more than {MOST_ASKED / 2**30:.0f} GiB: {cause!r:.200}"
        cause = cause.__cause__ or cause.__context__
    return "" if isinstance(error, kinds) else f"{error!r:.300}"
