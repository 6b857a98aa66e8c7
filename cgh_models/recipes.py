"""The named recipes: settings that go together, by kind of images and by method. Light: no torch, no timm."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .config import TrainConfig, from_dict, unknown
from .errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; what a method has no field for is left out."""

    arch: str
    train: dict[str, Any]  # fields of TrainConfig, for every method
    method: dict[str, Any]  # fields of a method's Config, for every method
    of_method: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)  # the same two, for one


_SMALL = {"base_lr": 0.06, "weight_decay": 5e-4, "decay_norms": True, "crop_pct": 1.0}
_SMALL_HEADS = {"projection_width": 128, "hidden_width": 2048}
_LARS = {"optimizer": "lars", "warmup_epochs": 10.0}

# imagenet: each paper's own values. MNCLGLF has one config, CIFAR at 224 pixels with a ResNet-18; LEWEL's is its 200
# epochs with EMAN, 3.6 at 1024 images; NNCLR is trained as BYOL, which is this project's choice; LEWEL_M's values are
# those of MoCo v2 in the code base LEWEL is built on.
_IMAGENET = {
    "moco_v2": ({"base_lr": 0.03, "warmup_epochs": 0.0}, {}),
    "byol": ({**_LARS, "base_lr": 0.45, "weight_decay": 1e-6, "batch_size": 4096, "epochs": 100}, {}),
    "lewel": ({**_LARS, "base_lr": 0.9, "weight_decay": 1.5e-6, "batch_size": 1024}, {}),
    "lewel_m": ({"base_lr": 0.03, "warmup_epochs": 10.0}, {}),
    "nnclr": ({**_LARS, "base_lr": 0.45, "weight_decay": 1e-6}, {}),
    "mnclglf": ({"base_lr": 0.1, "decay_norms": True, "warmup_epochs": 0.0, "clip_norm": 1.0}, {}),
}
# Small images. MoCo v2's temperature: the authors' CIFAR demo. Heads of BYOL, LEWEL, NNCLR, MNCLGLF: ours, nothing is
# published; blur is out of BYOL's views on CIFAR as in solo-learn.
_HEADS = {"projection_width": 256, "hidden_width": 1024}
_FEW = {**_HEADS, "predictor_width": 1024}
_TINY = {
    "moco_v2": ({}, {"temperature": 0.1}),
    "byol": ({}, _HEADS | {"teacher_momentum": 0.99}),
    "lewel": ({}, _HEADS | {"teacher_momentum": 0.99}),
    "lewel_m": ({}, {"hidden_width": 1024}),
    "nnclr": ({}, _FEW),
    "mnclglf": ({"clip_norm": 1.0}, _FEW),
}
_CIFAR = _TINY | {name: (_TINY[name][0], {**_TINY[name][1], "blur": False}) for name in ("byol", "lewel")}

# cifar and tiny: ReSSL's small-data recipe (arXiv 2107.09282, authors' small-dataset code); for the others the same
# trainer's values are this project's choice.
RECIPES = {
    "imagenet": Recipe("resnet50", {}, {}, _IMAGENET),
    "cifar": Recipe(
        "resnet18_cifar",
        {"image_size": 32, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010), **_SMALL},
        {"queue_length": 4096, "teacher_momentum": 0.99, **_SMALL_HEADS},
        _CIFAR,
    ),
    "tiny": Recipe(
        "resnet18_small",
        {"image_size": 64, "mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262), **_SMALL},
        {"queue_length": 16384, "teacher_momentum": 0.996, **_SMALL_HEADS},
        _TINY,
    ),
}


# AdamW's rate and decay have nothing to do with SGD's or LARS's: ours, for any method, recipe and batch size.
_ADAMW = {"optimizer": "adamw", "base_lr": 5e-4, "weight_decay": 0.05, "decay_norms": False}


def train_config(recipe: str, method: str = "", optimizer: str = "") -> TrainConfig:
    """The trainer's settings of a recipe, for a method of that name if it has values of its own."""
    chosen = RECIPES[recipe]
    values = chosen.train | chosen.of_method.get(method, ({}, {}))[0]
    return dataclasses.replace(TrainConfig(), **values | (_ADAMW if optimizer == "adamw" else {}))


def method_config(method: Any, recipe: str, train: TrainConfig, settings: tuple[str, ...] = ()) -> Any:
    """A method's Config from a recipe, the run's warm-up and ``KEY=VALUE`` settings, the last word being theirs.

    Args:
        method: the class.

    Raises:
        InputError: an unknown key, or a value that is not of the field's type.
    """
    chosen = RECIPES[recipe]
    known = {f.name for f in dataclasses.fields(method.Config)}
    given = chosen.method | chosen.of_method.get(method.name, ({}, {}))[1]
    values = {key: value for key, value in given.items() if key in known}
    if "warmup" in known:
        values["warmup"] = train.warmup
    config = from_dict(method.Config, values | _parse(method.Config, settings), complete=False)
    splits = getattr(config, "batch_norm_splits", 1)
    if train.batch_size < 2 * splits:
        raise InputError(f"batch_norm_splits={splits}: needs --batch-size {2 * splits} or more, 2 images a part")
    return config


def _parse(config_class: type, settings: tuple[str, ...]) -> dict[str, Any]:
    types = get_type_hints(config_class)
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if key not in types:
            raise InputError(f"--set {setting}: {unknown(key, list(types))}; write --set KEY=VALUE")
        if not equals:
            raise InputError(f"--set {setting}: has no value; write --set {setting}=VALUE")
        values[key] = _value(setting, text, types[key])
    return values


def _value(setting: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InputError(f"--set {setting}: {text!r} is none of {', '.join(get_args(kind))}")
        return text
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise InputError(f"--set {setting}: {text!r} is not a {kind.__name__}") from error
