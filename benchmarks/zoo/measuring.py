"""Measures a trained row, and puts it into this checkout."""

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cgh_models.data.image_set import ImageSet, load_splits
from cgh_models.errors import InputError, say
from cgh_models.evaluate import measurement
from cgh_models.evaluate.devices import pick_device
from cgh_models.evaluate.finetune import finetune_on_share
from cgh_models.evaluate.linear import sgd
from cgh_models.evaluate.probes import probe
from cgh_models.evaluate.protocols import FINETUNE, LINEAR, EvalSettings, Measurement
from cgh_models.evaluate.splits import labelled
from cgh_models.hashing import sha256
from cgh_models.hub import manifest
from cgh_models.hub.card import CURVE
from cgh_models.hub.export import record
from cgh_models.hub.integrity import verify
from cgh_models.hub.registry import create_model
from cgh_models.hub.row import Metric, Row, TrainingCost
from cgh_models.hub.weights_folder import write_description

from . import tables
from .rows import DATA, RECIPE, Wanted
from .training import LOG, TOOK, Place

# MB of a file, and of all that are shipped: more does not belong into a repository
LARGEST = 95
ALL = 170
LABELS = 10  # percent of them that rows are fine-tuned with


@dataclass(frozen=True)
class Evaluations:
    """Which numbers a row gets beside kNN.

    Attributes:
        linear: "sgd", as in papers; "ridge", on the embeddings that kNN needs too; or "none".
        linear_epochs: passes of the sgd; 0: the recipe's 100.
        finetune_epochs: passes of a fine-tuning with 10 % of the labels; 0: there is none.
        fast: folded batch norms and bfloat16 (`cgh evaluate --fast`). The sgd on a CPU always is:
            it would take as long as the training. Fine-tuning never is.
    """

    linear: str = "sgd"
    linear_epochs: int = 0
    finetune_epochs: int = 0
    fast: bool = False

    def __post_init__(self):
        if self.linear_epochs and self.linear != "sgd":
            what = f"--linear-epochs {self.linear_epochs}: --linear {self.linear} has no epochs"
            raise InputError(f"{what}; leave it out")


class _Number(NamedTuple):
    """A number that rows have of a trained and an untrained network."""

    metric: str
    data: str
    words: list[str]  # of `cgh evaluate`, without the weights, which come second
    measured: Callable[[nn.Module, ImageSet, ImageSet], Measurement]


def measure(row: Wanted, place: Place, evaluations: Evaluations) -> None:
    """Measures the row and an untrained network and writes the numbers into its folder.

    Numbers that are there already are not measured a second time.

    Raises:
        InputError: the images that it was trained on are not there.
    """
    folder = place.out / row.name
    numbers = _numbers(row, place, evaluations)
    there = {metric for metric, found in manifest.read_row(folder).metrics.items() if found}
    model = create_model(folder)
    torch.manual_seed(0)
    untrained = create_model(row.arch, pretrained=False)
    untrained.pretrained_cfg = model.pretrained_cfg
    # What is not shipped can only be measured in its folder; what is untrained needs no more than
    # an architecture.
    trained, plain = (
        ([row.name], [row.name]) if row.shipped else ([f"weights/{row.name}"], [row.arch])
    )
    networks = (("", model, trained), ("_random", untrained, [*plain, "--random"]))
    for number in numbers:
        missing = [network for network in networks if number.metric + network[0] not in there]
        if not missing:
            continue
        train, val = load_splits(place.data / number.data)
        for suffix, network, weights in missing:
            found = number.measured(network, train, val)
            command, *flags = number.words
            words = [command, *weights, *flags]
            _record(folder, number.metric + suffix, found, number.data, words)


def _numbers(row: Wanted, place: Place, evaluations: Evaluations) -> list[_Number]:
    """Those that the row is to have, in the order in which they are measured."""
    how = EvalSettings(workers=place.workers, device=place.device, fast=evaluations.fast)
    cached = dataclasses.replace(how, cache_dir=place.out / "cache")
    flags = ["--fast"] if evaluations.fast else []
    numbers = []
    for data in (row.data, *(other for other in DATA if other != row.data)):
        metric = "knn" if data == row.data else "knn_transfer"
        if (place.data / data).is_dir():
            knn = partial(measurement.knn, settings=cached)
            numbers.append(_Number(metric, data, ["knn", *flags], knn))
        elif data == row.data:
            what = f"{place.data / data}: not there, and {row.name} is measured on it"
            raise InputError(f"{what}; change --data")
        else:
            say(f"{place.data / data}: not there, nothing is measured on it")
    if evaluations.linear == "ridge":
        words = ["linear", "--protocol", "ridge", *flags]
        ridge = partial(probe, "ridge", settings=cached)
        numbers.append(_Number("linear_ridge", row.data, words, ridge))
    if evaluations.linear == "sgd":
        numbers.append(_by_sgd(row, evaluations.linear_epochs, how))
    if evaluations.finetune_epochs:  # last: it trains the networks themselves
        numbers.append(_fine_tuned(row, evaluations.finetune_epochs, how))
    return numbers


