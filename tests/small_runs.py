"""Runs of twelve steps on 64 made images: their settings, their parts, what they leave."""

import dataclasses
import json
import os
import signal

import torch

from cgh_models import tensors
from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.methods import METHODS, build_method, preprocessing
from cgh_models.train import checkpoint
from cgh_models.train.health import COMPARED
from cgh_models.train.loop import pretrain
from cgh_models.train.verdict import OF_THE_VIEWS

SMALL = {"projection_width": 8, "hidden_width": 16, "queue_length": 40, "predictor_width": 16}
# Of the tests in gpu/; cpu tries there what makes sense without CUDA.
DEVICE = os.environ.get("CGH_TEST_DEVICE", "cuda")
# 64 images: 12 steps
QUICK = TrainConfig(image_size=32, batch_size=16, epochs=3, warmup_epochs=1, device="cpu")


def small(name, **settings):
    """All settings of a method: its defaults, small heads, a short queue, then ``settings``."""
    defaults = {f.name: f.default for f in dataclasses.fields(METHODS[name].Config)}
    return defaults | {k: v for k, v in SMALL.items() if k in defaults} | settings


def build(name="cgh", config=QUICK, arch="test_resnet", **settings):
    torch.manual_seed(config.seed)
    backbone = create(arch, {"input_size": (3, config.image_size, config.image_size)})
    return METHODS[name](backbone, METHODS[name].Config(**small(name, **settings)))


def train_run(out, data, arch="test_resnet", name="cgh", **settings):
    """Trains a method for one epoch on ``data``/train and returns it."""
    config = dataclasses.replace(QUICK, image_size=64, epochs=1)
    torch.manual_seed(0)
    method = build_method(name, arch, preprocessing(config), small(name, **settings))
    pretrain(method, data / "train", config, out)
    return method


def lines(run):
    """metrics.jsonl without what depends on the clock, and on where the run was resumed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left_out = ("images_per_second", "waiting", "resumed", *OF_THE_VIEWS, *COMPARED)
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def final(run):
    _, path = checkpoint.newest(run, print)
    return tensors.read_tensors(path)


def stop_at(monkeypatch, step):
    """Sends this process SIGTERM while step ``step`` is taken."""
    import cgh_models.train.loop as train

    real, taken = train.train_step, []

    def counting(*args):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(train, "train_step", counting)
