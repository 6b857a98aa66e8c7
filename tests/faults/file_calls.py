"""A fault at every file system call of a save: a kill, EIO, ENOSPC, a write that takes a part.

strace puts in the first three at each call in turn; a library loaded before libc makes short
writes. Without strace (or the right to trace), or without a C compiler, these are skipped.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import kills
from children import Problem, exit_code, fork

from cgh_models.errors import DiskError
from cgh_models.train import checkpoint

WHAT = "a kill, EIO, ENOSPC at every file system call of a save, and every write taking a part"
QUICK, MANY = 50, 0  # about so many of 200 calls and faults; 0: all
LAW = "a DiskError or a save; a whole checkpoint, no leftovers, and the next save succeeds"
FAULTS = {"kill": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
SAVED, REFUSED, KILLED = 0, DiskError.exit_code, -9


def why_not() -> str:
    """Why nothing can be tried here; "" if it can."""
    if not shutil.which("strace"):
        return "strace is not installed (`apt-get install strace`)"
    traced = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return "this system does not let strace trace" if traced.returncode else ""


def save_third(run: Path) -> None:
    """Saves step 3; the process ends with the code of the outcome."""
    try:
        checkpoint.save(run, 3, *kills.make(3))
    except DiskError:
        os._exit(REFUSED)
    except BaseException as error:
        (run.parent / "error").write_text(f"{error!r:.200}")
        raise


def new_run(folder: str) -> Path:
    """A run folder with the checkpoints of steps 1 and 2."""
    run = Path(folder, "run")
    run.mkdir()
    for step in (1, 2):
        checkpoint.save(run, step, *kills.make(step))
    return run


def traced(run: Path, *options: str) -> tuple[int, list[str]]:
    """How a save under strace ends, and the lines that strace writes."""

    def stop_then_save() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)  # no call that strace would count
        save_third(run)

    child = fork(stop_then_save)
    os.waitpid(child, os.WUNTRACED)
    log = run.parent / "strace"
    command = ["strace", "-f", "-y", "-o", str(log), *options, "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        assert "attached" in attached, attached
        os.kill(child, signal.SIGCONT)
        code = exit_code(child)
    return code, log.read_text(errors="replace").splitlines()


def calls_of_a_save() -> list[tuple[str, int, str]]:
    """(name, which call of this name, file) of each call on the run folder or a file in it."""
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(folder)
        code, lines = traced(run, "-e", "trace=%file,%desc")
    assert code == SAVED, lines[-3:]
    seen: Counter[str] = Counter()
    calls = []
    for line in lines:
        name = re.match(r"\d+ +(\w+)\(", line)
        if name:
            seen[name[1]] += 1
            if str(run) in line:
                path = line[line.index(str(run)) :].partition(">")[0].partition('"')[0]
                calls.append((name[1], seen[name[1]], Path(path).name))
    return calls


def outcome(run: Path, code: int) -> Problem:
    """What is wrong after a save that ended with ``code``, or after the next save."""
    error = run.parent / "error"
    if code not in (SAVED, REFUSED, KILLED):
        text = error.read_text() if error.exists() else ""
        return f"the save ended with {code}: {text}"
    problem = kills.problem_of(run, 3 if code == SAVED else 2)
    if problem:
        return problem
    checkpoint.save(run, 4, *kills.make(4))
    problem = kills.problem_of(run, 4)
    return f"after the next save: {problem}" if problem else ""


def faults_by_strace(every: int) -> Iterator[tuple[str, Problem]]:
    """One fault at each call; with ``every`` > 1, at some of them."""
    calls = calls_of_a_save()
    number = 0
    for name, count, file in calls:
        for fault, option in FAULTS.items():
            number += 1
            if number % every:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = new_run(folder)
                inject = ("-e", f"trace={name}", "-e", f"inject={name}:{option}:when={count}")
                code, lines = traced(run, *inject)
                hit = code == KILLED if fault == "kill" else any("INJECTED" in x for x in lines)
                assert hit, (name, count, lines[-3:])
                yield f"{fault} at {name} number {count}, on {file}", outcome(run, code)


def short_writes() -> Iterator[tuple[str, Problem]]:
    """The tries of `_short_writes`, in a process that has the library."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "short_writes.so")
        source = Path(__file__).with_name("short_writes.c")
        build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(build, check=True)
        done = subprocess.run(
            [sys.executable, __file__],
            env={**os.environ, "LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-500:]
    for line in done.stdout.splitlines():
        how, _, problem = line.partition("\t")
        yield how, problem


def _short_writes(report: Callable[[str], object]) -> None:
    library = ctypes.CDLL(None)
    writes, short_write = (ctypes.c_int.in_dll(library, name) for name in ("writes", "short_write"))
    number = 0
    while number <= 100:
        number += 1
        with tempfile.TemporaryDirectory() as folder:
            run = new_run(folder)
            made = Path(folder, "made")

            def save() -> None:
                writes.value = 0
                short_write.value = number  # noqa: B023 - runs at once
                save_third(run)  # noqa: B023
                if writes.value >= number:  # noqa: B023
                    made.touch()  # noqa: B023

            code = exit_code(fork(save))
            if code == SAVED and not made.exists():
                return
            report(f"half of write number {number}\t{outcome(run, code)}")


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """About ``count`` faults; all for 0."""
    yield from faults_by_strace(200 // count if count else 1)
    if shutil.which("cc"):
        yield from short_writes()


if __name__ == "__main__":
    _short_writes(print)