def _by_sgd(row: Wanted, epochs: int, how: EvalSettings) -> _Number:
    """The linear evaluation of the papers."""
    fast = how.fast or pick_device(how.device).type == "cpu"
    settings = dataclasses.replace(how, fast=fast, log=say)
    recipe = RECIPE[row.data]
    config = LINEAR[recipe]
    words = ["linear", "--protocol", "sgd", "--recipe", recipe]
    if epochs:
        config = dataclasses.replace(config, epochs=epochs)
        words += ["--epochs", str(epochs)]
    words += ["--fast"] if fast else []

    def measured(network: nn.Module, train: ImageSet, val: ImageSet) -> Measurement:
        found = sgd(network, train, val, config, settings)
        return found.with_parameters(recipe=recipe)

    return _Number("linear", row.data, words, measured)


def _fine_tuned(row: Wanted, epochs: int, how: EvalSettings) -> _Number:
    """All of the network trained on 10 % of the labels."""
    settings = dataclasses.replace(how, fast=False, log=say)
    recipe = RECIPE[row.data]
    config = dataclasses.replace(FINETUNE[recipe, f"{LABELS}%"], epochs=epochs)
    words = ["finetune", "--labels", f"{LABELS}%", "--recipe", recipe, "--epochs", str(epochs)]

    def measured(network: nn.Module, train: ImageSet, val: ImageSet) -> Measurement:
        chosen = labelled(train, LABELS, settings.seed)
        found = finetune_on_share(network, train, val, LABELS, *chosen, config, settings)
        return found.with_parameters(recipe=recipe, split="seed")

    return _Number(f"finetune_{LABELS}", row.data, words, measured)


def _record(folder: Path, metric: str, found: Measurement, data: str, words: list[str]) -> None:
    say(f"{metric} on {DATA[data][0]}: {found.value:.2f} %")
    command = shlex.join(["cgh", "evaluate", *words, "--data", data])
    record(folder, metric, Metric(data=DATA[data][0], **found.to_json(), command=command))


def finish(row: Wanted, folder: Path, commit: str) -> None:
    """Puts what the folder holds where it belongs: log, row, files.

    Args:
        commit: of the code that trained it, where git was not there to ask.

    Raises:
        InputError: nothing was measured, or the code that trained it has no name.
    """
    row_made = manifest.read_row(folder)
    if not (folder / LOG).is_file() or not (folder / TOOK).is_file():
        raise InputError(
            f"{folder}: has no {LOG} and {TOOK}, as `train` writes them; "
            "`add` takes folders made otherwise"
        )
    if not row_made.metrics["knn"]:
        raise InputError(
            f"{folder}: not measured; `python -m benchmarks.zoo measure {row.name}` does that"
        )
    row_made.code.commit = row_made.code.commit or commit
    if not re.fullmatch(r"[0-9a-f]{40}", row_made.code.commit):
        raise InputError(
            f"{folder}: which code trained it is not known; give its commit's 40 digits as --commit"
        )
    log = tables.HERE / "logs" / f"{row.name}.jsonl"
    log.write_bytes((folder / LOG).read_bytes())
    took = json.loads((folder / TOOK).read_text())
    row_made.training = TrainingCost(
        **took, log=str(log.relative_to(tables.REPO)), log_sha256=sha256(log)
    )
    write_description(folder, row_made)
    if row.shipped:
        add(folder, packaged=row.packaged, heads=row.heads != "none")
    else:
        manifest.add(tables.NUMBERS, row_made)
        tables.write()
    print(f"{row.name}: {log.relative_to(tables.REPO)}")


def add(folder: Path, *, packaged: bool, heads: bool) -> None:
    """Copies a weights folder into this checkout and adds its row to both copies of the manifest.

    The folder is verified first; timm's config, the card and the picture are copied with it.

    Args:
        packaged: copy the backbone into the wheel (cgh_models/weights/NAME/), not beside it
            (weights/NAME/).
        heads: copy the heads, too, beside the wheel.

    Raises:
        InputError: it would make the repository too large, or heads are missing or would be lost.
    """
    verify(folder.resolve())
    row = manifest.read_row(folder)
    published = tables.known().get(row.name)
    if heads and not row.heads_file:
        what = f"{folder}: its description has no heads"
        raise InputError(f"{what}; give the folder that was exported with them")
    if not heads and published and published.heads_file:
        raise InputError(f"{row.name}: its row has heads, which would be lost; give --heads")
    if not heads:
        row.files.pop(row.heads_file or "", None)
    _fits(row)
    repo = tables.REPO
    backbone, beside = (
        (root / "weights" / row.name) for root in (manifest.PACKAGE if packaged else repo, repo)
    )
    for file in (*row.files, "config.json", CURVE):
        target = (beside if file == row.heads_file else backbone) / file
        if (folder / file).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, target)
    here = {name: entry for name, entry in row.files.items() if (backbone / name).is_file()}
    write_description(backbone, dataclasses.replace(row, files=here))
    for path in (repo / manifest.MANIFEST.name, manifest.MANIFEST):
        manifest.add(path, row)
    tables.write()
    print(f"{row.name}: {backbone.relative_to(repo)}")


def _fits(row: Row) -> None:
    others = [other for other in manifest.read(manifest.MANIFEST) if other.name != row.name]
    sizes = {file: entry.bytes / 1e6 for file, entry in row.files.items()}
    total = sum(sizes.values())
    total += sum(entry.bytes for other in others for entry in other.files.values()) / 1e6
    if max(sizes.values()) > LARGEST or total > ALL:
        listed = ", ".join(f"{file} {size:.0f} MB" for file, size in sizes.items())
        raise InputError(
            f"{row.name}: {listed}, with all other weights {total:.0f} MB; expected at most "
            f"{LARGEST} MB a file and {ALL} in all: leave its heads out, or publish it with "
            "`cgh publish`"
        )
