"""Parts of training a linear classifier: steps, a new layer, augmented views, accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..data.loader import batches
from ..errors import InputError, printable
from ..view_recipes import View
from .protocols import EvalSettings

# A random crop and a flip: linear evaluation in CGH, ReSSL and nearly every other paper.
CROP = View(scale=(0.08, 1.0))


@dataclass(frozen=True)
class StepCounts:
    """Of a training: epochs, images a step, steps an epoch, and steps in all."""

    epochs: int
    batch_size: int
    per_epoch: int
    total: int

    def epoch_to_report(self, step: int) -> int:
        """The epoch that ends with ``step``, if it is the last or one of about ten; else 0."""
        epoch, rest = divmod(step + 1, self.per_epoch)
        due = epoch == self.epochs or epoch % max(1, self.epochs // 10) == 0
        return epoch if due and not rest else 0


def step_counts(images: ImageSet, epochs: int, batch_size: int) -> StepCounts:
    """The steps of a training. Raises InputError for fewer than two classes."""
    classes = 0 if images.labels is None else len(set(images.labels.tolist()))
    if classes < 2:
        found = f"{printable(images.root)}: {classes} classes"
        raise InputError(f"{found}; a classifier needs two class folders or more")
    size = min(batch_size, len(images))
    per_epoch = len(images) // size
    return StepCounts(epochs, size, per_epoch, epochs * per_epoch)


def new_layer(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer: weights from N(0, 0.01), zero bias (CGH's and ReSSL's code)."""
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


def labelled_views(
    images: ImageSet, model: nn.Module, steps: StepCounts, settings: EvalSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step: views (N, 3, S, S) at the model's input size, one an image, and classes (N,).

    Raises:
        InputError: the model's input is not square, or an image has become bad: another one in its
            place would have the wrong label.
    """
    cfg: dict = model.pretrained_cfg  # pyright: ignore
    channels, height, width = cfg["input_size"]
    if (channels, height) != (3, width):
        given = f"the model's input is {channels} x {height} x {width}"
        raise InputError(f"{given}; augmented views are 3 x S x S: give a model with such an input")
    config = TrainConfig(
        image_size=height,
        batch_size=steps.batch_size,
        seed=settings.seed,
        mean=cfg["mean"],
        std=cfg["std"],
        workers=settings.workers,
        views="fast",
    )
    device = next(model.parameters()).device
    labels = torch.from_numpy(images.labels).to(device, torch.int64)  # pyright: ignore
    for (view,), indices in batches(images, (CROP,), config, 0, steps.total, device):
        for index, reason in images.bad.items():
            raise InputError(f"{printable(images.path(index))}: {reason}; mend or remove it")
        chosen = torch.from_numpy(indices).to(device)
        yield view.contiguous(memory_format=torch.channels_last), labels[chosen]


@torch.no_grad()
def accuracy(weight: Tensor, bias: Tensor, embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Percent of embeddings (N, D) whose largest score is that of their class (N,).

    Scores are those of weight (classes, D) and bias (classes,). A layer that is not finite has 0:
    it would find the first class everywhere.
    """
    if not (weight.isfinite().all() and bias.isfinite().all()):
        return 0.0
    scores = torch.from_numpy(embeddings).to(weight.dtype) @ weight.cpu().t() + bias.cpu()
    return 100 * float((scores.argmax(1).numpy() == labels).mean())


def choose(
    grid: tuple[float, ...], accuracies: list[float], held_out: int
) -> tuple[float, dict[str, object]]:
    """The first value of the grid with the best held-out accuracy, and how it was chosen."""
    chosen = grid[accuracies.index(max(accuracies))]
    return chosen, {
        "grid": list(grid),
        "held_out_images": held_out,
        "held_out_accuracy": [round(value, 3) for value in accuracies],
        "chosen": chosen,
    }
