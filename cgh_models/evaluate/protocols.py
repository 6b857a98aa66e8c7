"""Settings of the protocols, their defaults by recipe, and what is measured. No torch."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import check_range
from ..errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Measurement:
    """Percent of n val images classified correctly, and every parameter that changes the value.

    Of labels that are no classes: mAP in percent, R2; of pixels: mean IoU in percent.
    """

    protocol: str
    parameters: dict[str, Any]
    value: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"value": round(self.value, 3)}

    def with_parameters(self, **more: object) -> "Measurement":
        return dataclasses.replace(self, parameters=self.parameters | more)


@dataclass(frozen=True)
class EvalSettings:
    """How an evaluation runs; the first five are arguments of `extract`."""

    batch_size: int = 256
    workers: int = 2
    device: "str | torch.device" = "auto"
    fast: bool = False
    cache_dir: str | Path | None = None
    seed: int = 0
    log: Callable[[str], None] = lambda text: None  # gets lines about the progress

    def __post_init__(self):
        counts = isinstance(self.batch_size, Integral) and isinstance(self.workers, Integral)
        if not counts or self.batch_size < 1 or self.workers < 0:
            given = f"batch size {self.batch_size}, workers {self.workers}"
            raise InputError(f"{given}: expected at least 1 and at least 0")

    @property
    def recorded(self) -> dict[str, bool]:
        """What a measurement's parameters say of it."""
        return {"fast": True} if self.fast else {}


@dataclass(frozen=True)
class LinearConfig:
    """Of --protocol sgd. Defaults: CGH's and ReSSL's linear evaluation on ImageNet (their code)."""

    lr: float = 0.3
    """Learning rate at the top of the cosine; 0: the best of 0.1, 0.3, 1, 3, 10, 30 on held-out
    training images."""
    epochs: int = 100
    """Passes over the images (both papers); where a rate is chosen, a fifth as many for that."""
    train_batch_size: int = 256
    """Images a step (both papers), at most all; the last, smaller batch of an epoch is left out."""
    momentum: float = 0.9
    """Of SGD (both papers)."""
    nesterov: bool = False
    """Nesterov's momentum: ReSSL's small-image recipe has it."""

    def __post_init__(self):
        _check(self, "lr")
        if self.nesterov and not self.momentum:
            what = "nesterov=True with momentum=0: Nesterov needs momentum"
            raise InputError(f"{what}; give --momentum 0.9")


@dataclass(frozen=True)
class FinetuneConfig:
    """Of `cgh evaluate finetune`. Defaults: CGH's semi-supervised run on ImageNet (its code)."""

    lr: float = 0.005
    """Learning rate of the backbone; a tenth after 3/7 and 6/7 of the run (30, 60 of 70 epochs)."""
    head_lr: float = 0.02
    """Learning rate of the linear layer on top; lowered at the same steps."""
    epochs: int = 70
    """Passes over the labelled images."""
    train_batch_size: int = 256
    """Images a step, at most all; the last, smaller batch of an epoch is left out."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0
    """Of SGD, on everything that is trained."""

    def __post_init__(self):
        _check(self, "lr", "head_lr", "weight_decay")


@dataclass(frozen=True)
class DenseConfig:
    """Which feature maps are measured.

    The folder's train/ and val/ have images/NAME.jpg (or another format) and masks/NAME.png, of one
    channel: the class of each pixel, 0 to 254, or 255 where it does not count. Images that EXIF
    turns are refused.
    """

    taps: int = 0
    """Take so many of the deepest maps as a hypercolumn; 0: the deepest map."""
    image_size: int = 0
    """Side to which images are resized, in pixels; 0: the model's. A larger one has finer maps."""
    cells: int = 32_768
    """Places of maps of train/ that are used at most, drawn by the seed."""

    def __post_init__(self):
        check_range(self, 0, 2**13, "taps", "image_size")
        check_range(self, 1, 2**40, "cells")


def _check(config: LinearConfig | FinetuneConfig, *positive: str) -> None:
    check_range(config, 1, 2**40, "epochs")
    check_range(config, 2, 2**40, "train_batch_size")  # batch norm needs two
    check_range(config, 0, 1e6, *positive)
    check_range(config, 0, 1, "momentum")


# The sources of ReSSL's small-image recipe differ in the learning rate (30 in steps; 0.2 or 1 with
# a cosine), so it is a cosine whose top is chosen on held-out training images.
_SMALL = LinearConfig(lr=0, nesterov=True)
LINEAR = {"imagenet": LinearConfig(), "cifar": _SMALL, "tiny": _SMALL}

# Few labels of small images: 1 % are a step or two of 256, so 64 a step. All labels: nothing is
# published. Both are ours; rates and decay are of LEWEL's code for 10 % (arXiv 2203.14898).
_FEW_SMALL = FinetuneConfig(lr=0.01, head_lr=0.1, train_batch_size=64)
_ALL = FinetuneConfig(lr=0.01, head_lr=0.1, epochs=30, weight_decay=1e-4)
FINETUNE = {}
for _recipe in LINEAR:
    _few = FinetuneConfig() if _recipe == "imagenet" else _FEW_SMALL
    FINETUNE |= {(_recipe, "1%"): _few, (_recipe, "10%"): _few, (_recipe, "100%"): _ALL}
