"""Settings of `cgh evaluate linear` and `cgh evaluate finetune`, and their defaults by recipe. Light: no torch."""

from dataclasses import dataclass

from ..config import check_range
from ..errors import InputError

LABELS = ("1%", "10%", "100%")


@dataclass(frozen=True)
class LinearConfig:
    """Of --protocol sgd. Defaults: the linear evaluation of CGH and ReSSL on ImageNet (authors' code)."""

    lr: float = 0.3
    """Learning rate at the top of the cosine; 0: chosen on held-out training images from 0.1, 0.3, 1, 3, 10, 30."""
    epochs: int = 100
    """Passes over the training images (both papers). Where a rate is chosen, a fifth as many for the choice."""
    train_batch_size: int = 256
    """Images a step (both papers), at most all there are; the last, smaller batch of an epoch is left out."""
    momentum: float = 0.9
    """Of SGD (both papers)."""
    nesterov: bool = False
    """Nesterov's momentum: ReSSL's small-image recipe has it."""

    def __post_init__(self):
        _check(self, "lr", "momentum")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov=True with momentum=0: Nesterov needs momentum; give --momentum 0.9")


@dataclass(frozen=True)
class FinetuneConfig:
    """Of `cgh evaluate finetune`. Defaults: CGH's semi-supervised run on ImageNet (arXiv 2308.13392, authors' code)."""

    lr: float = 0.005
    """Learning rate of the backbone; times 0.1 after 3/7 and again after 6/7 of the steps (30 and 60 of 70 epochs)."""
    head_lr: float = 0.02
    """Learning rate of the linear layer on top; lowered at the same steps."""
    epochs: int = 70
    """Passes over the labelled images."""
    train_batch_size: int = 256
    """Images a step, at most all that are labelled; the last, smaller batch of an epoch is left out."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 0.0
    """Of SGD, on everything that is trained."""

    def __post_init__(self):
        _check(self, "lr", "head_lr", "momentum", "weight_decay")


def _check(config: LinearConfig | FinetuneConfig, *positive: str) -> None:
    check_range(config, 1, 2**40, "epochs")
    check_range(config, 2, 2**40, "train_batch_size")  # batch norm needs two
    check_range(config, 0, 1e6, *positive)
    check_range(config, 0, 1, "momentum")


# Small images: the sources of ReSSL's small-image recipe differ in the learning rate (30 in steps; 0.2 or 1 with a
# cosine), so it is a cosine whose top is chosen on held-out training images.
_SMALL = LinearConfig(lr=0, nesterov=True)
LINEAR = {"imagenet": LinearConfig(), "cifar": _SMALL, "tiny": _SMALL}

# All labels: ours, nothing is published; rates and decay are those of LEWEL's code for 10 % (arXiv 2203.14898).
# Small images: ours too; 1 % of them are a step or two of 256, so 64 a step, with the same rates.
_WHOLE = FinetuneConfig(lr=0.01, head_lr=0.1, epochs=30, weight_decay=1e-4)
_FEW = {"imagenet": FinetuneConfig()} | dict.fromkeys(
    ("cifar", "tiny"), FinetuneConfig(lr=0.01, head_lr=0.1, train_batch_size=64)
)
FINETUNE = {(recipe, labels): _WHOLE if labels == "100%" else few for recipe, few in _FEW.items() for labels in LABELS}
