"""Faults of runs that torchrun started: kills, stopped processes, signals of clusters, full disks.

The runs lie on a file system in memory (tmpfs) in a namespace of this process, which is filled up.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from children import Problem, exit_code
from full_disks import NAMESPACE, mount, why_not  # noqa: F401 - run.py asks it of each script
from launched import Torchrun, start, steps_taken, wait
from small_run import command, make_images, words

from cgh_models.train import checkpoint

WHAT = (
    "`torchrun --nproc-per-node 2 --max-restarts 3`: kill -9 of a rank or the agent, a stopped "
    "rank, TERM to one, to the agent, to all, USR1 to all, Ctrl-C, a full disk, at random moments"
)
LAW = (
    "the run ends complete, or saved and resumable, each step once in its log; nothing hangs for "
    "60 s or is left; ranks that are asked to end save at one step, exit code 75"
)
QUICK, MANY = 2, 50
HANGS = 60.0  # seconds in which nothing changes
CLUSTER_KILLS = 30.0  # seconds after its TERM
STEPS, LONG = 60, ("--epochs", 20, "--checkpoint-every", 10)
STARTS = 8.0  # seconds until the first step, about
DISK = 2**26  # bytes


# --- what is done to a run


def kill_rank(launched: Torchrun, rank: int) -> None:
    launched.send("KILL", *_only(launched, rank))


def stop_rank(launched: Torchrun, rank: int) -> None:
    launched.send("STOP", *_only(launched, rank))


def term_rank(launched: Torchrun, rank: int) -> None:
    launched.send("TERM", *_only(launched, rank))


def _only(launched: Torchrun, rank: int) -> list[int]:
    wait(lambda: rank in launched.ranks(), HANGS)
    return [launched.ranks()[rank]]


def kill_agent(launched: Torchrun, _: int) -> None:
    launched.send("KILL", launched.agent.pid)


def term_agent(launched: Torchrun, _: int) -> None:
    """As clusters do: whatever is left after 30 s is killed."""
    launched.send("TERM", launched.agent.pid)
    _kill_what_is_left(launched)


def term_all(launched: Torchrun, _: int) -> None:
    """As clusters do that signal every process of a job."""
    launched.send("TERM", *launched.processes())
    _kill_what_is_left(launched)


def _kill_what_is_left(launched: Torchrun) -> None:
    wait(launched.ended, CLUSTER_KILLS)
    launched.send("KILL", *launched.processes())


def usr1_ranks(launched: Torchrun, _: int) -> None:
    wait(lambda: len(launched.ranks()) == 2, HANGS)
    launched.send("USR1", *launched.ranks().values())


def interrupt(launched: Torchrun, _: int) -> None:
    """Ctrl-C: to the process group of the terminal."""
    os.killpg(launched.agent.pid, signal.SIGINT)


def fill_disk(launched: Torchrun, rank: int) -> None:
    """All room is taken; with an odd ``rank`` there is room again before the end."""
    filler = launched.run.parent / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    if rank % 2:
        wait(launched.ended, 3)
        filler.unlink()


FAULTS = (kill_rank, kill_agent, stop_rank, term_rank, term_agent, usr1_ranks, interrupt, fill_disk,
          term_all)  # fmt: skip
ASKS = (term_rank, term_agent, usr1_ranks, interrupt, term_all)


# --- what has to hold


def hangs(launched: Torchrun) -> Problem:
    """Waits until nothing is left; what is still there if nothing has changed for a minute."""
    state, since = None, time.monotonic()
    while not launched.ended():
        before, state = state, launched.state()
        if state != before:
            since = time.monotonic()
        elif time.monotonic() - since > HANGS:
            left = {rank: _waits_in(process) for rank, process in launched.ranks().items()}
            launched.send("KILL", launched.agent.pid, *launched.processes())
            return f"nothing changed for {HANGS:.0f} s; ranks that were left: {left}"
        time.sleep(0.25)
    return ""


def _waits_in(process: int) -> str:
    try:
        return Path(f"/proc/{process}/wchan").read_text() or "running"
    except OSError:
        return "ended"


def problem_of(launched: Torchrun, line: list[str], saves: bool, full: bool) -> Problem:
    """What is wrong with the run after its end, as a resumed one finds it.

    All had been asked to end while they trained (``saves``), or the disk was ``full`` to the end.
    """
    said = launched.said.read_text(errors="replace")
    code = launched.agent.returncode
    codes = set(re.findall(r"exitcode: (-?\d+)", said))
    ended = f"torchrun ended with {code}, ranks with {sorted(codes)}"
    if saves and ("saved: " not in said or codes - {"75"}):
        return f"{ended}, not saved by all: {_last_of(said)}"
    if full and code and ("bytes are free: make room" not in said or "5" not in codes):
        return f"{ended}, without a sentence about the disk: {_last_of(said)}"
    run = launched.run
    saved = checkpoint.is_run(run)
    again = exit_code(command(["resume", str(run)] if saved else line))
    if again:
        last = _last_of((run.parent / "stderr").read_text(errors="replace"))
        return f"{ended}; then `cgh {'resume' if saved else 'pretrain'}` with {again}: {last}"
    steps = [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()]
    if steps != list(range(STEPS + 1)):
        wrong = [step for step in range(STEPS + 1) if steps.count(step) != 1]
        return f"{ended}; the log has not once the steps {wrong[:5]}"
    return ""


def _last_of(said: str) -> str:
    return " | ".join(said.strip().splitlines()[-3:])[-300:]


def one_try(folder: Path, data: Path, number: int, at: int, after: float) -> Problem:
    """Starts a run, does something to it after ``at`` steps and a moment, and looks at its end."""
    line = words(data, folder / "run", *LONG, eval_every=-1)
    launched = start(folder, line, f"{os.getpid()}-{number}")
    try:
        if not wait(lambda: steps_taken(launched.run) >= at or launched.ended(), 2 * HANGS):
            return f"step {at} was not reached"
        wait(launched.ended, after)
        if launched.ended():
            return f"it ended before: {_last_of(launched.said.read_text(errors='replace'))}"
        fault, rank = FAULTS[number % len(FAULTS)], number // len(FAULTS) % 2
        fault(launched, rank)
        problem = hangs(launched)
        full = (folder / "filler").exists()
        (folder / "filler").unlink(missing_ok=True)
        return problem or problem_of(launched, line, at > 0 and fault in ASKS, full)
    finally:
        launched.send("KILL", launched.agent.pid, *launched.processes())
        launched.agent.wait()
        wait(launched.ended, 10)


def inside(numbers: list[int], report: Callable[[str, Problem], object]) -> None:
    """The tries of these numbers, where file systems may be mounted."""
    with tempfile.TemporaryDirectory() as scratch:
        data = make_images(Path(scratch, "images"))
        for number in numbers:
            generator = random.Random(number)
            # One in five comes before the first step: while torch is imported, or processes meet.
            at = 0 if generator.random() < 0.2 else generator.randrange(1, STEPS * 3 // 4)
            after = generator.uniform(0, 0.3 if at else STARTS)
            folder = Path(scratch, f"try{number}")
            folder.mkdir()
            mount(folder, DISK)
            problem = one_try(folder, data, number, at, after)
            subprocess.run(["umount", "-l", folder], check=True)
            name, rank = FAULTS[number % len(FAULTS)].__name__, number // len(FAULTS) % 2
            report(f"try {number}: {name} {rank}, step {at} and {after:.1f} s", problem)


def tries(count: int, at_once: int = 3) -> Iterator[tuple[str, Problem]]:
    """The tries of `inside`, some ``at_once``, from processes in namespaces of their own."""
    read, write = os.pipe()
    processes = []
    for first in range(min(at_once, count)):
        numbers = map(str, range(first, count, at_once))
        line = [*NAMESPACE, sys.executable, __file__, str(write), *numbers]
        processes.append(subprocess.Popen(line, pass_fds=[write]))
    os.close(write)
    with open(read, encoding="utf-8") as answers:
        yield from map(json.loads, answers)
    assert not any(process.wait() for process in processes)


if __name__ == "__main__":

    def report(*answer: str) -> None:
        os.write(int(sys.argv[1]), f"{json.dumps(answer)}\n".encode())

    inside(list(map(int, sys.argv[2:])), report)
