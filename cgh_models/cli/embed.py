"""`cgh embed` and `cgh neighbours`: embeddings of images in a file, and a page to look at them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from ..errors import InputError, printable, say
from ..evaluate.protocols import EvalSettings
from .evaluate import reading
from .flags import File, Folder, Machine, Name, Weights
from .pretrain import IMAGES

if TYPE_CHECKING:
    from torch import nn

    from ..data.image_set import ImageSet


@dataclass
class Embedded:
    """What is embedded, and how fast."""

    weights: Weights
    """A name of `cgh list` or of timm, a weights folder, or a run folder."""
    data: Annotated[str, arg(metavar="IMAGES", help=IMAGES)]
    random: bool = False
    """Embed with the named architecture untrained."""
    seed: int = 0
    """Seed of untrained weights, and of what is drawn of the images."""
    fast: bool = False
    """In bfloat16, with folded batch norms: twice as fast, cosine to the exact ones >= 0.9999."""
    machine: Machine = field(default_factory=Machine)
    follow_links: bool = False
    """Also read linked folders, and links that lead out of the data folder."""
    pixel_range: Name = "auto"
    """As of `cgh pretrain`: LOW,HIGH, or 12-bit; auto: the weights' own, else as images show."""
    reader: Name = ""
    """As of `cgh pretrain`: MODULE:FUNCTION that makes an array of a path."""

    @property
    def settings(self) -> EvalSettings:
        return EvalSettings(**vars(self.machine), fast=self.fast, seed=self.seed, log=say)

    @property
    def shown(self) -> str:
        return f"{self.weights} (untrained)" if self.random else self.weights

    def load(self) -> "tuple[nn.Module, ImageSet]":
        """The model and the images."""
        import torch

        from ..data.image_set import load
        from ..hub.registry import create_model

        torch.manual_seed(self.seed)
        how = reading(self.pixel_range, self.reader, self.weights, self.data)
        images = load(self.data, self.follow_links, **how)
        images.report_skipped()
        return create_model(self.weights, pretrained=not self.random), images


@dataclass
class Embed:
    """Writes embeddings of images to a file, beside path, class, size, sha256."""

    embedded: Embedded
    out: File
    """File to make, .parquet, .npz, .npy (and .npy.paths.txt) or .csv; begun in FILE.part/, from
    which the same command goes on after a stop."""
    layer: Name = ""
    """The mean over one of timm's maps, by name or number (-1: the deepest), in place of the pooled
    output."""
    hypercolumn: bool = False
    """The mean over CGH's hypercolumn: the deepest maps, resized to the last and stacked."""
    taps: int = 2
    """Maps in the hypercolumn."""
    dense: bool = False
    """The map or hypercolumn itself, (C, h, w), not its mean; without either, the deepest map."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in the file."""

    def run(self) -> None:
        from ..evaluate.embedding_file import write_embeddings
        from ..evaluate.feature_maps import Features
        from ..train.signals import StopSignals

        given = self.embedded
        if self.hypercolumn and self.taps < 1:
            raise InputError(f"--taps {self.taps}: expected 1 or more")
        features = Features(self.layer, self.taps if self.hypercolumn else 0, self.dense)
        settings = given.settings
        model, images = given.load()
        arguments = (model, images, Path(self.out), settings, features, self.dtype, given.shown)
        with StopSignals() as signals:
            found = write_embeddings(*arguments, until=signals.until_stopped)
        print(json.dumps({"out": self.out, **found._asdict(), "dtype": self.dtype}))


@dataclass
class Neighbours:
    """Writes a page of nearest images, near duplicates, outliers, and a map."""

    embedded: Embedded
    out: File
    """HTML page to make; it holds all it shows."""
    query: Annotated[tuple[str, ...], arg(metavar="[FILE ...]", help_behavior_hint="")] = ()
    """Images whose nearest are shown; without any, some of the set."""
    k: int = 8
    """Nearest images of each."""
    count: int = 40
    """Images of the set that are queries, drawn by the seed."""
    map: Literal["pca", "umap"] = "pca"
    """How embeddings become points: pca, or umap (pip install umap-learn)."""
    same: float = 0.98
    """Similarity from which two images are called near duplicates."""
    cache: Folder = ""
    """Keep embeddings in this folder, by the images' names, sizes and times of change."""

    def run(self) -> None:
        from ..report.neighbour_page import Asked, write_neighbours
        from ..report.page import library

        library("jinja2")
        if not Path(self.out).parent.is_dir():  # said now, not after minutes
            raise InputError(f"--out {printable(self.out)}: there is no such folder; make it")
        asked = Asked(self.query, self.k, self.count, self.map, self.same)
        given = self.embedded
        settings = dataclasses.replace(given.settings, cache_dir=self.cache)
        model, images = given.load()
        found = write_neighbours(model, images, Path(self.out), settings, asked, given.shown)
        print(json.dumps({"out": self.out, **found}))
