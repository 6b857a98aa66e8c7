"""Disks with room for 0.1 to 2.1 checkpoints: the old one stays, and room mends everything.

The disks are tmpfs mounts in a namespace of this process (`unshare -rm`); nothing else sees them.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import kills
from children import Problem
from small_run import differences, in_this_process, make_images, words

from cgh_models.errors import DiskError
from cgh_models.train import checkpoint

WHAT = "disks (tmpfs) with room for 0.1 to 2.1 checkpoints: saves, and whole runs with `cgh`"
LAW = "a DiskError that says how much room is needed, or a save; then room is made, to equal bits"
QUICK, MANY = 25, 241  # 21 or 201 sizes for saves, and 4 or 40 runs
NAMESPACE = ["unshare", "-rm"]


def why_not() -> str:
    """Why nothing can be tried here; "" if it can."""
    test = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    try:
        done = subprocess.run(test, capture_output=True, text=True, check=False)
    except OSError:
        return "unshare is not installed"
    return f"no file systems may be mounted here: {done.stderr.strip()}" if done.returncode else ""


def mount(folder: Path, size: int, *options: str) -> None:
    """Mounts or remounts a tmpfs of ``size`` bytes, rounded up to pages."""
    option = ",".join([*options, f"size={size}"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], check=True)


def saves(folder: Path, share: float) -> Problem:
    """Four saves on a disk of ``share`` checkpoints, then one with room."""
    tensors = 400 * 300 * 4
    mount(folder, int(share * tensors))
    try:
        last = -1
        for step in range(1, 5):
            try:
                checkpoint.save(folder, step, *kills.make(step))
                last = step
            except DiskError as error:
                if "bytes are free: make room" not in str(error):
                    return f"step {step}: {error}"
            if last > 0:
                problem = kills.problem_of(folder, last)
                if problem:
                    return f"at step {step}: {problem}"
        mount(folder, 4 * tensors, "remount")
        checkpoint.save(folder, 5, *kills.make(5))
        return kills.problem_of(folder, 5)
    finally:
        subprocess.run(["umount", folder], check=True)


def runs(
    folder: Path, bytes_of_a_checkpoint: int, share: float, data: Path, whole: Path
) -> Problem:
    """A run whose folder is a disk of ``share`` checkpoints, gone on with when there is room."""
    mount(folder, int(share * bytes_of_a_checkpoint))
    try:
        line = words(data, folder)
        code, _ = in_this_process(line)
        if code not in (0, DiskError.exit_code):
            return f"exit code {code}"
        mount(folder, 4 * bytes_of_a_checkpoint, "remount")
        if code:
            saved = checkpoint.is_run(folder)
            code, _ = in_this_process(["resume", str(folder)] if saved else line)
            if code:
                return f"exit code {code} with room"
        return differences(folder, whole)
    finally:
        subprocess.run(["umount", folder], check=True)


def inside(count: int, report: Callable[[str, Problem], object]) -> None:
    """The tries, where file systems may be mounted."""
    some = max(2, count // 6)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "disk")
        folder.mkdir()
        sizes = count - some
        for number in range(sizes):
            share = round(0.1 + 2 * number / (sizes - 1), 2)
            report(f"saves on a disk of {share} checkpoints", saves(folder, share))
        data, whole = make_images(Path(scratch, "images")), Path(scratch, "whole")
        in_this_process(words(data, whole))
        size = checkpoint.newest(whole, print)[1].stat().st_size
        for number in range(some):
            share = round(0.1 + 2 * number / (some - 1), 2)
            problem = runs(folder, size, share, data, whole)
            report(f"a run on a disk of {share} checkpoints", problem)


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """The tries of `inside`, from a process in a namespace of its own."""
    command = [*NAMESPACE, sys.executable, __file__, str(count)]
    with tempfile.TemporaryFile("w+") as stderr:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                how, problem = json.loads(line)
                yield how, problem
        stderr.seek(0)
        assert process.returncode == 0, stderr.read()[-1000:]


if __name__ == "__main__":
    output = os.fdopen(os.dup(1), "w")
    inside(int(sys.argv[1]), lambda *answer: print(json.dumps(answer), file=output, flush=True))
