"""Linear evaluation as papers do it: one linear layer on the frozen backbone, SGD on augmented images, last epoch."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import widths
from ..data.image_set import ImageSet
from ..errors import InputError
from ..schedule import learning_rate
from .classifier import accuracy, decode, labelled_views, new_layer, steps
from .extraction import borrowed, extract, forward, pick_device
from .protocols import LinearConfig
from .splits import held_out, subset

# Learning rates to choose from, half a decade apart: those of the papers' small-image code (0.2, 1, 30) lie among them.
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CHOICE = 5  # the choice takes one epoch where the run takes this many


def sgd(
    model: nn.Module, train: ImageSet, val: ImageSet, config: LinearConfig, *,
    seed: int = 0, say: Callable[[str], None] = lambda text: None, **extraction: Any,
) -> dict[str, Any]:  # fmt: skip
    """Percent of val images that the layer classifies after its last epoch (``value``), and the numbers behind it.

    With ``config.lr`` 0 the rate is chosen first: layers with each of RATES, trained side by side without the held-out
    training images, and tested on those; the first best one wins, and a new layer is trained on all training images.

    Args:
        say: gets a line of progress now and then.
        extraction: batch_size, workers, device, fast (of augmented images, too) and cache_dir of `extract`.

    Raises:
        InputError: unusable images, or a rate at which the layer is not finite.

    Source: Wu et al., arXiv 1805.01978, as in the code of CGH (arXiv 2308.13392) and ReSSL (arXiv 2107.09282).
    Differs from the authors' code: the last epoch is reported, not the best one on val.
    """
    assert train.labels is not None and val.labels is not None
    how = {name: extraction[name] for name in ("device", "workers", "fast") if name in extraction}
    size, _, _ = steps(train, config.epochs, config.train_batch_size)
    queries = extract(model, val, **extraction)
    decode(train)
    rate, choice = config.lr, None
    if not rate:
        rest, held = held_out(train.labels, seed)
        short = dataclasses.replace(config, epochs=-(-config.epochs // CHOICE))
        say(f"choosing the learning rate on {len(held)} held-out training images, {short.epochs} epochs")
        layers = _layers(model, subset(train, rest), RATES, short, seed, say, **how)
        rows = extract(model, train, indices=held, **extraction)
        found = [accuracy(layer.weight, layer.bias, rows, train.labels[held]) for layer in layers]
        rate = RATES[found.index(max(found))]
        choice = {"grid": list(RATES), "held_out_images": len(held), "epochs": short.epochs,
                  "held_out_accuracy": [round(value, 3) for value in found], "chosen": rate}  # fmt: skip
        edge = ", at the edge of what was tried" if rate in (RATES[0], RATES[-1]) else ""
        say(f"chosen: learning rate {rate:g}{edge}, {max(found):.2f} % of the held-out images")
    (layer,) = _layers(model, train, (rate,), config, seed, say, **how)
    if not all(p.isfinite().all() for p in layer.parameters()):
        raise InputError(f"learning rate {rate:g}: the linear layer is not finite; give a lower --lr, or 0 to choose")
    value = accuracy(layer.weight, layer.bias, queries, val.labels)
    settings = dataclasses.asdict(config) | {"lr": rate, "train_batch_size": size, "weight_decay": 0.0}
    return {"value": value, **settings, "seed": seed, "choice": choice}


def _layers(
    model: nn.Module, images: ImageSet, rates: tuple[float, ...], config: LinearConfig, seed: int,
    say: Callable[[str], None], *, device: str | torch.device = "auto", workers: int = 2, fast: bool = False,
) -> list[nn.Linear]:  # fmt: skip
    """A trained layer per learning rate. All start alike and see the same embeddings: one forward serves them all."""
    size, per_epoch, total = steps(images, config.epochs, config.train_batch_size)
    with borrowed(model, place := pick_device(device)):
        width = widths(model)[0]
        layers = [new_layer(width, len(images.classes), seed).to(place) for _ in rates]
        groups = [{"params": list(layer.parameters())} for layer in layers]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov)
        embed = forward(model, place, fast)
        views = labelled_views(images, model, size, total, seed=seed, workers=workers, device=place)
        for done, (view, labels) in enumerate(views):
            rows = embed(view).clone()  # (N, D); a copy, since autograd takes no tensors of inference mode
            losses = torch.stack([F.cross_entropy(layer(rows), labels) for layer in layers])
            losses.sum().backward()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate(done / total, rate, warmup=0)
            optimizer.step()
            optimizer.zero_grad()
            epoch, ends = (done + 1) // per_epoch, (done + 1) % per_epoch == 0
            if ends and (epoch % max(1, config.epochs // 10) == 0 or epoch == config.epochs):
                least = losses.detach().nan_to_num(float("inf")).min().item()
                say(f"epoch {epoch} of {config.epochs}: loss {least:.4f}")
                if epoch == config.epochs and least > (guess := math.log(len(images.classes))):
                    say(f"warning: the loss ended above that of guessing, {guess:.4f}; give a lower --lr")
    return layers
