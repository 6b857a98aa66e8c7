"""What flags of `cgh pretrain` that change a step cost and give: its time and its memory.

    python benchmarks/flags.py

One step of CGH on a ResNet-50 at 224 pixels, 32 images of noise; each way has one thing other than
the first. Memory is what torch's tensors hold at most during a step beside the networks, queues and
the optimizer's state: a count, which other work on the machine does not change.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from counters import LiveBytes
from side_by_side import milliseconds

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.evaluate import pick_precision
from cgh_models.methods import METHODS
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import prepare, train_step
from cgh_models.view_recipes import RECIPES

CPU = torch.device("cpu")
BATCH, ROUNDS = 32, 2
WAYS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "`--precision float32`": {"precision": "float32"},
    "`--accumulate 2`": {"accumulate": 2},
    "`--grad-checkpointing`": {"grad_checkpointing": True},
    "`--image-size 160`": {"image_size": 160},
    "`--image-size 112`": {"image_size": 112},
    "`--set queue_length=4096`": {"queue_length": 4096},
    "`--method moco_v2`": {"method": "moco_v2"},
    "`--arch resnet18`": {"arch": "resnet18"},
}


def step(method: str = "cgh", arch: str = "resnet50", **changes: Any) -> Callable[[], object]:
    """A step with these fields of TrainConfig or of the method's Config."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    train = {name: value for name, value in changes.items() if name in fields}
    config = TrainConfig(image_size=224, batch_size=BATCH, device="cpu")
    config = dataclasses.replace(config, **train)
    own = {name: value for name, value in changes.items() if name not in fields}
    kind = METHODS[method]
    built = kind(create(arch), kind.Config(**own)).to(memory_format=torch.channels_last).train()
    prepare(built, config, CPU)
    optimizer = create_optimizer(built, config)
    sides = [view.side(config.image_size) for view in RECIPES[built.view_recipe]]
    views = [torch.randn(BATCH, 3, side, side) for side in sides]
    precision = pick_precision(config.precision, CPU)
    rest = ("cpu", precision, config.clip_norm, config.accumulate)
    return lambda: train_step(built, optimizer, views, 0.5, 0.01, *rest)


if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.manual_seed(0)
    ways = {name: step(**changes) for name, changes in WAYS.items()}
    taken = milliseconds(ways, ROUNDS)
    base = taken["the defaults"]
    print(
        "\n| a step with | s | times as long | MiB beside networks and queues |\n|---|---|---|---|"
    )
    for name, way in ways.items():
        with LiveBytes() as live:
            way()
        seconds = taken[name] / 1000
        print(f"| {name} | {seconds:.2f} | {taken[name] / base:.2f} | {live.peak / 2**20:,.0f} |")
