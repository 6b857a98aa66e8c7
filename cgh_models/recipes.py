"""The named recipes: settings by kind of images and by method. Light: no torch, no timm."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from .config import TrainConfig
from .dataclass_json import from_dict
from .errors import InputError

Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Settings that go together; those of one method come after those of all methods."""

    arch: str
    train: Values = field(default_factory=dict)  # fields of TrainConfig
    method: Values = field(default_factory=dict)  # fields of Config, for methods that have them
    train_of: dict[str, Values] = field(default_factory=dict)  # the same for one method, by name
    method_of: dict[str, Values] = field(default_factory=dict)


_LARS = {"optimizer": "lars", "warmup_epochs": 10.0}
_LEWEL = {"base_lr": 0.9, "lr_in_momentum": True}  # the LARS of its code base, EMAN
_SMALL_IMAGES = {"base_lr": 0.06, "weight_decay": 5e-4, "decay_norms": True, "crop_pct": 1.0}
_TINY_PIXELS = {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262)}
_CIFAR_PIXELS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
_SMALL_HEADS = {"projection_width": 128, "hidden_width": 2048}
_NARROW_HEADS = {"projection_width": 256, "hidden_width": 1024}
_NARROW_PREDICTOR = _NARROW_HEADS | {"predictor_width": 1024}
_FAST_TEACHER = _NARROW_HEADS | {"teacher_momentum": 0.99}
_WITHOUT_BLUR = _FAST_TEACHER | {"blur": False}  # in BYOL's views, as in solo-learn
_SCE_HEAD = {"hidden_width": 512}  # a ResNet-18's own width

_MOCO_DEMO = {"temperature": 0.1, "batch_norm_splits": 8, "blur": False, "wide_crops": True}

# Each paper's own values. MNCLGLF has one config, CIFAR at 224 pixels with a ResNet-18; LEWEL's is
# its 200 epochs with EMAN, 3.6 at 1024 images; NNCLR is trained as BYOL, which is this project's
# choice, as is SCE as ReSSL (its authors' run on ImageNet has other networks, and LARS); LEWEL_M's
# values are those of MoCo v2 in the code base LEWEL is built on.
_IMAGENET = Recipe(
    arch="resnet50",
    train_of={
        "moco_v2": {"base_lr": 0.03, "warmup_epochs": 0.0},
        "byol": _LARS | {"base_lr": 0.45, "weight_decay": 1e-6, "batch_size": 4096, "epochs": 100},
        "lewel": _LARS | _LEWEL | {"weight_decay": 1.5e-6, "batch_size": 1024},
        "lewel_m": {"base_lr": 0.03, "warmup_epochs": 10.0},
        "nnclr": _LARS | {"base_lr": 0.45, "weight_decay": 1e-6},
        "mnclglf": {"base_lr": 0.1, "decay_norms": True, "warmup_epochs": 0.0, "clip_norm": 1.0},
    },
)
# Small images: ReSSL's small-data recipe (arXiv 2107.09282, authors' small-dataset code); for the
# other methods the same trainer's values are this project's choice. MoCo v2 on CIFAR: the
# authors' demo, 0.06 at 512 images; on tiny images its temperature. SCE on CIFAR: its authors'
# CIFAR-10 run, which has the same trainer; on tiny images its head. Heads of BYOL, LEWEL, NNCLR,
# MNCLGLF: ours, nothing is published.
_TINY = Recipe(
    arch="resnet18_small",
    train=_SMALL_IMAGES | _TINY_PIXELS | {"image_size": 64},
    method=_SMALL_HEADS | {"queue_length": 16384, "teacher_momentum": 0.996},
    train_of={"mnclglf": {"clip_norm": 1.0}},
    method_of={
        "moco_v2": {"temperature": 0.1},
        "byol": _FAST_TEACHER,
        "lewel": _FAST_TEACHER,
        "lewel_m": {"hidden_width": 1024},
        "nnclr": _NARROW_PREDICTOR,
        "mnclglf": _NARROW_PREDICTOR,
        "sce": _SCE_HEAD,
    },
)
_CIFAR = Recipe(
    arch="resnet18_cifar",
    train=_SMALL_IMAGES | _CIFAR_PIXELS | {"image_size": 32},
    method=_SMALL_HEADS | {"queue_length": 4096, "teacher_momentum": 0.99},
    train_of=_TINY.train_of
    | {"moco_v2": {"base_lr": 0.03, "batch_size": 512, "warmup_epochs": 0.0}},
    method_of=_TINY.method_of
    | {"byol": _WITHOUT_BLUR, "lewel": _WITHOUT_BLUR, "moco_v2": _MOCO_DEMO}
    | {"sce": _SCE_HEAD | {"batch_norm_splits": 8}},
)
# A step of Muon is as long as the rate, whatever the gradient: ours, as is the fast recipe, half an
# hour of two processor cores; both from short runs of CGH (benchmarks/short_runs/NOTES.md).
_MUON = {"optimizer": "muon", "base_lr": 0.12}
_FAST = _MUON | {"epochs": 20, "batch_size": 128}
_CIFAR_FAST = dataclasses.replace(
    _CIFAR, arch="resnet10_cifar_fast", train=_CIFAR.train | _FAST, train_of=_TINY.train_of
)
RECIPES = {"imagenet": _IMAGENET, "cifar": _CIFAR, "tiny": _TINY, "cifar-fast": _CIFAR_FAST}

