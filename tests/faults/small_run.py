"""A run of twelve steps on 24 made images, by the command line here or in a child."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch._dynamo
from children import fork
from PIL import Image

from cgh_models.cli import main as cli
from cgh_models.hub import registry  # noqa: F401 - the same
from cgh_models.tensors import read_tensors
from cgh_models.train import checkpoint, loop  # noqa: F401
from cgh_models.train.health import COMPARED
from cgh_models.train.verdict import OF_THE_VIEWS

assert torch._dynamo  # else each child imports it, for its optimizer
CLOCK = ("images_per_second", "waiting", "resumed", *OF_THE_VIEWS, *COMPARED)
STEPS = 12


def make_images(folder: Path, count: int = 24, side: int = 32) -> Path:
    """Noise in class folders, four of them, whose brightness tells the class."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 100, (side, side, 3)) + 40 * (number % 4)
        path = folder / f"class{number % 4}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def words(data: Path, run: Path, *more: object, eval_every: int = 1) -> list[str]:
    """The command line that trains it; it is measured after every epoch, or not at all (-1)."""
    flags = "--recipe cifar --arch test_efficientnet --batch-size 8 --epochs 4"
    flags += " --seed 3 --checkpoint-every 3 --device cpu"
    heads = "--set queue_length=32 --set hidden_width=16 --set projection_width=8"
    images = ["--data", str(data), "--out", str(run), "--eval-every", str(eval_every)]
    return ["pretrain", *images, *flags.split(), *heads.split(), *map(str, more)]


def command(line: list[str], prepare: Callable[[], object] = lambda: None) -> int:
    """Starts a command in a child, after ``prepare`` there; returns its process id.

    This process itself trains nothing: the children of one that did may wait for its threads.
    """
    folder = Path(line[line.index("--out") + 1] if "--out" in line else line[1]).parent

    def work() -> None:
        with open(folder / "stderr", "w", encoding="utf-8") as stderr:
            os.dup2(stderr.fileno(), 2)
            sys.stderr = stderr
            prepare()
            code, _ = in_this_process(line)
            stderr.flush()
            os._exit(code)

    return fork(work)


def in_this_process(line: list[str]) -> tuple[int, str]:
    """Exit code and standard output of a command; what is no SystemExit is raised."""
    sys.argv = ["cgh", *line]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), stdout.getvalue()
    return 0, stdout.getvalue()


def rows(run: Path) -> list[dict[str, float]]:
    """The log of a run without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def differences(run: Path, whole: Path) -> str:
    """In which tensors and log lines a run differs from one that was not disturbed."""
    step, path = checkpoint.newest(run, lambda _: None)
    tensors = read_tensors(path)
    expected = read_tensors(checkpoint.newest(whole, lambda _: None)[1])
    if step != STEPS or tensors.keys() != expected.keys():
        return f"it ends at step {step}, with {len(tensors)} of {len(expected)} tensors"
    unequal = [key for key in expected if not torch.equal(tensors[key], expected[key])]
    if unequal:
        return f"{len(unequal)} of {len(expected)} tensors differ, {unequal[0]} is one"
    lines, expected_lines = rows(run), rows(whole)
    if lines == expected_lines:
        return ""
    steps = [a["step"] for a, b in zip(lines, expected_lines, strict=False) if a != b]
    return f"metrics.jsonl: {len(lines)} of {len(expected_lines)} lines, unequal at steps {steps}"
