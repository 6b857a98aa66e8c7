"""kill -9 at random moments of saving: what was saved last can always be gone on with."""

import os
import random
import re
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from children import Problem, exit_code, fork

from cgh_models.tensors import read_tensors
from cgh_models.train import checkpoint

WHAT = "kill -9 at a random moment while checkpoints are saved in a loop"
LAW = "the newest checkpoint that was reported as saved, or a newer one, is whole"
QUICK, MANY = 40, 500
CHECKPOINT_FILES = r"checkpoint-\d{8}\.safetensors|checkpoints\.json"
LONGEST = 0.06  # seconds until a kill; a save takes some 0.01


def make(step: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model of 480 kB whose weights are all ``step``, and its optimizer."""
    module = torch.nn.Linear(400, 300)
    torch.nn.init.constant_(module.weight, step)
    return module, torch.optim.SGD(module.parameters(), lr=0.1)


def save_for_ever(run: Path, step: int, saved: int) -> None:
    """Saves a checkpoint after the other, and writes a byte into ``saved`` after each."""
    while True:
        checkpoint.save(run, step, *make(step))
        os.write(saved, b".")
        step += 1


def problem_of(run: Path, last: int) -> Problem:
    """What is wrong with the newest checkpoint, as the resumed run finds it."""
    said: list[str] = []
    checkpoint.remove_temporary_files(run)
    try:
        step, path = checkpoint.resume_point(run, said.append)
        value = read_tensors(path)["method.weight"].unique().item()
    except Exception as error:  # whatever it is, the run cannot be gone on with
        return f"{error!r:.200}"
    if step < last or value != step:
        return f"step {step} with the weights of {value}, where step {last} was saved"
    damaged = [line for line in said if "damaged" in line or "not a readable" in line]
    left = [path.name for path in run.iterdir() if not re.fullmatch(CHECKPOINT_FILES, path.name)]
    return "".join(damaged[:1]) or (f"left in the folder: {', '.join(left)}" if left else "")


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """Kills one child after the other; each goes on in the same folder."""
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        last = 0
        for number in range(count):
            read, write = os.pipe()
            child = fork(lambda: save_for_ever(run, last + 1, write))  # noqa: B023
            os.close(write)
            if number == 0:  # before the first save there is nothing to go on with
                select.select([read], [], [])
            moment = generator.uniform(0, LONGEST)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            exit_code(child)
            last += len(os.read(read, 2**16)) if select.select([read], [], [], 0)[0] else 0
            os.close(read)
            problem = problem_of(run, last)
            yield f"kill {number}, after {1000 * moment:.1f} ms", problem
            if not problem:
                last = checkpoint.newest(run, lambda _: None)[0]
