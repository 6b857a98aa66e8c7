"""`cgh report`: what runs, or a set of weights, have learned, as one page."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import READING, Reading, TrainConfig
from ..data.image_set import ImageSet, load
from ..dataclass_json import from_dict
from ..errors import InputError, printable, say
from ..evaluate.protocols import EvalSettings
from ..hub import manifest
from ..hub.card import CURVE
from ..hub.registry import create_model, new_method_of_run
from ..hub.trained_reading import trained_reading
from ..train import checkpoint
from ..train.checkpoint import is_run
from ..version import __version__
from ..view_recipes import is_own, recipe_of
from . import before_after
from .before_after import Learned, Sample
from .contact_sheet import first_views
from .curves import colour, panels
from .method_pictures import own_numbers, own_pictures
from .page import address, write_page
from .runs import Run, differences, read, signs, verdict

# Of a row of weights: what is shown first, and what is not shown.
_FIRST = ("name", "architecture", "parameters", "method", "data.name", "data.images", "epochs")
_FIRST += ("metrics.knn.value", "metrics.knn.data", "metrics.linear.value", "metrics.linear.data")
_FIRST += ("license", "notes")
_LEFT_OUT = ("fingerprint", "files.")


def report(
    given: list[str],
    out: Path,
    data: str = "",
    count: int = 0,
    settings: EvalSettings | None = None,
    every: float = 0,
    reader: str = "",
) -> None:
    """Writes the page of runs, or of one set of weights.

    Args:
        given: run folders; or a weights folder or a name, alone.
        data: images that networks are shown; of runs, without it those of the first one.
        count: as many of these; 0: 2,000, or fewer where networks are slow.
        every: seconds after which the page is written again, as long as one of the runs goes on.
        reader: MODULE:FUNCTION that reads files; one that a folder names is not called.

    Raises InputError for something else, or a page that would be too large.
    """
    settings = settings or EvalSettings()
    if out.is_dir() or not out.parent.is_dir():  # before the work
        raise InputError(f"{printable(out)}: expected a file to write, in a folder that is there")
    are_runs = [is_run(Path(name)) for name in given]
    if not all(are_runs):
        if len(given) > 1:
            other = printable(given[are_runs.index(False)])
            raise InputError(f"{other}: no run folder; give run folders, or one set of weights")
        return _weights_page(given[0], out, data, count, settings, reader)
    runs = [read(name) for name in given]
    images, missing = _images_of(runs[0], data, reader)
    starts = None if images is None else _starts(runs, images, count, settings)
    while True:
        goes_on = bool(every) and any(run.is_training for run in runs)
        pictures = _pictures(runs, starts, settings) if starts else {}
        _write(runs, out, pictures | {"missing": missing, "reload": every if goes_on else 0})
        if not goes_on:
            return None
        say(f"{printable(out)}: written; {', '.join(run.state for run in runs)}")
        time.sleep(every)
        runs = [read(name) for name in given]


def _write(runs: list[Run], out: Path, values: dict[str, object]) -> None:
    write_page(
        out,
        "report.html",
        title=f"What {', '.join(run.name for run in runs)} learned",
        version=__version__,
        cards=[_card(run, number) for number, run in enumerate(runs)],
        panels=panels(runs),
        names=[run.name for run in runs],
        differences=differences(runs),
        signs=_signs(runs),
        **({"map": None, "gallery": [], "runs": [], "same_class": [], "note": ""} | values),
    )


def _images_of(run: Run, data: str, reader: str) -> tuple[ImageSet | None, str]:
    """The images to show; or None, and why."""
    settings = run.described["train"]
    source = data or run.described["data"]["path"]
    how: dict[str, Any] = {name: settings[name] for name in READING} | {"reader": reader}
    if settings["reader"] and not reader:  # a folder of others does not choose what runs here
        asked = f"--reader {printable(settings['reader'])} calls it here"
        missing = f"the run read its files by a function of its user's; {asked}"
        say(f"{printable(run.folder)}: {missing}")
        if not data:
            return None, f"{missing}; without images there are only curves here"
    try:
        return load(source, settings["follow_links"], **how), ""
    except InputError as error:
        if data:
            raise
        return None, f"{error}; without images there are only curves here"


def _card(run: Run, number: int) -> dict[str, object]:
    _, knn = run.points(run.knn) if run.knn else ([], [])
    return {"run": run, "colour": colour(number), "verdict": verdict(run), "knn": knn}


def _signs(runs: list[Run]) -> list[dict[str, object]]:
    """For each sign of any run: its normal range, and of each run where it began and is now."""
    tables = [{sign["name"]: sign for sign in signs(run)} for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    found = []
    for name in names:
        of_runs = [table.get(name) for table in tables]
        normal = next(sign["normal"] for sign in of_runs if sign)
        found.append({"name": name, "normal": normal, "runs": of_runs})
    return found


@dataclass(frozen=True)
class _Starts:
    """What does not change while runs go on: the images, and the networks before training."""

    sample: Sample
    network: Learned  # of the first run
    numbers: list[dict[str, float]]  # a method's own, for each run


def _starts(runs: list[Run], images: ImageSet, count: int, settings: EvalSettings) -> _Starts:
    methods = [untrained(run) for run in runs]
    backbones = [method.student.backbone for method in methods]
    sample = before_after.sample_of(images, [backbones[0], *backbones], count)
    start = before_after.embed_sample("before", backbones[0], sample, settings)
    return _Starts(sample, start, [own_numbers(method, sample) for method in methods])


def untrained(run: Run) -> Any:
    """The method as `cgh pretrain` made it: new layers of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.described["train"]["seed"])
        return new_method_of_run(run.folder)[0]


