"""The commands that measure weights on labelled images; heavy modules are imported when a command runs."""

import dataclasses
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from ..errors import InputError, NotReproduced, say
from ..evaluate.protocols import FINETUNE, LABELS, LINEAR, FinetuneConfig, LinearConfig
from ..hub import manifest

Recipe = Literal["imagenet", "cifar", "tiny"]


@dataclass
class Measuring:
    """What every measurement takes beside its own settings."""

    random: bool = False
    """Take the named architecture with untrained weights: what training starts from."""
    seed: int = 0
    """Of untrained weights, held-out images, labelled shares, order, views and new layers."""
    record: bool = False
    """Write the number into the description and the card of the weights folder that was measured."""
    follow_links: bool = False
    """Read linked folders, and links that lead out of the folder, too."""
    data_name: str = ""
    """What the record calls the images; left out, their folder's name."""
    batch_size: int = 256
    """Images a forward where nothing is trained on them; changes speed and memory only."""
    workers: int = 2
    """Processes that read images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


@dataclass
class Extracting:
    """How embeddings are made, and where they are kept."""

    fast: bool = False
    """Make them with folded batch norms and in bfloat16: two times as fast, of cosine 0.9999 and more to the exact."""

    cache: str = ""
    """Folder to keep embeddings in for the next command; left out, none are kept. An image whose name, size and time of
    change stay the same counts as the same image."""


@dataclass
class Knn:
    """kNN accuracy of the backbone's embeddings: val/ against train/. The last line on stdout is JSON."""

    weights: Positional[str]
    """WEIGHTS: a timm name, a weights folder, or a run folder."""
    data: str
    """Folder with train/ and val/, class folders in both."""
    k: int = 20
    """Neighbours that vote; 20 as in CGH's and most SSL papers' tables."""
    temperature: float = 0.07
    """Of the votes' weights exp(cosine / temperature); 0.07 as in the same tables."""
    measuring: OmitArgPrefixes[Measuring] = field(default_factory=Measuring)
    extracting: OmitArgPrefixes[Extracting] = field(default_factory=Extracting)


def evaluate_knn(args: Knn) -> None:
    """`cgh evaluate knn`."""
    from ..evaluate import measured

    model, train, val = _open(args)
    if not 1 <= args.k <= len(train):
        raise InputError(f"--k {args.k}: expected 1 to {len(train)}, the number of training images")
    found = measured.knn(model, train, val, k=args.k, temperature=args.temperature, **_extraction(args))
    _finish(args, "knn", found, {"queries": len(val)})


@dataclass
class Linear:
    """Accuracy of a linear layer on the frozen backbone, fitted to train/, on val/. The last line on stdout is JSON."""

    weights: Positional[str]
    """WEIGHTS: a timm name, a weights folder, or a run folder."""
    data: str
    """Folder with train/ and val/, class folders in both."""
    protocol: Literal["sgd", "lbfgs", "ridge"]
    """sgd: on augmented images, as papers report it. lbfgs (logistic regression) and ridge: on embeddings of plain
    images, their penalty chosen on held-out training images; quick, and numbers of their own."""
    sgd: OmitArgPrefixes[LinearConfig]
    recipe: Recipe = "imagenet"
    """Settings of sgd that go together; for cifar and tiny the learning rate is chosen. Flags given beside it win."""
    measuring: OmitArgPrefixes[Measuring] = field(default_factory=Measuring)
    extracting: OmitArgPrefixes[Extracting] = field(default_factory=Extracting)


def evaluate_linear(args: Linear) -> None:
    """`cgh evaluate linear`."""
    from ..evaluate import measured

    if args.protocol != "sgd" and args.sgd != LINEAR["imagenet"]:
        raise InputError(f"--protocol {args.protocol}: has no recipe, rate, epochs or steps; give --protocol sgd")
    model, train, val = _open(args)
    how = {"seed": args.measuring.seed, "say": say, **_extraction(args)}
    found = measured.linear(args.protocol, model, train, val, args.sgd, args.recipe, **how)
    _finish(args, "linear" if args.protocol == "sgd" else f"linear_{args.protocol}", found, {"val": len(val)})


@dataclass
class Finetune:
    """Accuracy on val/ after training all of the backbone on some labels of train/. The last line on stdout is JSON."""

    weights: Positional[str]
    """WEIGHTS: a timm name, a weights folder, or a run folder."""
    data: str
    """Folder with train/ and val/, class folders in both."""
    labels: Literal["1%", "10%", "100%"]
    """The share of train/ that is used: equally many images of every class, drawn by the seed."""
    training: OmitArgPrefixes[FinetuneConfig]
    recipe: Recipe = "imagenet"
    """Settings that go together, for each share of labels. Flags given beside it win."""
    splits_file: str = ""
    """Text file of the labelled images' names: written, or where it is there already, used in place of the seed's. Left
    out, one in the current folder that is named by share, seed and images; 100% needs none."""
    measuring: OmitArgPrefixes[Measuring] = field(default_factory=Measuring)


