"""A run that torchrun started, and whatever else belongs to it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TORCHRUN = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--nproc-per-node", "2", "--max-restarts", "3"]
MARK = "CGH_FAULTS_TRY"  # an environment variable of all that a try starts


@dataclass
class Torchrun:
    """A running torchrun, the folder of its run, and the file with all that was said."""

    agent: subprocess.Popen[bytes]
    run: Path
    said: Path
    mark: str
    seen: set[int] = field(default_factory=set)

    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        found = {}
        for process in self.processes():
            rank = re.search(rb"\0RANK=(\d+)\0", b"\0" + environment(process) + b"\0")
            if rank:
                found[int(rank[1])] = process
        return found

    def processes(self) -> list[int]:
        """Whatever was started by it and has not ended."""
        names = (entry.name for entry in os.scandir("/proc") if entry.name.isdigit())
        mark = f"{MARK}={self.mark}\0".encode()
        # One that is about to end has lost its environment, but not yet its locks.
        self.seen.update(int(name) for name in names if mark in environment(int(name)))
        return [process for process in self.seen if not has_ended(process)]

    def send(self, name: str, *processes: int) -> None:
        """A signal to each, if it is still there."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, getattr(signal, f"SIG{name}"))

    def ended(self) -> bool:
        """Whether nothing is left of it."""
        return self.agent.poll() is not None and not self.processes()

    def state(self) -> tuple[object, ...]:
        """What changes as long as it does not hang: files, what is said, memory of processes."""
        names = sorted(entry.name for entry in self.run.glob("*"))
        sizes = [(process, pages(process)) for process in sorted(self.processes())]
        return *names, steps_taken(self.run), self.said.stat().st_size, *sizes


def pages(process: int) -> str:
    """Those that it has asked for, more and more while it starts; none of one that has ended."""
    try:
        return Path(f"/proc/{process}/statm").read_text().split()[0]
    except OSError:
        return ""


def environment(process: int) -> bytes:
    """As it was when the process started; empty of one that has ended."""
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return b""


def has_ended(process: int) -> bool:
    """Whether it is gone, or waits for nothing but its parent to be told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def start(folder: Path, line: list[str], mark: str) -> Torchrun:
    """Starts a command, with its run in ``folder``, in a session as of a terminal or a cluster."""
    said = folder.with_suffix(".said")  # not on its disk, which may be full
    names = {MARK: mark, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with said.open("wb") as output:
        agent = subprocess.Popen(
            [sys.executable, *TORCHRUN, "-m", "cgh_models", *line],
            env=os.environ | names,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Torchrun(agent, folder / "run", said, mark)


def steps_taken(run: Path) -> int:
    """The lines of its log."""
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def wait(until: Callable[[], bool], most: float) -> bool:
    """Whether it came true in so many seconds."""
    end = time.monotonic() + most
    while not until():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
