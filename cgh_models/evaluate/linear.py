"""Linear evaluation as in papers: a layer on the frozen backbone, SGD on augmented images."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import widths
from ..data.image_set import ImageSet
from ..errors import InputError
from ..schedule import learning_rate
from .classifier import accuracy, best_of_grid, check_classes, new_layer, training_steps
from .devices import pick_device
from .embedder import embed_function, eval_mode_on, extract_labelled, readable_images
from .protocols import EvalSettings, LinearConfig, Measurement
from .splits import held_out, subset

# Half a decade apart: the rates of the papers' small-image code (0.2, 1, 30) lie among them.
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_CHOICE = 5  # the choice takes one epoch where the run takes this many


def sgd(
    model: nn.Module, train: ImageSet, val: ImageSet, config: LinearConfig, settings: EvalSettings
) -> Measurement:
    """Accuracy of the layer after its last epoch; ``settings.fast`` holds for augmented images too.

    With ``config.lr`` 0 the rate is chosen first: layers with each of RATES are trained side by
    side without the held-out training images, and tested on those. The first best one wins, and a
    new layer is trained on all training images.

    Source: Wu et al., arXiv 1805.01978, as in the code of CGH (arXiv 2308.13392) and ReSSL (arXiv
    2107.09282). Differs from the authors' code: the last epoch is reported, not the best on val.
    """
    check_classes(train)
    queries, labels = extract_labelled(model, val, settings)
    train = readable_images(train, settings.workers)
    lr, choice = (config.lr, None) if config.lr else _choose_rate(model, train, config, settings)
    (layer,) = _train_layers(model, train, (lr,), config, settings)
    if not (layer.weight.isfinite().all() and layer.bias.isfinite().all()):
        what = f"learning rate {lr:g}: the linear layer is not finite"
        raise InputError(f"{what}; give a lower --lr, or 0 to choose")
    batch_size = min(config.train_batch_size, len(train))
    config = dataclasses.replace(config, lr=lr, train_batch_size=batch_size)
    parameters = {"protocol": "sgd", **dataclasses.asdict(config), "weight_decay": 0.0}
    parameters |= {"seed": settings.seed, "choice": choice, "train": len(train)}
    value = accuracy(layer.weight, layer.bias, queries, labels)
    protocol = "linear layer on the frozen backbone, SGD on augmented train/ (crop, flip), "
    protocol += "top-1 of val/ after the last epoch"
    return Measurement(protocol, parameters | settings.recorded, value, len(queries))


def _choose_rate(
    model: nn.Module, train: ImageSet, config: LinearConfig, settings: EvalSettings
) -> tuple[float, dict[str, object]]:
    assert train.labels is not None
    rest, held = held_out(train.labels, settings.seed)
    config = dataclasses.replace(config, epochs=math.ceil(config.epochs / _CHOICE))
    images = f"{len(held)} held-out training images"
    settings.log(f"choosing the learning rate on {images}, {config.epochs} epochs")
    layers = _train_layers(model, subset(train, rest), RATES, config, settings)
    rows, labels = extract_labelled(model, subset(train, held), settings)
    accuracies = [accuracy(layer.weight, layer.bias, rows, labels) for layer in layers]
    rate, choice = best_of_grid(RATES, accuracies, len(held))
    edge = ", at the edge of what was tried" if rate in (RATES[0], RATES[-1]) else ""
    best = f"{max(accuracies):.2f} % of the held-out images"
    settings.log(f"chosen: learning rate {rate:g}{edge}, {best}")
    return rate, choice | {"epochs": config.epochs}


def _train_layers(
    model: nn.Module,
    images: ImageSet,
    rates: tuple[float, ...],
    config: LinearConfig,
    settings: EvalSettings,
) -> list[nn.Linear]:
    """A trained layer per learning rate. All start alike, and one forward serves them all."""
    device = pick_device(settings.device)
    classes = len(images.classes)
    loss = 0.0
    with eval_mode_on(model, device):
        width, _ = widths(model)
        layers = [new_layer(width, classes, settings.seed).to(device) for _ in rates]
        groups = [{"params": list(layer.parameters())} for layer in layers]
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov)
        embed = embed_function(model, device, settings.fast)
        for step in training_steps(images, model, config, settings):
            rows = embed(step.views).clone()  # (N, D); autograd takes no inference-mode tensors
            losses = torch.stack([F.cross_entropy(layer(rows), step.labels) for layer in layers])
            losses.sum().backward()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate(step.progress, rate, warmup=0)
            optimizer.step()
            optimizer.zero_grad()
            if step.epoch_to_report:
                loss = losses.detach().nan_to_num(float("inf")).min().item()
                settings.log(f"epoch {step.epoch_to_report} of {config.epochs}: loss {loss:.4f}")
    if loss > math.log(classes):  # of the last epoch
        above = f"the loss ended above that of guessing, {math.log(classes):.4f}"
        settings.log(f"warning: {above}; give a lower --lr")
    return layers
