"""The commands about weights: list, info, verify, reproduce, convert, publish, autoload."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..dataclass_json import BEFORE
from ..errors import ERRORS, InputError, NotReproduced, printable, say, shell_command
from ..evaluate.protocols import EvalSettings
from ..hub import manifest
from ..hub.row import BACKBONE, Row
from .flags import File, Folder, Machine, Name, OfRecipe, Pattern, Recipe, Text, Weights


@dataclass
class List:
    """Lists published weights: images, size, measured numbers, where they are."""

    pattern: Annotated[Pattern, arg(metavar="[PATTERN]")] = ""
    """Names as a shell pattern, for example 'resnet50.*'; without it, all."""

    def run(self) -> None:
        names = manifest.names(self.pattern)
        if self.pattern and not names:
            pattern = printable(self.pattern)
            raise InputError(f"{pattern}: no published weights match; `cgh list` shows all")
        table = [["name", "trained on", "parameters", "kNN %", "linear %", "MB", "where"]]
        table += [_cells(manifest.row(name)) for name in names]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            print("  ".join(map(str.ljust, cells, widths)).rstrip())


def _cells(row: Row) -> list[str]:
    from ..hub.fetch import location

    images = f" ({row.data.images:,})" if row.data.images else ""
    metrics = [row.metrics["knn"], row.metrics["linear"]]
    return [
        row.name,
        (row.data.name or "not stated") + images,
        f"{row.parameters / 1e6:.1f} M",
        *(f"{metric.value:.2f}" if metric else "-" for metric in metrics),
        f"{row.files[BACKBONE].bytes / 1e6:.1f}",
        location(row, BACKBONE),
    ]


@dataclass
class Info:
    """Prints all that is known of published weights or of a weights folder."""

    weights: Weights
    """A name of `cgh list`, or a weights folder."""

    def run(self) -> None:
        row = manifest.find(self.weights)[0].to_json()
        first = {"notes": row.pop("notes"), "data": row.pop("data")}  # before any number
        _print_indented(first | row)


def _print_indented(values: dict[str, object], indent: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{key}:")
            _print_indented(value, indent + "  ")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            print(f"{indent}{key}: {printable(text)}")


@dataclass
class Verify:
    """Checks hashes, tensors, values and outputs; exit code 4 if one is wrong."""

    weights: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[WEIGHTS ...]", help_behavior_hint="")
    ] = ()
    """Names of `cgh list`, or weights folders; without any, all that are on this machine."""

    def run(self) -> None:
        from ..hub.fetch import HERE, location
        from ..hub.integrity import verify

        here = [name for name, row in manifest.rows().items() if location(row, BACKBONE) in HERE]
        if not self.weights and not here:
            print("no published weights are on this machine")
        errors = []
        for weights in self.weights or here:
            try:
                done = verify(weights)
            except ERRORS as error:
                errors.append(error)
                continue
            files = f"{', '.join(done['files'])}: sha256, tensors, values and fingerprint are right"
            within = f"fingerprint within {done['fingerprint_error']:.1e}"
            print(f"{printable(weights)}: {files} ({done['parameters']:,} parameters, {within})")
        for error in errors[:-1]:
            say(f"error: {' '.join(str(error).splitlines())}")
        if errors:
            raise errors[-1]


@dataclass
class Reproduce:
    """Measures a published number again; exit code 0 if it agrees, 1 if not."""

    weights: Weights
    """A name of `cgh list`, or a weights folder."""
    data: Folder
    """Folder with train/ and val/ of the images that the number was measured on."""
    metric: Literal["knn", "linear"] = "knn"
    """knn agrees within 0.1 percent points, linear (sgd, with the chosen rate) within 0.5."""
    machine: Machine = field(default_factory=Machine)
    follow_links: bool = False
    """Also read linked folders, and links that lead out of the data folder."""
    reader: Name = ""
    """As of `cgh pretrain`: MODULE:FUNCTION that makes an array of a path."""

    def run(self) -> None:
        from ..data.image_set import load_splits
        from ..evaluate import measurement
        from ..hub.registry import create_model

        row, _ = manifest.find(self.weights)
        published = row.metrics[self.metric]
        if not published:
            others = ", ".join(name for name, metric in row.metrics.items() if metric) or "none"
            missing = f"no {self.metric} was published of it (there are: {others})"
            raise InputError(f"{self.weights}: {missing}")
        pixel_range = published.parameters.get("pixel_range", BEFORE["pixel_range"])
        how = {"pixel_range": pixel_range, "in_chans": row.in_chans, "reader": self.reader}
        train, val = load_splits(self.data, self.follow_links, **how)
        model = create_model(self.weights)
        settings = EvalSettings(**vars(self.machine), log=say)
        numbers = dataclasses.asdict(published)
        got = measurement.remeasure(self.metric, numbers, model, train, val, settings)
        value = published.value
        tolerance = measurement.TOLERANCE[self.metric]
        agrees = round(abs(got - value), 6) <= tolerance
        line = {"metric": self.metric, "published": value, "got": got, "tolerance": tolerance}
        print(json.dumps(line | {"agrees": agrees, "weights": self.weights, "data": self.data}))
        if agrees:
            return
        verify = shell_command("cgh", "verify", self.weights)
        hint = f"{verify} says whether the file is the published one"
        if published.data == row.data.name and train.digest != row.data.digest:
            images = f"the images of {row.data.name} it was trained on"
            hint = f"{self.data}/train has other names or sizes than {images}"
        numbers = f"published {self.metric} {value:.2f} %, got {got:.2f} %"
        raise NotReproduced(f"{self.weights}: {numbers}, more than {tolerance} apart; {hint}")


@dataclass
class Convert:
    """Makes a weights folder of an authors' checkpoint; no code in it is run."""

    file: Annotated[Positional[str], arg(metavar="FILE")]
    """The authors' file: of torch.save (.pth, .pth.tar, ...), or .safetensors."""
    method: Literal["cgh", "ressl", "lewel", "moco_v2", "byol", "mnclglf"]
    """Method whose authors wrote it; says where the backbone is in it, its paper and licence."""
    out: Folder
    """Weights folder to make."""
    arch: Name = ""
    """Architecture of timm; without it, read from the tensors (not possible for 3x3 stems)."""
    recipe: Recipe = "imagenet"
    """Size, mean and std of the images it was trained on: of 224, 32 or 64 pixels."""
    image_size: OfRecipe[int] = None
    """Side of its images in pixels."""
    mean: OfRecipe[tuple[float, float, float]] = None
    """Mean of each channel of its images."""
    std: OfRecipe[tuple[float, float, float]] = None
    """Standard deviation of each channel of its images."""
    tag: Name = ""
    """What follows the dot in the weights' name; without it, METHOD_converted."""
    license: Name = ""
    """Licence of the weights, if it is another than the authors state for their release."""
    data_name: Name = ""
    """Name of the training images, for the model card."""
    data_license: Text = ""
    """Terms of the training images in one sentence, for the card."""
    epochs: Annotated[float | None, arg(help_behavior_hint="")] = None
    """Epochs it was trained for, for the card."""

    def run(self) -> None:
        from ..hub.convert import convert

        row = convert(**vars(self))
        prefix = row.converted_from.prefix if row.converted_from else ""
        count = f"{row.parameters:,} parameters of {prefix}*"
        print(f"{printable(self.out)}: {row.name}, {count}, read back, equal")
        print(f"licence: {row.license or 'not stated'}; {printable(' '.join(row.notes))}")
        print(f"timm.create_model({'local-dir:' + self.out!r}, pretrained=True) loads it")


