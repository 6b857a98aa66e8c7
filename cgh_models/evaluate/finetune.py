"""Fine-tuning on all labels or few: backbone and a linear layer trained with labels, the last epoch's accuracy."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import widths
from ..data.image_set import ImageSet
from ..errors import InputError
from .classifier import accuracy, decode, labelled_views, new_layer, steps
from .extraction import borrowed, check, extract, pick_device
from .protocols import FinetuneConfig

_LOWER = (3 / 7, 6 / 7)  # shares of the run after which the rates fall to a tenth: epochs 30 and 60 of 70 in CGH's code


def rate_at(progress: float) -> float:
    """What the learning rates are multiplied with: 1, then 0.1, then 0.01."""
    return 0.1 ** sum(progress >= share for share in _LOWER)


def finetune(
    model: nn.Module, train: ImageSet, val: ImageSet, config: FinetuneConfig, *,
    seed: int = 0, say: Callable[[str], None] = lambda text: None, **extraction: Any,
) -> float:  # fmt: skip
    """Percent of val images classified after the last epoch; the model itself is trained, batch norms included.

    Args:
        train: the labelled images (see `splits.subset`).
        say: gets a line of progress now and then.
        extraction: batch_size, workers and device of `extract`.

    Raises:
        InputError: unusable images, or a loss that is not finite.

    Source: semi-supervised evaluation in the code of CGH (arXiv 2308.13392). Differs from the authors' code: batch
    norms are not synchronized, and the last epoch is reported, not the best one on val.
    """
    assert val.labels is not None
    device, workers = pick_device(extraction.get("device", "auto")), extraction.get("workers", 2)
    check(extraction.get("batch_size", 256), workers)
    decode(val)  # a bad image is found now, not after the training
    size, per_epoch, total = steps(train, config.epochs, config.train_batch_size)
    with borrowed(model, device):
        layer = new_layer(widths(model)[0], len(train.classes), seed).to(device)
        model.train()
        groups = [{"params": list(module.parameters())} for module in (model, layer)]
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
        views = labelled_views(train, model, size, total, seed=seed, workers=workers, device=device)
        for done, (view, labels) in enumerate(views):
            loss = F.cross_entropy(layer(model(view).float()), labels)
            loss.backward()
            for group, rate in zip(optimizer.param_groups, (config.lr, config.head_lr), strict=True):
                group["lr"] = rate * rate_at(done / total)
            optimizer.step()
            optimizer.zero_grad()
            epoch, ends = (done + 1) // per_epoch, (done + 1) % per_epoch == 0
            if ends and (epoch % max(1, config.epochs // 10) == 0 or epoch == config.epochs):
                _check(loss, model, layer, epoch)
                say(f"epoch {epoch} of {config.epochs}: loss {loss:.4f}")
    return accuracy(layer.weight, layer.bias, extract(model, val, **extraction), val.labels)


def _check(loss: torch.Tensor, model: nn.Module, layer: nn.Module, epoch: int) -> None:
    state = [tensor for module in (model, layer) for tensor in module.state_dict().values()]
    if not (loss.isfinite() and all(t.isfinite().all() for t in state if t.is_floating_point())):
        raise InputError(f"epoch {epoch}: loss or weights are not finite; give a lower --lr or --head-lr")
