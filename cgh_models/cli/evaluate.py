"""The commands that measure weights on labelled images."""

import dataclasses
import json
import math
import os
import shlex
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from ..config import Reading
from ..dataclass_json import BEFORE
from ..errors import InputError, printable, say
from ..evaluate.protocols import FINETUNE, LINEAR, EvalSettings, FinetuneConfig, LinearConfig
from ..evaluate.protocols import Measurement as Measured
from ..hub import manifest
from ..hub.row import Metric
from .flags import File, Folder, Machine, Name, Recipe, Weights, flags_of

if TYPE_CHECKING:
    from torch import nn

    from ..data.image_set import ImageSet

FINETUNE_DEFAULTS = {recipe: FINETUNE[recipe, "1%"] for recipe in LINEAR}
FINETUNE_DEFAULTS["all labels"] = FINETUNE["imagenet", "100%"]
LinearFlags = flags_of(LinearConfig, LINEAR)
FinetuneFlags = flags_of(FinetuneConfig, FINETUNE_DEFAULTS)
_TABLE = (
    "Table (CSV) with the columns file, from --data, and label or several, and split (train, val) "
    "where the folders do not say it. One column of words or whole numbers: accuracy; several of "
    "0 and 1: mAP; other numbers: R2."
)
LabelTable = Annotated[File, arg(help=_TABLE)]


@dataclass
class Embeddings:
    """How embeddings are made."""

    fast: bool = False
    """In bfloat16, with folded batch norms: twice as fast, cosine to the exact ones >= 0.9999."""
    cache: Folder = ""
    """Keep embeddings in this folder, by the images' names, sizes and times of change."""


def reading(pixel_range: str, reader: str, weights: str, data: str) -> Reading:
    """Arguments of `load`: what is asked for, else those of the training, said where it matters.

    A reader that a file of weights names is not run unless it is asked for.
    """
    from ..hub.trained_reading import trained_reading

    trained = trained_reading(weights)
    if pixel_range == "auto" and "," in trained["pixel_range"]:
        rule = f"pixels of more than 8 bits are read as in the training, {trained['pixel_range']}"
        say(f"{printable(data)}: {rule}; --pixel-range says otherwise")
    if pixel_range != "auto":
        trained["pixel_range"] = pixel_range
    if trained["reader"] and not reader:
        name = printable(trained["reader"])
        say(f"{printable(data)}: the training read files by {name}; --reader {name} does so here")
    return {**trained, "reader": reader}


@dataclass
class Measurement:
    """What is measured, on which images, and whether the number is recorded."""

    weights: Weights
    """A name of `cgh list` or of timm, a weights folder, or a run folder."""
    data: Folder
    """Folder with train/ and val/, class folders in both (or what the command says)."""
    seed: int = 0
    """Seed of untrained weights, held-out and labelled images, order, views and new layers."""
    random: bool = False
    """Measure the named architecture with untrained weights."""
    record: bool = False
    """Write the number into the description and the card of the weights folder."""
    data_name: Name = ""
    """Name of the images in the record; without it, the name of their folder."""
    machine: Machine = field(default_factory=Machine)
    follow_links: bool = False
    """Also read linked folders, and links that lead out of the data folder."""
    pixel_range: Name = "auto"
    """As of `cgh pretrain`: LOW,HIGH, or 12-bit; auto: the weights' own, else as images show."""
    reader: Name = ""
    """As of `cgh pretrain`: MODULE:FUNCTION that makes an array of a path."""

    def settings(self, fast: bool = False, cache: str = "") -> EvalSettings:
        flags = vars(self.machine)
        return EvalSettings(**flags, fast=fast, cache_dir=cache, seed=self.seed, log=say)

    def load(self, labels: str = "") -> "tuple[nn.Module, ImageSet, ImageSet]":
        """The model, train/ and val/. Raises InputError if the number could not be recorded."""
        from ..data.image_set import load_splits
        from ..evaluate.label_table import load_labelled, metric_of

        how = reading(self.pixel_range, self.reader, self.weights, self.data)
        if labels:
            train, val = load_labelled(self.data, labels, self.follow_links, **how)
        else:
            train, val = load_splits(self.data, self.follow_links, **how)
        if self.record and metric_of(train) == "r2":
            raise InputError("--record: cards hold percentages, and R2 is none; leave --record out")
        return self.model(), train, val

    def model(self) -> "nn.Module":
        """The network. Raises InputError if the number could not be recorded."""
        import torch

        from ..hub.registry import create_model
        from ..hub.weights_folder import is_weights

        torch.manual_seed(self.seed)
        if not self.record:
            return create_model(self.weights, pretrained=not self.random)
        folder = manifest.find_folder(self.weights)
        if self.random or folder is None or not is_weights(folder):
            given = printable(self.weights)
            raise InputError(f"--record: {given} is no weights folder; `cgh export` makes one")
        manifest.read_row(folder)
        if not os.access(folder, os.W_OK):
            raise InputError(f"--record: {folder} cannot be written; give a copy of the folder")
        return create_model(folder)

    def report(self, metric: str, measured: Measured, images: "ImageSet", **counts: int) -> None:
        """Prints the number as JSON, then records it if that is asked for."""
        if images.pixel_range not in ("auto", BEFORE["pixel_range"]):
            measured = measured.with_parameters(pixel_range=images.pixel_range)
        values = measured.to_json()
        line = {"metric": metric, "value": values["value"], **measured.parameters, **counts}
        try:
            print(json.dumps(line | {"weights": self.weights, "data": self.data}), flush=True)
        finally:  # it is recorded, too, where nobody reads stdout
            if self.record:
                from ..hub.export import record

                name = self.data_name or Path(self.data).resolve().name
                command = shlex.join(["cgh", *sys.argv[1:]])
                folder = manifest.find_folder(self.weights)
                assert folder is not None  # `load` has seen it
                record(folder, metric, Metric(data=name, **values, command=command))


