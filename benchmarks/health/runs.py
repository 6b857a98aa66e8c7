"""Runs that are healthy and runs with a fault in them, and what their measurements were.

python benchmarks/health/runs.py healthy|held_out|faults DATA OUT [NAME]

DATA has cifar10/ and tiny-imagenet-200/, with train/ in both; NAME is a part of a run's name.

Healthy: 8 methods x 5 (seeds and sets of 1,000 images), ten epochs of 31 steps, a ResNet-18 of a
sixteenth of the width. A fault: the first of those epochs. About half a minute and five seconds a
run on two cores. Held out: one more healthy run a method, on other photographs, which no limit was
set by. A run is a line of OUT, and is not
repeated if it is there; `table.py` judges them.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from cgh_models.data import loader
from cgh_models.errors import InputError
from cgh_models.methods import METHODS, build_method, preprocessing
from cgh_models.recipes import method_config, train_config
from cgh_models.train.loop import pretrain

EPOCHS = 10
IMAGES = 1_000
ARCH = "resnet18_cifar_w16"
OF_A_METHOD = (("cifar a", 0), ("cifar a", 1), ("cifar b", 2), ("tiny", 3), ("tiny", 4))
SETTINGS = ("queue_length=1024", "teacher_momentum=0.99")


class Enough(Exception):  # noqa: N818 - ends a run that has been seen long enough
    """The first measurement after the start is there."""


def subset(source: Path, target: Path, seed: int) -> Path:
    """IMAGES images of class folders, equally many a class, from the ``seed``-th on."""
    folders = sorted(folder for folder in source.iterdir() if folder.is_dir())
    count = IMAGES // len(folders)
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
        (target / folder.name).mkdir(parents=True)
        for path in files[seed * count : (seed + 1) * count]:
            shutil.copy(path, target / folder.name)
    return target


def build(name: str, train, *settings: str):
    """A method of the recipe `cifar`, with a short queue."""
    kinds = METHODS[name].Config.__dataclass_fields__
    known = [text for text in (*SETTINGS, *settings) if text.partition("=")[0] in kinds]
    if name in ("byol", "lewel"):
        known = [text for text in known if text != "teacher_momentum=0.99"]
    config = method_config(METHODS[name], "cifar", train, tuple(known))
    torch.manual_seed(train.seed)
    return build_method(name, ARCH, preprocessing(train), config)


def config_of(name: str, seed: int = 0, **changes):
    base = {"batch_size": 32, "epochs": EPOCHS, "seed": seed, "device": "cpu", "workers": 0}
    base["paper_faithful"] = True  # the papers' warm-ups, which are harder on a short run
    return dataclasses.replace(train_config("cifar", name), **(base | changes))


def train(method, data: Path, config, stop: bool) -> dict:
    """The measured rows, and how the run ended if that was not by its last step."""
    rows = []
    steps = IMAGES // config.batch_size

    def listen(row):
        if "feature_std" in row:
            rows.append({key: float(f"{value:.5g}") for key, value in row.items()})
            if stop and row["step"] >= steps:
                raise Enough

    ended = ""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        try:
            pretrain(method, data, config, Path(folder) / "run", on_log=listen)
        except InputError as error:
            ended = str(error)
    judged = {"batch_size", "base_lr", "epochs", "warmup_epochs"}
    settings = {key: value for key, value in vars(config).items() if key in judged}
    method_config = dataclasses.asdict(method.config)
    return {"ended": ended, "train": settings, "method_config": method_config, "rows": rows}


def healthy(data: Path, scratch: Path):
    """(name, run) of each method, 5 times."""
    sets = {
        "cifar a": subset(data / "cifar10" / "train", scratch / "a", 0),
        "cifar b": subset(data / "cifar10" / "train", scratch / "b", 1),
        "tiny": subset(data / "tiny-imagenet-200" / "train", scratch / "tiny", 0),
    }
    for name in METHODS:
        for images, seed in OF_A_METHOD:
            yield f"{name}, {images}, seed {seed}", partial(whole, name, sets[images], seed)


def held_out(data: Path, scratch: Path):
    """(name, run) of each method on images and with a seed that no other run has."""
    images = subset(data / "cifar10" / "train", scratch / "c", 2)
    for name in METHODS:
        yield f"{name}, cifar c, seed 5", partial(whole, name, images, 5)


def whole(name: str, images: Path, seed: int) -> dict:
    """A healthy run from its start to its end."""
    config = config_of(name, seed)
    return train(build(name, config), images, config, stop=False)


# --- faults: each takes (method, config) and changes one thing


@contextlib.contextmanager
def changed(owner, name, value):
    with mock.patch.object(owner, name, value):
        yield


def half_black(root: Path, target: Path) -> Path:
    from PIL import Image

    shutil.copytree(root, target)
    for number, path in enumerate(sorted(target.rglob("*.jpg"))):
        if number % 2:
            Image.new("RGB", (32, 32)).save(path)
    return target


def one_photograph(root: Path, target: Path) -> Path:
    shutil.copytree(root, target)
    paths = sorted(target.rglob("*.jpg"))
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    return target


def faults(data: Path, scratch: Path):
    """(name, run) of the faults."""
    images = subset(data / "cifar10" / "train", scratch / "a", 0)

    def fault(name, method="ressl", settings=(), mend=None, patch=None, data=images, **changes):
        def run():
            config = config_of(method, 0, **changes)
            made = build(method, config, *settings)
            with contextlib.ExitStack() as stack:
                if mend:
                    with torch.no_grad():
                        mend(made)
                if patch:
                    stack.enter_context(patch)
                return train(made, data, config, stop=True)

        return name, run

    def constant(method):
        last = method.teacher.projector[-1]
        last.weight.zero_()
        last.bias.fill_(1.0)
        method.after_step = lambda progress, finite=None: method.queue.enqueue(finite)

    def frozen(method):
        for name, parameter in method.student.backbone.named_parameters():
            if name != "conv1.weight":
                parameter.requires_grad_(False)
        method.student.backbone.conv1.weight.register_hook(torch.zeros_like)

    def still_queue(method):
        method.queue.enqueue = lambda finite=None: method.queue.discard_pending()

    def dead_queue(method):
        method.queue.rows.copy_(method.queue.rows[:, :1].expand_as(method.queue.rows))
        still_queue(method)

    def with_gradient(method):
        method.teacher.requires_grad_(True)

    def without_predictor(method):
        method.student.predictor = nn.Identity()

    def nan_weights(method):
        method.student.backbone.conv1.weight[0, 0, 0, 0] = float("nan")

    real = loader.ViewDataset.__getitem__

    def same_view(self, key):
        sample = real(self, key)
        return dataclasses.replace(sample, tensors=[sample.tensors[0]] * len(sample.tensors))

    def in_order(seed, epoch, count):
        import numpy as np

        return np.arange(count)

    same = changed(loader.ViewDataset, "__getitem__", same_view)
    by_name = changed(loader, "order", in_order)
    nothing = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    black = half_black(images, scratch / "black")
    one = one_photograph(images, scratch / "one")
    swapped = ("teacher_temperature=0.1", "student_temperature=0.04")
    yield fault("constant teacher", mend=constant)
    yield fault("teacher momentum 1", settings=("teacher_momentum=1.0",))
    yield fault(
        "teacher momentum 0, no predictor", "byol", ("teacher_momentum=0.0",), without_predictor
    )
    yield fault("swapped temperatures", settings=swapped)
    yield fault("temperature 10", "moco_v2", ("temperature=10",))
    yield fault("learning rate x 100", base_lr=6.0)
    yield fault("learning rate x 100, adamw", "moco_v2", optimizer="adamw", base_lr=0.05)
    yield fault("learning rate / 1,000", base_lr=6e-5)
    yield fault("queue of one row", mend=dead_queue)
    yield fault("queue not renewed", mend=still_queue)
    yield fault("no stop-gradient", "byol", mend=with_gradient)
    yield fault("same view twice", patch=same, memory_gib=0, views="exact")
    yield fault("pixels not normalized", **nothing)
    yield fault("half the images black", data=black)
    yield fault("one photograph 1,000 times", data=one)
    yield fault("images in the order of their folders", patch=by_name)
    yield fault("frozen backbone", mend=frozen)
    yield fault("NaN in the weights", mend=nan_weights)
    yield fault("weight decay 1", weight_decay=1.0)
    yield fault("batch of 2", batch_size=2)


def main(kind: str, data: str, out: str, only: str = "") -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    file = Path(out)
    done = file.read_text().splitlines() if file.exists() else []
    names = {(run["kind"], run["name"]) for run in map(json.loads, done)}
    kinds = {"healthy": healthy, "held_out": held_out, "faults": faults}
    with tempfile.TemporaryDirectory() as scratch:
        for name, run in kinds[kind](Path(data), Path(scratch)):
            if only in name and (kind, name) not in names:
                line = json.dumps({"kind": kind, "name": name} | run())
                with open(file, "a") as results:
                    results.write(line + "\n")
                print(kind, name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
