"""Signals in every phase of a run: saved within 10 s, exit code 75, and equal bits at its end."""

import math
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from children import Problem, exit_code
from small_run import command, differences, make_images, words

from cgh_models.data.image_set import ImageSet
from cgh_models.train import checkpoint, loop, monitor

WHAT = "TERM, INT, USR1 and HUP at the start, in a step, a save, a measurement, a wait for data"
LAW = "saved within 10 s, exit code 75; the resumed run ends with the same tensors and log"
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
PHASES = ("start", "step", "save", "measurement", "wait for data", "wait for workers")
QUICK, MANY = 12, 72
MOST = 10.0  # seconds from the signal to the end of the process
MOST_WHEN_BUSY = 50.0  # in the quick count, beside other tests: less than what it waits for lasts


def announce_in(phase: str, at: int, reached: int) -> None:
    """Makes this process write into ``reached`` at the ``at``-th time that it is in a phase.

    There it waits: a moment in what a signal lets end, a minute in what it ends.
    """
    passed = 0

    def announce(seconds: float) -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            os.write(reached, b".")
            time.sleep(seconds)

    def before(owner: object, name: str, seconds: float) -> None:
        real: Callable[..., object] = getattr(owner, name)

        def announced(*values: object, **named: object) -> object:
            announce(seconds)
            return real(*values, **named)

        setattr(owner, name, announced)

    if phase == "start":
        before(ImageSet, "cache_pixels", 60)
    elif phase == "step":
        before(loop, "train_step", 0.3)
    elif phase == "save":
        before(checkpoint, "_write_index", 0.3)
    elif phase == "measurement":
        before(monitor, "embeddings", 60)
    else:
        before(ImageSet, "image", 60)


def streamed(data: Path, run: Path, workers: int) -> list[str]:
    """A run that keeps no images in memory and is not measured: only its steps read files."""
    return words(data, run, "--memory-gib", 0, "--workers", workers, eval_every=-1)


def one_try(
    folder: Path, data: Path, whole: Path, name: str, phase: str, at: int, most: float
) -> Problem:
    """Trains in a child until the phase, sends the signal, then resumes."""
    run = folder / "run"
    line = words(data, run)
    if phase.startswith("wait"):
        line = streamed(data, run, 2 if phase == "wait for workers" else 0)
    read, write = os.pipe()
    child = command(line, lambda: announce_in(phase, at, write))
    os.close(write)
    is_there = select.select([read], [], [], 120)[0] and os.read(read, 1)
    os.close(read)
    time.sleep(0.05)
    start = time.monotonic()
    os.kill(child, getattr(signal, name))
    code = None
    while code is None and time.monotonic() - start < 60:
        ended, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if ended else time.sleep(0.02)
    seconds = time.monotonic() - start
    if code is None:
        os.kill(child, signal.SIGKILL)
        return f"still there after 60 s, {exit_code(child)}"
    if not is_there or code != 75 or seconds > most:
        said = (folder / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
        phase = "" if is_there else "the phase was not reached; "
        return f"{phase}exit code {code} after {seconds:.1f} s: {said}"
    code = exit_code(command(["resume", str(run)]))
    if code:
        return f"`cgh resume` ended with {code}"
    return differences(run, whole)


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """Every signal in every phase; again, at later steps, as ``count`` allows.

    The first twelve have each phase twice and each signal three times.
    """
    for name in SIGNALS:  # a run leaves those ignored that were, as by nohup or a shell's "&"
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    most = MOST if count > QUICK else MOST_WHEN_BUSY
    with tempfile.TemporaryDirectory() as scratch:
        data = make_images(Path(scratch, "images"))
        whole, from_files = Path(scratch, "whole"), Path(scratch, "from_files")
        assert exit_code(command(words(data, whole))) == 0
        assert exit_code(command(streamed(data, from_files, 0))) == 0
        for number in range(count):
            rounds, turn = divmod(number, len(PHASES) * len(SIGNALS))
            at = 1 + rounds
            phase = PHASES[turn % len(PHASES)]
            shift = turn // math.lcm(len(PHASES), len(SIGNALS))  # else the same pairs come again
            name = SIGNALS[(turn + shift) % len(SIGNALS)]
            place = 1 if phase == "start" else 1 + at
            if phase.startswith("wait"):  # 24 images are read before the first step, then 8 a step
                place = 24 + 8 * at + 3
            if phase == "wait for workers":  # each of two reads half of them
                place = 12 + 4 * at + 1
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                expected = from_files if phase.startswith("wait") else whole
                problem = one_try(Path(folder), data, expected, name, phase, place, most)
            yield f"{name}, {phase}, time {place}", problem
