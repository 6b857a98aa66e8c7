"""Fine-tuning: backbone and a linear layer trained on all labels or few."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import widths
from ..data.image_set import ImageSet
from ..errors import InputError
from .classifier import accuracy, new_layer, training_steps
from .devices import pick_device
from .embedder import eval_mode_on, extract_labelled, readable_images
from .protocols import EvalSettings, FinetuneConfig, Measurement
from .splits import subset

# The rates fall to a tenth after these shares of the run: epochs 30 and 60 of 70 in CGH's code.
_DROPS = (3 / 7, 6 / 7)


def rate_at(progress: float) -> float:
    """The factor on the learning rates: 1, then 0.1, then 0.01."""
    return 0.1 ** sum(progress >= drop for drop in _DROPS)


def finetune(
    model: nn.Module, train: ImageSet, val: ImageSet, config: FinetuneConfig, settings: EvalSettings
) -> Measurement:
    """Accuracy after the last epoch; the model itself is trained, batch norms included.

    Source: semi-supervised evaluation in CGH's code (arXiv 2308.13392). Differs from the authors'
    code: batch norms are not synchronized, and the last epoch is reported, not the best on val.
    """
    device = pick_device(settings.device)
    val = readable_images(val, settings.workers)  # bad images are found before the training
    train = readable_images(train, settings.workers)
    with eval_mode_on(model, device):
        layer = new_layer(widths(model)[0], len(train.classes), settings.seed).to(device)
        model.train()
        groups = [{"params": list(module.parameters())} for module in (model, layer)]
        optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay
        )
        for step in training_steps(train, model, config, settings):
            loss = F.cross_entropy(layer(model(step.views).float()), step.labels)
            loss.backward()
            backbone_group, layer_group = optimizer.param_groups
            backbone_group["lr"] = config.lr * rate_at(step.progress)
            layer_group["lr"] = config.head_lr * rate_at(step.progress)
            optimizer.step()
            optimizer.zero_grad()
            if epoch := step.epoch_to_report:
                trained = nn.ModuleList([model, layer]).state_dict().values()
                if not all(tensor.isfinite().all() for tensor in (loss, *trained)):
                    what = f"epoch {epoch}: loss or weights are not finite"
                    raise InputError(f"{what}; give a lower --lr or --head-lr")
                settings.log(f"epoch {epoch} of {config.epochs}: loss {loss:.4f}")
    rows, labels = extract_labelled(model, val, settings)
    batch_size = min(config.train_batch_size, len(train))
    parameters = dataclasses.asdict(config) | {"train_batch_size": batch_size}
    parameters |= {"seed": settings.seed, "labelled": len(train)}
    protocol = "backbone and linear layer trained on train/, top-1 of val/ after the last epoch"
    value = accuracy(layer.weight, layer.bias, rows, labels)
    return Measurement(protocol, parameters, value, len(rows))


def finetune_on_share(
    model: nn.Module,
    train: ImageSet,
    val: ImageSet,
    percent: int,
    indices: np.ndarray,
    names_sha256: str,
    config: FinetuneConfig,
    settings: EvalSettings,
) -> Measurement:
    """`finetune` on so many percent of train/, which and their hash as `splits.labelled` says."""
    found = finetune(model, subset(train, indices), val, config, settings)
    found = found.with_parameters(labels=f"{percent}%", names_sha256=names_sha256)
    text = found.protocol.replace("train/", f"{percent}% of train/")
    return dataclasses.replace(found, protocol=text)
