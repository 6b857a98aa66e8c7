"""Command lines of wrong, odd and right words: one sentence and a known exit code, no traceback."""

import contextlib
import io
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from children import Problem, watched
from mutated_files import OLD, a_tar
from small_run import make_images

from cgh_models.cli import demo, main
from cgh_models.hub import autoload

WHAT = "command lines of `cgh`, drawn from right ones by leaving out, doubling and changing words"
LAW = "exit code 0, 1, 2, 3, 4, 5 or 75 and, if it is not 0, one line that says why; no traceback"
QUICK, MANY = 120, 2_000
CODES = {0, 1, 2, 3, 4, 5, 75}
MOST = 10  # seconds of CPU time that a line may work; a run is then asked to save and end
RIGHT = """
pretrain --data images/train --out new --arch test_efficientnet --recipe cifar --epochs 1 \
--batch-size 20 --device cpu --set queue_length=16 --set hidden_width=16 --eval-every -1
pretrain --data images.tar --out new --arch test_efficientnet --batch-size 8 --epochs 1 \
--image-size 16 --method moco_v2 --set queue_length=16 --workers 0
pretrain --data list.txt --out new --arch test_resnet --recipe tiny --epochs 1 --batch-size 4
resume run --data images/train
resume run --workers 0 --device cpu
evaluate knn weights --data images --k 3 --temperature 0.07 --workers 0
evaluate knn test_efficientnet --random --data images --k 1 --seed 1 --fast --cache cache
evaluate knn weights --data images --record --data-name made --k 2
evaluate linear weights --data images --protocol ridge
evaluate linear weights --data images --protocol sgd --epochs 1 --batch-size 8
evaluate finetune weights --data images --labels 100% --epochs 1 --batch-size 4
reproduce weights --data images --metric knn
compare weights run --data images --k 2 --workers 0 --json
report run --data images/train --out page.html --workers 0 --images 20
report weights --data images/val --workers 0
backbones test_efficientnet
export run --out new --dtype float16 --tag mine --license mit --data-name "my images"
demo --out images
list
list resnet*
info weights
info resnet10_cifar_fast.cgh_cifar10
verify weights
verify weights weights_manifest.json run
convert authors.pth --method moco_v2 --out new --arch resnet18
publish weights --repo nobody/nothing --private
autoload off
help pretrain
--version
--print-completion bash
"""
ODD_WORDS = (
    "", " ", "-", "--", "---", "0", "-1", "1", "2", "1e9", "0x10", "1_0", "nan", "inf", "1,2",
    "ä", "\u202e", "\ud8ff", "a\nb", "\t", "%s", "{}", "~", ".", "..", "/", "/dev/null",
    "/dev/zero", "/proc/self/mem", "missing", "missing/x", "images", "images/train", "images.tar",
    "list.txt", "run", "weights", "weights/model.safetensors", "empty", "authors.pth", "new",
    "x" * 300, "x" * 5000, "None", "True", "null", "--help", "-h", "--version", "cgh", "bogus",
    "taps=2", "taps=", "=3", "queue_length=-1", "queue_length=x", "warmup=nan", "hf-hub:no/no",
    "local-dir:weights", "hfds/nothing", "resnet18", "resnet18.nothing", "test_resnet",
    "float32", "bfloat16", "cpu", "cuda:7", "meta", "$(false)", "`false`", "'", '"', ";",
)  # fmt: skip
FLAGS = [
    *sorted({word for word in RIGHT.split() if word.startswith("--")}),
    "--mean", "--std", "--init", "--optimizer", "--precision", "--views", "--accumulate",
    "--base-lr", "--momentum", "--memory-gib", "--no-private", "--splits-file", "--crop-pct",
    "--tensorboard", "--compile", "--grad-checkpointing", "--eval-data", "--follow-links",
    "--checkpoint-every", "--log-every", "--clip-norm", "--manifest", "--nothing",
]  # fmt: skip


def changed(words: list[str], generator: random.Random) -> list[str]:
    """A right line with up to three changes."""
    words = list(words)
    for _ in range(generator.choice((0, 1, 1, 2, 3))):
        place = generator.randrange(len(words) + 1)
        taken = generator.randrange(len(words)) if words else 0
        match generator.randrange(7):
            case 0:
                del words[taken : taken + 1]
            case 1:
                words.insert(place, generator.choice(ODD_WORDS))
            case 2 | 3:
                words[taken : taken + 1] = [generator.choice(ODD_WORDS)]
            case 4:
                words[place:place] = [generator.choice(FLAGS), generator.choice(ODD_WORDS)]
            case 5:
                words.insert(place, generator.choice(FLAGS))
            case 6:
                words[place:place] = words[taken : taken + 1]
    return words


def make_folder(folder: Path) -> None:
    """What the lines name."""
    shutil.copytree(OLD / "weights", folder / "weights")
    shutil.copytree(OLD / "run", folder / "run")
    make_images(folder / "images" / "train", 20, 16)
    make_images(folder / "images" / "val", 8, 16)
    names = sorted((folder / "images" / "train").rglob("*.png"))
    (folder / "list.txt").write_text("\n".join(str(name) for name in names))
    (folder / "images.tar").write_bytes(a_tar())
    (folder / "empty").mkdir()
    state = {"module.encoder_q.conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save({"state_dict": state}, folder / "authors.pth")


def problem_of(words: list[str]) -> Problem:
    """What is wrong with how a line ends."""
    sys.argv = ["cgh", *words]
    code: object = 0
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300]
    said = stderr.getvalue()
    if code not in CODES:
        return f"exit code {code}: {said[-200:]}"
    if "Traceback" in said:
        return f"a traceback: {said[-300:]}"
    last = said.strip().splitlines()[-1:] if code else ["error: "]
    if not last or not last[0].startswith(("error: ", "saved: ")):
        return f"exit code {code}, and the last line is {last}"
    return ""


def too_long(number: int, _frame: FrameType | None) -> None:
    """Asks a run to save and end; what is none ends here."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        raise TimeoutError(f"still working after {MOST} s of CPU time")
    os.kill(os.getpid(), signal.SIGTERM)


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """Runs one line after the other, in a folder that is made anew now and then."""
    right = [shlex.split(line) for line in RIGHT.replace("\\\n", "").strip().splitlines()]
    lines = []
    for number in range(count):
        generator = random.Random(f"line {number}")
        lines.append(changed(right[number % len(right)], generator))
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "home")
        home.mkdir()
        os.environ |= {"HOME": str(home), "HF_HOME": str(home)}

        def try_one(number: int) -> Problem:
            folder = Path(scratch, "folder")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make_folder(folder)
            os.chdir(folder)
            # Two things that a user's machine is to be spared: a minute of training, and a .pth.
            demo.run = lambda out, seed: print(out, seed)
            autoload.path = lambda: folder / "cgh_models.pth"
            signal.signal(signal.SIGPROF, too_long)
            signal.setitimer(signal.ITIMER_PROF, MOST)
            try:
                return problem_of(lines[number])
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                os.chdir(scratch)

        for number, problem in watched(range(count), try_one, measure=False):
            yield f"line {number}: cgh {shlex.join(lines[number])[:300]!a}", problem
