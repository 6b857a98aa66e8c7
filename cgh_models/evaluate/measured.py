"""Measurements as a row of the manifest holds them: protocol, every number that changes the value, value, images."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from ..data.image_set import ImageSet
from ..errors import InputError, printable
from .linear import sgd
from .neighbours import knn_accuracy
from .probes import probe
from .protocols import LinearConfig

PROTOCOLS = {
    "knn": "kNN top-1 of val/ against train/, votes weighted by exp(cosine / temperature)",
    "sgd": "linear layer on the frozen backbone, SGD on augmented train/ (crop, flip), top-1 of val/ after the last "
    "epoch",
    "lbfgs": "multinomial logistic regression (L-BFGS) on standardized embeddings of plain train/, top-1 of val/",
    "ridge": "one-vs-all ridge regression (closed form) on standardized embeddings of plain train/, top-1 of val/",
}
TOLERANCE = {"knn": 0.1, "linear": 0.5}  # percent points: rounding moves a kNN, a layer's training a little more

Measured = dict[str, Any]


def knn(
    model: nn.Module, train: ImageSet, val: ImageSet, *, k: int = 20, temperature: float = 0.07, **extraction: Any
) -> Measured:
    """`knn_accuracy`, and how it was found."""
    value = knn_accuracy(model, train, val, k=k, temperature=temperature, **extraction)
    parameters = {"k": k, "temperature": temperature, "memory": len(train), **_fast(extraction)}
    return _measured("knn", parameters, value, val)


def linear(
    protocol: str, model: nn.Module, train: ImageSet, val: ImageSet, config: LinearConfig, recipe: str, *,
    seed: int = 0, say: Callable[[str], None] = lambda text: None, **extraction: Any,
) -> Measured:  # fmt: skip
    """`sgd` or `probe`, and how it was found; ``config`` and the ``recipe`` it is of are those of sgd."""
    if protocol == "sgd":
        found = {"recipe": recipe, **sgd(model, train, val, config, seed=seed, say=say, **extraction)}
    else:
        found = probe(protocol, model, train, val, seed=seed, say=say, **extraction)
    value = found.pop("value")
    return _measured(protocol, {"protocol": protocol, **found, "train": len(train), **_fast(extraction)}, value, val)


def again(metric: str, published: Measured, model: nn.Module, train: ImageSet, val: ImageSet, **how: Any) -> float:
    """The value that the same measurement finds now. ``how``: batch_size, workers, device; ``say`` for linear.

    Raises:
        InputError: other images than those it was measured on, or not all was published that this takes.
    """
    numbers, say = published["parameters"], how.pop("say", lambda text: None)
    settings = [field.name for field in dataclasses.fields(LinearConfig)]
    names = ["k", "temperature", "memory"] if metric == "knn" else ["seed", "recipe", "train", *settings]
    if missing := [name for name in names if name not in numbers]:
        raise InputError(f"{metric} was published without its {missing[0]}: it cannot be measured again")
    counts = numbers["memory" if metric == "knn" else "train"], published["n"]
    if (len(train), len(val)) != counts:
        raise InputError(
            f"{len(train)} images in train/ and {len(val)} in val/, expected {counts[0]} and {counts[1]} of "
            f"{printable(published['data'])}; give --data those"
        )
    how["fast"] = numbers.get("fast", False)
    if metric == "knn":
        return knn(model, train, val, k=numbers["k"], temperature=numbers["temperature"], **how)["value"]
    config = LinearConfig(**{name: numbers[name] for name in settings})
    found = linear("sgd", model, train, val, config, numbers["recipe"], seed=numbers["seed"], say=say, **how)
    return found["value"]


def _fast(extraction: dict[str, Any]) -> dict[str, bool]:
    return {"fast": True} if extraction.get("fast") else {}


def _measured(protocol: str, parameters: dict[str, Any], value: float, val: ImageSet) -> Measured:
    return {"protocol": PROTOCOLS[protocol], "parameters": parameters, "value": round(value, 3), "n": len(val)}
