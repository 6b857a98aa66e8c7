"""The rows that the zoo is to hold, in the order in which they are trained, and their commands."""

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any

from cgh_models.config import TrainConfig
from cgh_models.methods import METHODS
from cgh_models.recipes import method_config, train_config

# What cards say of the images: name, terms, limits.
DATA = {
    "cifar10": (
        "CIFAR-10 (JPEG)",
        "No licence was published with these photographs; they are their owners', collected by "
        "A. Krizhevsky, V. Nair and G. Hinton (2009), and were used here for research.",
        "Trained on photographs of 32 px: expect little of it on larger ones.",
    ),
    "tiny-imagenet-200": (
        "Tiny ImageNet",
        "Images of ImageNet, whose terms allow non-commercial research and education; the licence "
        "below is that of the weights, not of the images.",
        "Trained on photographs of 64 px: expect less of it on large ones.",
    ),
}
# The recipe of such images: by it a row is evaluated, and trained if it names no other.
RECIPE = {"cifar10": "cifar", "tiny-imagenet-200": "tiny"}


@dataclass(frozen=True)
class Wanted:
    """A row of the zoo.

    Attributes:
        data: folder with train/ and val/ under the data folder.
        epochs: as many as the row is to have; with less time it gets fewer.
        cpu_epochs: the same on a processor, where an epoch can take half an hour; 0: as many.
        least: with fewer it is not worth its place, and is not trained.
        recipe: whose settings it is trained with; empty: that of its images.
        image_size, base_lr, batch_size: 0: the recipe's.
        settings: KEY=VALUE of the method's own.
        notes: what its card says beside the limits of the images.
        shipped: the weights, too; else only the numbers, in ``numbers.json``.
        like: name of the row whose number of epochs it has to have, to be compared with it.
        packaged: in the wheel.
        heads: beside the backbone, in the repository, as in `cgh export --heads`.
    """

    arch: str
    method: str
    tag: str
    data: str
    epochs: int
    least: int
    recipe: str = ""
    image_size: int = 0
    base_lr: float = 0
    batch_size: int = 0
    seed: int = 0
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    like: str = ""
    shipped: bool = True
    packaged: bool = False
    heads: str = "none"
    cpu_epochs: int = 0

    @property
    def name(self) -> str:
        """``architecture.tag``."""
        return f"{self.arch}.{self.tag}"

    @property
    def trained_by(self) -> str:
        """Its own recipe, or that of its images."""
        return self.recipe or RECIPE[self.data]

    def configs(
        self, epochs: int, device: str = "auto", workers: int = 2
    ) -> tuple[TrainConfig, Any]:
        """The trainer's and the method's settings for so many epochs."""
        train = dataclasses.replace(
            train_config(self.trained_by, self.method),
            epochs=epochs,
            seed=self.seed,
            device=device,
            workers=workers,
        )
        train = dataclasses.replace(
            train,
            image_size=self.image_size or train.image_size,
            base_lr=self.base_lr or train.base_lr,
            batch_size=self.batch_size or train.batch_size,
        )
        return train, method_config(METHODS[self.method], self.trained_by, train, self.settings)

    def command(self, epochs: int) -> str:
        """What trains it on the command line."""
        words = ["cgh", "pretrain", "--data", f"{self.data}/train", "--out", f"runs/{self.name}"]
        words += ["--method", self.method, "--arch", self.arch, "--recipe", self.trained_by]
        words += ["--epochs", str(epochs)]
        words += ["--image-size", str(self.image_size)] if self.image_size else []
        words += ["--batch-size", str(self.batch_size)] if self.batch_size else []
        words += ["--base-lr", str(self.base_lr)] if self.base_lr else []
        words += ["--seed", str(self.seed)] if self.seed else []
        words += [word for setting in self.settings for word in ("--set", setting)]
        return shlex.join(words)


def _cifar(method: str, **more: Any) -> Wanted:
    more = {"tag": f"{method}_cifar10"} | more
    return Wanted("resnet18_cifar", method, data="cifar10", epochs=200, least=100, **more)


def _numbers(method: str, **more: Any) -> Wanted:
    """Beside CGH's row, for as many epochs."""
    return _cifar(method, shipped=False, like=_cifar("cgh").name, **more)


def _tiny(arch: str, method: str, **more: Any) -> Wanted:
    more = {"epochs": 19, "least": 19, "image_size": 64, "batch_size": 128, "base_lr": 0.12} | more
    return Wanted(arch, method, method, "tiny-imagenet-200", **more)


# Two cores train this one in 70 minutes, those of Tiny ImageNet in hours.
_SMALL = Wanted(
    "resnet10_cifar_fast",
    "cgh",
    "cgh_cifar10",
    "cifar10",
    epochs=64,
    least=60,
    recipe="cifar-fast",
    packaged=True,
    notes=(
        "A small network, trained on a processor for fewer epochs than the papers' 200: it is here "
        "so that everything can be tried offline, and is no rival of larger backbones.",
        "The network, the optimizer and the schedule are those of short runs, chosen on held-out "
        "training images (benchmarks/short_runs/NOTES.md).",
    ),
)


def _on_gpu(how: str) -> tuple[str, ...]:
    """The note of a row that a GPU trained in minutes: for how long, beside what."""
    start = "a start for your own pretraining, not a rival of ImageNet weights"
    return (f"Trained on one GPU for {how}: {start}.",)


_START = _on_gpu("some five minutes, beside another training")
_NINE = _on_gpu("nine minutes, beside other trainings")
_MINUTES = _on_gpu("three to four minutes, beside other trainings")
_FEWER = ("Has fewer epochs than the rows of its size: not to be compared at equal epochs.",)
# Chosen on held-out training images (NOTES.md): InfoNCE fades over the whole run, sharper.
_CGH = ("warmup=1.0", "warmup_temperature=0.1")
ROWS = (
    _SMALL,
    _tiny("resnet18", "cgh", packaged=True, heads="student", settings=_CGH, notes=_START),
    _tiny(
        "resnet50",
        "cgh",
        epochs=50,
        cpu_epochs=20,
        batch_size=256,
        settings=_CGH,
        notes=_NINE,
    ),
    _tiny("resnet18", "ressl", like="resnet18.cgh", notes=_MINUTES),
    _tiny("resnet18", "moco_v2", like="resnet18.cgh", notes=_MINUTES),
    _tiny("resnet18", "lewel", like="resnet18.cgh", notes=_NINE),
    _tiny("resnet18", "mnclglf", epochs=6, least=6, notes=_FEWER + _MINUTES),  # a step costs three
    _cifar("cgh", shipped=False),  # no room for its 22 MB in the repository
    _numbers("ressl"),
    *(_numbers(method) for method in ("moco_v2", "byol", "nnclr", "mnclglf", "lewel", "lewel_m")),
    *(
        _numbers(method, seed=seed, tag=f"{method}_cifar10_seed{seed}")
        for seed in (1, 2)
        for method in ("cgh", "ressl")
    ),
)
