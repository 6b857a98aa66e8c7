"""The commands that train and export; heavy modules are imported when a command runs."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from ..config import TrainConfig, explain_changes, from_dict
from ..errors import InputError, say
from ..recipes import RECIPES, method_config, train_config

Flags = OmitArgPrefixes[TrainConfig]


@dataclass
class Pretrain:
    """Trains a backbone on a folder of images without labels; leaves a run folder that can be resumed and exported."""

    data: str
    """Folder of images (flat, nested, or class folders), or a text file with a path a line."""
    out: str
    """Run folder to make."""
    train: Flags
    method: str = "cgh"
    """cgh, lewel, lewel_m, mnclglf, ressl, moco_v2, byol or nnclr; docs/methods.md says when to choose which."""
    arch: str = ""
    """A timm architecture; left out, the recipe's."""
    recipe: Literal["imagenet", "cifar", "tiny"] = "imagenet"
    """Settings that go together: imagenet (224 px), tiny (64 px), cifar (32 px). Flags given beside it win."""
    init: str = ""
    """WEIGHTS to start from: a timm name, a weights folder (with its heads if they fit), or a run folder."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE of the method's own settings, e.g. --set taps=3; may be repeated."""


def pretrain(args: Pretrain) -> None:
    """`cgh pretrain`."""
    from ..hub.registry import build_method, preprocessing, start_from
    from ..methods import METHODS
    from ..train.loop import open_images

    if args.method not in METHODS:
        build_method(args.method, "", {}, None)
    if not args.data or not args.out:
        raise InputError("--data and --out: neither may be empty; give a folder of images and a run folder to make")
    images = open_images(args.data, args.train)
    config = method_config(METHODS[args.method], args.recipe, args.train, args.set)
    _say_warmup(args.train)
    _seed(args.train.seed)
    method = build_method(args.method, args.arch or RECIPES[args.recipe].arch, preprocessing(args.train), config)
    if args.init:
        say(start_from(method, args.init))
    _train(method, images, args.train, args.out, resume=False)


@dataclass
class Resume:
    """Goes on with a run from its newest checkpoint; on the CPU bit-identical to never having stopped."""

    run: Positional[str]
    """Run folder."""
    train: Flags
    data: str = ""
    """Where the same images are now; left out, where they were."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """The method's settings cannot change; this says why."""


def resume(args: Resume) -> None:
    """`cgh resume`."""
    from ..hub.registry import new_method_of_run

    method, run = new_method_of_run(Path(args.run))
    if args.set:
        changed = method_config(type(method), "imagenet", args.train, args.set)
        asked = {setting.partition("=")[0] for setting in args.set}
        after = run | {"method_config": run["method_config"] | {k: getattr(changed, k) for k in asked}}
        refused = explain_changes(run, after)[1]
        if refused:
            raise InputError(
                f"{args.run}: {'; '.join(refused)}; start a new run: `cgh pretrain --init {args.run} --set ...`"
            )
    _train(method, args.data or run["data"]["path"], args.train, args.run, resume=True)


@dataclass
class Backbones:
    """Which timm architectures can be pretrained with which methods: each is tried, without weights or memory."""

    pattern: Positional[str]
    """Shell pattern of timm's names, e.g. 'resnet18*'."""


def backbones(args: Backbones) -> None:
    """`cgh backbones`."""
    from ..methods.compatibility import matching, refusals

    names = matching(args.pattern)
    width = max(map(len, names))
    for name in names:
        refused = refusals(name)
        able = " ".join(method for method, why in refused.items() if not why)
        print(f"{name:<{width}}  {able or 'none'}", flush=True)
        for method, why in refused.items():
            if why:
                print(f"{'':<{width}}    not {method}: {why}", flush=True)


@dataclass
class Export:
    """Strips the heads: a weights folder that plain timm loads, with the heads in a file beside."""

    run: Positional[str]
    """Run folder."""
    out: str
    """Weights folder to make."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the files; float16 halves them."""
    tag: str = ""
    """What follows the dot in the weights' name; left out, the method."""
    license: str = ""
    """The licence you give the weights, for the card."""
    data_name: str = ""
    """What the card calls the training images; left out, their folder's name."""
    data_license: str = ""
    """The terms of the training images, in one sentence, for the card."""


def export(args: Export) -> None:
    """`cgh export`."""
    from ..hub.export import export as write

    write(
        args.run, args.out, dtype=args.dtype, tag=args.tag, license=args.license,
        data_name=args.data_name, data_license=args.data_license,
    )  # fmt: skip
    print(
        f"{args.out}: read back, equal to the bit; timm.create_model('local-dir:{args.out}', pretrained=True) loads it"
    )


@dataclass
class Demo:
    """The whole road on 3,000 small photographs that come with the package: pretrain, kNN, export, load with timm."""

    out: str = "cgh-demo"
    """Folder to make."""
    seed: int = 0
    """Of new layers, order and views."""
    random: bool = False
    """Start untrained, and train longer, instead of from the packaged weights."""


def demo(args: Demo) -> None:
    """`cgh demo`."""
    from .demo import run

    run(args.out, args.seed, args.random)


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _say_warmup(train: TrainConfig) -> None:
    if train.warmup < train.warmup_epochs / train.epochs:
        epochs = train.warmup * train.epochs
        say(f"warm-up: {epochs:g} of {train.epochs} epochs, a tenth of this short run")


def _train(method: Any, data: Any, train: TrainConfig, out: str, resume: bool) -> None:
    from ..train.loop import pretrain as loop

    loop(method, data, train, out, resume=resume)


def pretrain_defaults(words: list[str]) -> Pretrain:
    """The flags' defaults are the values of the recipe, the method and the optimizer that are named."""
    split = [part for word in words for part in word.split("=", 1)]
    given = dict(pairwise(split))
    recipe = given.get("--recipe", "imagenet")
    train = train_config(
        recipe if recipe in RECIPES else "imagenet", given.get("--method", "cgh"), given.get("--optimizer", "")
    )
    return Pretrain(tyro.MISSING, tyro.MISSING, train)


def resume_defaults(words: list[str]) -> Resume:
    """The flags' defaults are the settings of the run that is named."""
    from ..train.checkpoint import read_run

    run = next((Path(word) for word in words if (Path(word) / "config.json").is_file()), None)
    train = from_dict(TrainConfig, read_run(run)["train"]) if run else TrainConfig()
    return Resume(tyro.MISSING, train)
