"""A linear classifier on embeddings: its start, the augmented views it learns from, its accuracy."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..data.loader import batches
from ..errors import InputError, printable
from ..view_recipes import View

CROP = View(scale=(0.08, 1.0))  # a random crop and a flip: linear evaluation in CGH, ReSSL and nearly every other paper


def new_layer(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer: weights from N(0, 0.01), zero bias (CGH's and ReSSL's code)."""
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


def steps(images: ImageSet, epochs: int, batch_size: int) -> tuple[int, int, int]:
    """Images a step (no more than there are), steps an epoch, and steps in all. Raises InputError for one class."""
    classes = 0 if images.labels is None else len(set(images.labels.tolist()))
    if classes < 2:
        raise InputError(f"{printable(images.root)}: {classes} classes; a classifier needs two class folders or more")
    size = min(batch_size, len(images))
    return size, len(images) // size, epochs * (len(images) // size)


def labelled_views(
    images: ImageSet, model: nn.Module, batch_size: int, total: int, *, seed: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """``total`` batches of one view of each image (N, 3, S, S) at the model's input size, and the classes (N,).

    Raises:
        InputError: a bad image: another one in its place would have the wrong label. Or no square input.
    """
    cfg = model.pretrained_cfg
    channels, height, width = cfg["input_size"]  # pyright: ignore
    if (channels, height) != (3, width):
        raise InputError(
            f"its input is {channels} x {height} x {width}; augmented views are 3 x S x S: take a model so"
        )
    config = TrainConfig(
        image_size=height, batch_size=batch_size, seed=seed, mean=cfg["mean"], std=cfg["std"],  # pyright: ignore
        workers=workers, views="fast",
    )  # fmt: skip
    assert images.labels is not None
    labels = torch.from_numpy(images.labels.astype(np.int64)).to(device)
    decode(images)
    for (view,), indices in batches(images, (CROP,), config, 0, total, device):
        _refuse_bad(images)
        yield view.contiguous(memory_format=torch.channels_last), labels[torch.from_numpy(indices).to(device)]


def decode(images: ImageSet) -> None:
    """Decodes the images once and keeps them, where they fit in memory. Raises InputError if one is bad."""
    if images.pixels is None:
        images.keep_pixels(TrainConfig().memory_gib)
    _refuse_bad(images)


def _refuse_bad(images: ImageSet) -> None:
    for index, reason in images.bad.items():
        raise InputError(f"{printable(images.root / images.names[index])}: {reason}; mend or remove it")


@torch.no_grad()
def accuracy(weight: Tensor, bias: Tensor, embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Percent of embeddings (N, D) whose largest score under weight (classes, D) and bias (classes,) is their class.

    A layer that is not finite has 0: it would find the first class everywhere.
    """
    if not (weight.isfinite().all() and bias.isfinite().all()):
        return 0.0
    scores = torch.from_numpy(embeddings).to(weight.dtype) @ weight.cpu().t() + bias.cpu()
    return 100 * float((scores.argmax(1).numpy() == labels).mean())