def evaluate_finetune(args: Finetune) -> None:
    """`cgh evaluate finetune`."""
    from ..evaluate.finetune import finetune
    from ..evaluate.splits import labelled, subset

    model, train, val = _open(args)
    percent = int(args.labels.removesuffix("%"))
    file = args.splits_file or f"labels_{percent}_seed{args.measuring.seed}_{train.digest[:8]}.txt"
    split = "file" if args.splits_file and Path(file).exists() else "seed"
    indices, names = labelled(train, percent, args.measuring.seed, file if args.splits_file or percent < 100 else None)
    say(f"{len(indices)} of {len(train)} training images, {len(train.classes)} classes, drawn by the {split}")
    part, seed = subset(train, indices), args.measuring.seed
    accuracy = finetune(model, part, val, args.training, seed=seed, say=say, **_extraction(args))
    size = min(args.training.train_batch_size, len(part))
    numbers = {
        "labels": args.labels, "recipe": args.recipe, **dataclasses.asdict(args.training), "train_batch_size": size,
        "seed": seed, "labelled": len(part), "split": split, "names_sha256": names,
    }  # fmt: skip
    protocol = f"backbone and linear layer trained on {args.labels} of train/, top-1 of val/ after the last epoch"
    found = {"protocol": protocol, "parameters": numbers, "value": round(accuracy, 3), "n": len(val)}
    _finish(args, f"finetune_{percent}", found, {"val": len(val)})


@dataclass
class Reproduce:
    """Measures a published number again, from the shipped file: exit 0 if it agrees, 1 if not, 2 without its images."""

    weights: Positional[str]
    """A name of `cgh list`, or a weights folder."""
    data: str
    """Folder with train/ and val/ of the images that the number was measured on."""
    metric: Literal["knn", "linear"] = "knn"
    """knn: within 0.1 percent points; linear (protocol sgd, at the rate that was chosen): within 0.5."""
    follow_links: bool = False
    """Read linked folders, and links that lead out of the folder, too."""
    batch_size: int = 256
    """Images a forward where nothing is trained on them; changes speed and memory only."""
    workers: int = 2
    """Processes that read images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


def reproduce(args: Reproduce) -> None:
    """`cgh reproduce`."""
    from ..data.image_set import load_splits
    from ..evaluate import measured
    from ..hub.registry import create_model

    row = manifest.row_of(args.weights)
    if not (published := row["metrics"][args.metric]):
        there = ", ".join(name for name, metric in row["metrics"].items() if metric) or "none"
        raise InputError(f"{args.weights}: no {args.metric} was published of it (there are: {there})")
    train, val = load_splits(args.data, args.follow_links)
    model, how = create_model(args.weights), {"batch_size": args.batch_size, "workers": args.workers}
    got = measured.again(args.metric, published, model, train, val, device=args.device, say=say, **how)
    value, tolerance = published["value"], measured.TOLERANCE[args.metric]
    agrees = round(abs(got - value), 6) <= tolerance
    found = {"metric": args.metric, "published": value, "got": got, "tolerance": tolerance, "agrees": agrees}
    print(json.dumps(found | {"weights": args.weights, "data": args.data}))
    if not agrees:
        hint = f"`cgh verify {args.weights}` says whether the file is the published one"
        if published["data"] == row["data"]["name"] and train.digest != row["data"]["digest"]:
            hint = (
                f"{args.data}/train has other names or sizes than the images of {row['data']['name']} it was trained on"
            )
        numbers = f"published {args.metric} {value:.2f} %, got {got:.2f} %, more than {tolerance} apart"
        raise NotReproduced(f"{args.weights}: {numbers}; {hint}")


def _open(args: Any) -> tuple[Any, Any, Any]:
    """The model, train/ and val/; nothing is measured that could not be recorded."""
    import torch

    from ..data.image_set import load_splits
    from ..hub.registry import create_model, is_weights

    how = args.measuring
    torch.manual_seed(how.seed)
    train, val = load_splits(args.data, how.follow_links)
    if how.record:
        folder = Path(args.weights)
        if how.random or not is_weights(folder):
            raise InputError(f"--record: {args.weights} is no weights folder; `cgh export` makes one")
        manifest.read_row(folder)
        if not os.access(folder, os.W_OK):
            raise InputError(f"--record: {args.weights} cannot be written; copy the folder to where you may write")
    return create_model(args.weights, pretrained=not how.random), train, val


def _extraction(args: Any) -> dict[str, Any]:
    how = args.measuring
    given = {"batch_size": how.batch_size, "workers": how.workers, "device": how.device}
    how = getattr(args, "extracting", None)
    return given | ({"cache_dir": how.cache or None, "fast": how.fast} if how else {})


def _finish(args: Any, metric: str, measured: dict[str, Any], more: dict[str, Any]) -> None:
    """Prints the number, and then records it if that is asked for."""
    found = {"metric": metric, "value": measured["value"], **measured["parameters"], **more}
    print(json.dumps(found | {"weights": args.weights, "data": args.data}), flush=True)
    if args.measuring.record:
        from ..hub.export import record

        name = args.measuring.data_name or Path(args.data).resolve().name
        record(Path(args.weights), metric, {"data": name, **measured, "command": shlex.join(["cgh", *sys.argv[1:]])})


def _named(words: list[str], flag: str, default: str, known: tuple[str, ...]) -> str:
    """The value given to a flag, if it is one of the known."""
    split = [part for word in words for part in word.split("=", 1)]
    value = next((value for name, value in pairwise(split) if name == flag), default)
    return value if value in known else default


def linear_defaults(words: list[str]) -> Linear:
    """The flags' defaults are the values of the recipe that is named."""
    recipe = _named(words, "--recipe", "imagenet", tuple(LINEAR))
    return Linear(tyro.MISSING, tyro.MISSING, tyro.MISSING, LINEAR[recipe])


def finetune_defaults(words: list[str]) -> Finetune:
    """The flags' defaults are the values of the recipe and the share of labels that are named."""
    recipe, labels = _named(words, "--recipe", "imagenet", tuple(LINEAR)), _named(words, "--labels", "1%", LABELS)
    return Finetune(tyro.MISSING, tyro.MISSING, tyro.MISSING, FINETUNE[recipe, labels])