# What the papers chose for 200 epochs teaches little in a few: there CGH's relations need longer
# before its teacher is worth copying (ours, benchmarks/short_runs/NOTES.md). In full up to 100
# epochs, less and less up to 200, where the papers' values are all.
_SHORT_RUN: dict[str, dict[str, float]] = {"cgh": {"warmup": 1.0, "warmup_temperature": 0.1}}
_SHORT, _LONG = 100, 200  # epochs

# AdamW's rate and decay are not those of SGD or LARS: ours, for any method, recipe and batch size.
_ADAMW = {"optimizer": "adamw", "base_lr": 5e-4, "weight_decay": 0.05, "decay_norms": False}
OF_OPTIMIZER: dict[str, Values] = {"muon": _MUON, "adamw": _ADAMW}  # what any recipe then has


def train_config(recipe: str, method: str = "", optimizer: str = "") -> TrainConfig:
    """The trainer's settings of a recipe, for the method and the optimizer of that name."""
    chosen = RECIPES[recipe]
    values = chosen.train | chosen.train_of.get(method, {})
    return TrainConfig(**values | OF_OPTIMIZER.get(optimizer, {}))


def method_config(
    method: Any, recipe: str, train: TrainConfig, settings: tuple[str, ...] = ()
) -> Any:
    """The Config of a method's class: the recipe's, the run's warm-up, and ``KEY=VALUE`` settings.

    Runs of fewer than 200 epochs have values of their own, unless ``train.paper_faithful`` or a
    setting says how long the warm-up of the method is.

    Raises InputError for an unknown key, or a value that is not of the field's type.
    """
    chosen = RECIPES[recipe]
    kinds = get_type_hints(method.Config)
    values = {"warmup": train.warmup} | chosen.method | chosen.method_of.get(method.name, {})
    values = {key: value for key, value in values.items() if key in kinds}
    if not (train.paper_faithful or any(text.startswith("warmup=") for text in settings)):
        values |= _of_short_run(method, values, train.epochs)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if key in kinds and not equals:
            raise InputError(f"--set {setting}: has no value; write --set {setting}=VALUE")
        values[key] = _parse(text, kinds.get(key))
    try:
        config = from_dict(method.Config, values, complete=False)
    except InputError as error:
        raise InputError(f"--set KEY=VALUE: {error}") from error
    splits = getattr(config, "batch_norm_splits", 1)
    if train.batch_size < 2 * splits:
        needed = f"needs --batch-size {2 * splits} or more, 2 images a part"
        raise InputError(f"batch_norm_splits={splits}: {needed}")
    return config


def short_run(method: Any, recipe: str, train: TrainConfig, settings: tuple[str, ...] = ()) -> str:
    """A sentence: which settings are of a short run, and what keeps the paper's; "" for none."""
    faithful = dataclasses.replace(train, paper_faithful=True)
    ours = vars(method_config(method, recipe, train, settings))
    papers = vars(method_config(method, recipe, faithful, settings))
    changed = [key for key, value in ours.items() if value != papers[key]]
    if not changed:
        return ""
    values = ", ".join(f"{key}={ours[key]:g}" for key in changed)
    kept = ", ".join(f"{key}={papers[key]:g}" for key in changed)
    return f"short run of {train.epochs} epochs: {values}; --paper-faithful keeps {kept}"


def _of_short_run(method: Any, values: Values, epochs: int) -> dict[str, float]:
    """The method's values for so many epochs, where they are not those of its paper."""
    share = min(1.0, max(0.0, (_LONG - epochs) / (_LONG - _SHORT)))
    found = {}
    for key, short in _SHORT_RUN.get(method.name, {}).items():
        papers = values.get(key, getattr(method.Config, key))
        found[key] = papers + share * (short - papers)
    return found


def _parse(text: str, kind: type | None) -> object:
    """A value of the kind; text that is none stays text, which `from_dict` refuses."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text
