"""Parts of training a linear classifier: a new layer, steps on augmented views, accuracy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.loader import batches
from ..errors import InputError, printable
from ..progress import watched
from ..view_recipes import View
from .protocols import EvalSettings, FinetuneConfig, LinearConfig

if TYPE_CHECKING:
    from ..data.image_set import ImageSet

# A random crop and a flip: linear evaluation in CGH, ReSSL and nearly every other paper.
CROP = View(scale=(0.08, 1.0))


@dataclass(frozen=True)
class Step:
    """One step of a training."""

    views: Tensor  # (N, 3, S, S), one of each image, at the model's input size
    labels: Tensor  # (N,)
    progress: float  # share of the training that was done before
    epoch_to_report: int  # the epoch that ends here, if it is the last or one of about ten; else 0


def check_classes(images: "ImageSet") -> None:
    """Raises InputError for fewer than two classes."""
    classes = 0 if images.labels is None else len(set(images.labels.tolist()))
    if classes < 2:
        found = f"{printable(images.place)}: {classes} classes"
        raise InputError(f"{found}; a classifier needs two class folders or more")


def new_layer(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer: weights from N(0, 0.01), zero bias (CGH's and ReSSL's code)."""
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


def training_steps(
    images: "ImageSet",
    model: nn.Module,
    config: LinearConfig | FinetuneConfig,
    settings: EvalSettings,
) -> Iterator[Step]:
    """The steps of a training, with new augmented views in every epoch."""
    check_classes(images)
    cfg: dict = model.pretrained_cfg  # pyright: ignore
    in_chans, height, width = cfg["input_size"]
    if height != width:
        given = f"the model's input is {in_chans} x {height} x {width}"
        raise InputError(f"{given}; augmented views are square: give a model with such an input")
    train_config = TrainConfig(
        image_size=height,
        in_chans=in_chans,
        batch_size=min(config.train_batch_size, len(images)),
        seed=settings.seed,
        mean=cfg["mean"],
        std=cfg["std"],
        workers=settings.workers,
    )
    per_epoch = len(images) // train_config.batch_size
    total = config.epochs * per_epoch
    device = next(model.parameters()).device
    labels = torch.from_numpy(images.labels).to(device, torch.int64)  # pyright: ignore
    loaded = batches(images, (CROP,), train_config, 0, total, device)
    for step, ((views,), indices) in enumerate(watched(loaded, "training", total, "step")):
        for index, reason in images.bad.items():  # a substitute would have the wrong label
            raise InputError(f"{printable(images.where(index))}: {reason}; mend or remove it")
        views = views.contiguous(memory_format=torch.channels_last)
        epoch, rest = divmod(step + 1, per_epoch)
        due = epoch == config.epochs or epoch % max(1, config.epochs // 10) == 0
        report = epoch if due and not rest else 0
        yield Step(views, labels[torch.from_numpy(indices).to(device)], step / total, report)


@torch.no_grad()
def predictions(weight: Tensor, bias: Tensor, embeddings: np.ndarray) -> np.ndarray:
    """The class (N,) with the largest score of each embedding (N, D); -1 of a layer with NaN."""
    if not (weight.isfinite().all() and bias.isfinite().all()):
        return np.full(len(embeddings), -1)  # such a layer finds the first class everywhere
    scores = torch.from_numpy(embeddings).to(weight.dtype) @ weight.cpu().t() + bias.cpu()
    return scores.argmax(1).numpy()


def accuracy(weight: Tensor, bias: Tensor, embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Percent of embeddings (N, D) whose largest score is that of their class (N,)."""
    return 100 * float((predictions(weight, bias, embeddings) == labels).mean())


def best_of_grid(
    grid: tuple[float, ...], values: list[float], held_out: int, measure: str = "accuracy"
) -> tuple[float, dict[str, object]]:
    """The first value of the grid with the best held-out measure, and how it was chosen."""
    chosen = grid[values.index(max(values))]
    return chosen, {
        "grid": list(grid),
        "held_out_images": held_out,
        f"held_out_{measure}": [round(value, 3) for value in values],
        "chosen": chosen,
    }