@dataclass
class Knn:
    """kNN accuracy of embeddings of val/ against train/, as JSON on the last line."""

    measurement: Measurement
    k: int = 20
    """Neighbours that vote; 20 as in the tables of CGH and most other papers."""
    temperature: float = 0.07
    """Temperature of the votes' weights exp(cosine / temperature); 0.07 as in the same tables."""
    labels: LabelTable = ""
    embeddings: Embeddings = field(default_factory=Embeddings)

    def run(self) -> None:
        from ..evaluate.label_table import metric_of
        from ..evaluate.measurement import knn
        from ..evaluate.targets import measure_targets

        if not 0 < self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: expected a number above 0")
        model, train, val = self.measurement.load(self.labels)
        if not 1 <= self.k <= len(train):
            expected = f"expected 1 to {len(train)}, the number of training images"
            raise InputError(f"--k {self.k}: {expected}")
        settings = self.measurement.settings(**vars(self.embeddings))
        measure = metric_of(train)
        fit = knn if measure == "accuracy" else partial(measure_targets, "knn")
        found = fit(model, train, val, settings, self.k, self.temperature)
        metric = f"knn_{measure}" if self.labels else "knn"
        self.measurement.report(metric, found, train, queries=found.n)


@dataclass
class Linear:
    """Accuracy on val/ of a linear layer fitted to train/, as JSON on the last line."""

    measurement: Measurement
    protocol: Literal["sgd", "lbfgs", "ridge"]
    """sgd: on augmented images, as in papers; lbfgs (logistic), ridge: quick, on embeddings."""
    sgd: LinearFlags  # pyright: ignore[reportInvalidTypeForm]
    """Settings of --protocol sgd."""
    recipe: Recipe = "imagenet"
    """Values of the sgd flags that go together; those that are given win."""
    labels: LabelTable = ""
    embeddings: Embeddings = field(default_factory=Embeddings)

    def run(self) -> None:
        from ..evaluate.label_table import metric_of
        from ..evaluate.linear import sgd
        from ..evaluate.probes import probe
        from ..evaluate.targets import measure_targets

        if self.protocol != "sgd" and (self.sgd or self.recipe != "imagenet"):
            given = f"--protocol {self.protocol}: has no recipe, rate, epochs or steps"
            raise InputError(f"{given}; give --protocol sgd")
        config = dataclasses.replace(LINEAR[self.recipe], **self.sgd)
        settings = self.measurement.settings(**vars(self.embeddings))
        model, train, val = self.measurement.load(self.labels)
        measure = metric_of(train)
        if measure != "accuracy" and self.protocol != "ridge":
            given = f"--protocol {self.protocol}: fits classes, and {printable(self.labels)}"
            raise InputError(f"{given} has none; give --protocol ridge, or `cgh evaluate knn`")
        if self.protocol == "sgd":
            metric = "linear"
            found = sgd(model, train, val, config, settings).with_parameters(recipe=self.recipe)
        else:
            metric = f"linear_{self.protocol}"
            fit = probe if measure == "accuracy" else measure_targets
            found = fit(self.protocol, model, train, val, settings)
        if self.labels:
            metric = f"linear_{self.protocol}_{measure}"
        self.measurement.report(metric, found, train, val=found.n)


@dataclass
class Finetune:
    """Accuracy on val/ after training on labels of train/, as JSON on the last line."""

    measurement: Measurement
    labels: Literal["1%", "10%", "100%"]
    """Share of train/ that is used: equally many images of every class, drawn by the seed."""
    training: FinetuneFlags  # pyright: ignore[reportInvalidTypeForm]
    """Settings of the training."""
    recipe: Recipe = "imagenet"
    """Values of the training flags that go together; those that are given win."""
    splits_file: File = ""
    """Text file with the labelled images' names, read if it exists and written if it does not."""

    def run(self) -> None:
        from ..evaluate.finetune import finetune_on_share
        from ..evaluate.splits import labelled

        config = dataclasses.replace(FINETUNE[self.recipe, self.labels], **self.training)
        model, train, val = self.measurement.load()
        seed = self.measurement.seed
        percent = int(self.labels.removesuffix("%"))
        file = self.splits_file
        source = "file" if file and Path(file).exists() else "seed"
        if not file and percent < 100:
            file = f"labels_{percent}_seed{seed}_{train.digest[:8]}.txt"
        indices, names_sha256 = labelled(train, percent, seed, file)
        counts = f"{len(indices)} of {len(train)} training images, {len(train.classes)} classes"
        say(f"{counts}, drawn by the {source}")
        how = (config, self.measurement.settings())
        found = finetune_on_share(model, train, val, percent, indices, names_sha256, *how)
        found = found.with_parameters(recipe=self.recipe, split=source)
        self.measurement.report(f"finetune_{percent}", found, train, val=found.n)