@dataclass
class Publish:
    """Uploads a weights folder to the Hugging Face Hub and pins the commit."""

    folder: Annotated[Positional[str], arg(metavar="FOLDER")]
    """Weights folder that `cgh verify` accepts."""
    repo: Annotated[str, arg(metavar="ORG/NAME")]
    """Repository on the Hub; made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    manifest: File = ""
    """Manifest of published weights to write repository and commit into, too."""

    def run(self) -> None:
        from ..hub.publish import publish

        manifests = [Path(self.manifest)] if self.manifest else []
        if manifests and manifests[0].resolve() == manifest.PACKAGE.parent / manifest.MANIFEST.name:
            manifests.append(manifest.MANIFEST)
        folder = Path(self.folder)
        commit, left_out = publish(folder, self.repo, private=self.private, manifests=manifests)
        if left_out:
            print(f"not published: {printable(', '.join(left_out))}")
        print(f"{self.repo}: read back, equal; commit {commit}")
        print(f"timm.create_model('hf-hub:{self.repo}', pretrained=True) loads it")
        for path in (folder / manifest.ROW_FILE, *manifests):
            print(f"{printable(path)}: pinned")


@dataclass
class Autoload:
    """Makes plain `import timm` know the published weights, or stops it."""

    switch: Positional[Literal["on", "off"]]
    """on writes a .pth file into site-packages (CGH_AUTOLOAD=0 disables it), off removes it."""

    def run(self) -> None:
        from ..hub.autoload import path, switch

        was_on = switch(self.switch == "on")
        if self.switch == "on":
            print(f"{path()}: written; `import timm` now knows the weights")
        else:
            print(f"{path()}: {'removed' if was_on else 'was not there, autoload is off'}")