def trained(run: Run) -> tuple[Any, int]:
    """The method of a run's newest checkpoint, and its step."""
    method = untrained(run)
    step, file = checkpoint.newest(run.folder, lambda text: None)
    checkpoint.load_method_state(file, method)
    return method, step


def _pictures(runs: list[Run], starts: _Starts, settings: EvalSettings) -> dict[str, object]:
    """All that is shown of images, by the names that the template has for it."""
    sample = starts.sample
    networks = [starts.network]
    own = []
    for run, begun in zip(runs, starts.numbers, strict=True):
        method, step = trained(run)
        title = f"after {step:,} steps" + (f", {run.name}" if len(runs) > 1 else "")
        networks.append(before_after.embed_sample(title, method.student.backbone, sample, settings))
        own.append(_own(run, method, sample, begun))
    return {
        "gallery": before_after.gallery(networks, sample),
        "same_class": before_after.same_class(networks, sample),
        "map": before_after.maps(networks, sample),
        "runs": own,
        "note": _note(runs, sample),
    }


def _own(run: Run, method: Any, sample: Sample, begun: dict[str, float]) -> dict[str, object]:
    """A run's views, and what is its method's own."""
    config = from_dict(TrainConfig, run.described["train"])
    own = [change for change in config.view if is_own(change)]
    recipe = recipe_of(method.view_recipe, [c for c in config.view if c not in own])
    count = min(before_after.QUERIES, config.batch_size)
    views, indices = first_views(config, sample.images, recipe, count)
    ended, text, groups = own_pictures(method, sample, config, views, indices)
    if own:
        text += f" Views here are the recipe's; the run had its own: {', '.join(own)}."
    return {
        "name": run.name,
        "method": method.name,
        "numbers": [(name, begun[name], ended[name]) for name in begun],
        "text": text,
        "groups": groups,
        "views": before_after.contact_sheet(config, sample.images, recipe, views, indices),
        "same_images": run.described["data"]["digest"] == sample.images.digest,
    }


def _note(runs: list[Run], sample: Sample) -> str:
    """On which images, and what the start is."""
    start = f"Before: the untrained network of {runs[0].name}'s seed."
    note = f"{before_after.images_of(sample)} {start}"
    begun = [run.name for run in runs if run.described.get("init")]
    if begun:
        note += f" {', '.join(begun)} began with other weights, which are not shown."
    return note


def _weights_page(
    weights: str, out: Path, data: str, count: int, settings: EvalSettings, reader: str
) -> None:
    """Writes the page: the row, the curve of the training and, with ``data``, what it shows."""
    model = create_model(weights)
    row = manifest.find_row(weights)
    folder = manifest.find_folder(weights)
    if row and folder is None:
        folder = manifest.PACKAGE / "weights" / row.name
    shown: dict[str, object] = {"gallery": [], "map": None, "note": "", "same_class": []}
    if data:
        how: Reading = {**trained_reading(weights), "reader": reader}
        images = load(data, **how)
        sample = before_after.sample_of(images, [model], count)
        networks = [before_after.embed_sample("", model, sample, settings)]
        rows = [row for group in before_after.gallery(networks, sample) for row in group]
        shown["gallery"] = [rows]
        shown["same_class"] = before_after.same_class(networks, sample)
        shown["map"] = before_after.maps(networks, sample)
        shown["note"] = before_after.images_of(sample)
    facts = dict(_facts(row.to_json())) if row else {}
    curve = folder / CURVE if folder else None
    write_page(
        out,
        "weights.html",
        title=f"What {printable(weights)} learned",
        version=__version__,
        facts=[(name, facts.pop(name)) for name in _FIRST if name in facts],
        further=list(facts.items()),
        curve=address(curve.read_bytes(), "png") if curve and curve.is_file() else "",
        **shown,
    )


def _facts(row: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """The values of a row by their names, those inside of others too."""
    facts = []
    for name, value in row.items():
        full = f"{prefix}{name}"
        if full.startswith(_LEFT_OUT) or value in (None, [], "", {}):
            continue
        if isinstance(value, dict):
            facts += _facts(value, f"{full}.")
        elif isinstance(value, list):
            facts.append((full, printable(" ".join(map(str, value)))))
        else:
            facts.append((full, f"{value:,}" if type(value) is int else printable(value)))
    return facts
