"""Trains a row for as many of its epochs as the time allows, and exports it."""

import contextlib
import dataclasses
import itertools
import json
import math
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cgh_models.config import TrainConfig
from cgh_models.data.image_set import ImageSet, load_splits
from cgh_models.dataclass_json import to_dict
from cgh_models.errors import InputError, Interrupted, say, shell_command
from cgh_models.evaluate.devices import pick_device
from cgh_models.evaluate.splits import subset
from cgh_models.hub import manifest
from cgh_models.hub.export import export
from cgh_models.hub.registry import is_run
from cgh_models.hub.weights_folder import write_description
from cgh_models.methods import build_method, preprocessing
from cgh_models.train import checkpoint
from cgh_models.train.log_file import read_log
from cgh_models.train.loop import pretrain
from cgh_models.train.run_folder import explain_changes

from .rows import DATA, Wanted

# Steps, and four for every worker: what they had ready at the start must not count for much.
TRIAL = 40
LINES = 200  # of a log that are copied, beside those with a measurement
SHARE = 0.9  # of the minutes that is trained; the rest finds out the speed, reads images, exports
LOG, TOOK = "log.jsonl", "took.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and with what.

    Attributes:
        data: folder of cifar10 and tiny-imagenet-200.
        out: folder for runs and weights.
        device, workers: as in TrainConfig.
    """

    data: Path
    out: Path
    device: str = "auto"
    workers: int = 2


def train(row: Wanted, place: Place, minutes: float, goal: int) -> Path:
    """The weights folder of the row, with its thinned log; resumes an interrupted run.

    Args:
        goal: epochs it is to have, and may not have fewer of; 0: the row's, as many as fit into
            the minutes.

    Raises:
        InputError: no such images, too few minutes, or OUT/NAME is something else.
    """
    run, folder = place.out / "runs" / row.name, place.out / row.name
    if folder.exists():
        return _finished(row, folder)
    images, _ = load_splits(place.data / row.data)  # what it is measured on has to be there, too
    if is_run(run):
        epochs = checkpoint.read_run(run)["train"]["epochs"]
    else:
        epochs = _epochs(row, images, place, minutes, goal)
    config, method_config = row.configs(epochs, place.device, place.workers)
    with _called(row.command(epochs)):
        _run(row, images, config, method_config, run)
    return export_run(row, run, folder)


def export_run(row: Wanted, run: Path, folder: Path) -> Path:
    """The weights folder of a finished run of the row, with its thinned log.

    The run may have been made by hand, in any number of parts. The row's command is written into
    the folder, whatever folders the one that was typed had in it.

    Raises:
        InputError: the run is not at its end, or has other settings than the row.
    """
    if folder.exists():
        return _finished(row, folder)
    found = checkpoint.read_run(run)
    step, _ = checkpoint.newest(run, say)
    total = checkpoint.total_steps(found)
    if step < total:
        resume = shell_command("cgh", "resume", run)
        raise InputError(f"{run}: is at step {step} of {total}; {resume} goes on with it")
    _check_settings(row, run, found)
    made = folder.with_name(f"{row.name}.export")
    shutil.rmtree(made, ignore_errors=True)  # one that was cut short
    name, terms, _ = DATA[row.data]
    export(
        run,
        made,
        dtype="float16",
        heads=row.heads,
        with_queue=row.heads == "all",
        tag=row.tag,
        license="apache-2.0",
        data_name=name,
        data_license=terms,
    )
    log = read_log(run / "metrics.jsonl")
    command = row.command(found["train"]["epochs"])
    _complete(row, made, command, parts=1 + sum("resumed" in line for line in log))
    every = max(1, len(log) // LINES)
    kept = [
        line
        for n, line in enumerate(log, 1)
        if n % every == 0 or n == len(log) or "feature_std" in line
    ]
    (made / LOG).write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    took = {
        "hardware": hardware(found["versions"].get("device", "cpu")),
        "hours": float(f"{hours(log, found['train']['batch_size']):.3g}"),
    }
    (made / TOOK).write_text(json.dumps(took))
    made.rename(folder)
    return folder


def _check_settings(row: Wanted, run: Path, found: dict[str, Any]) -> None:
    """Raises InputError unless a run has the row's settings, but for what changes no result."""
    epochs = found["train"]["epochs"]
    train, method = row.configs(epochs)
    wanted = found | {"method": row.method, "arch": row.arch, "method_config": to_dict(method)}
    settled = {name: found["train"][name] for name in ("precision", "pixel_range")}
    wanted["train"] = to_dict(train) | settled
    _, differs = explain_changes(wanted, found)
    if differs:
        raise InputError(f"{run}: {'; '.join(differs)}; expected `{row.command(epochs)}`")


def _finished(row: Wanted, folder: Path) -> Path:
    """The folder, if it is what the row asks for."""
    found = manifest.read_row(folder) if (folder / TOOK).is_file() else None
    if found is None or found.command != row.command(round(found.epochs or 0)):
        made = f"was made by `{found.command}`" if found else "is no row that was trained here"
        raise InputError(f"{folder}: {made}; move it away, or change --out, to train {row.name}")
    return folder


def _complete(row: Wanted, folder: Path, command: str, parts: int) -> None:
    """Adds what export cannot know."""
    found = manifest.read_row(folder)
    found.command = command
    stopped = [f"Its training was stopped and resumed: {parts} parts."] if parts > 1 else []
    found.notes = [DATA[row.data][2], *row.notes, *stopped, *found.notes]
    write_description(folder, found)


def _epochs(row: Wanted, images: ImageSet, place: Place, minutes: float, goal: int) -> int:
    found = speed(row, images, place)
    on_cpu = pick_device(place.device).type == "cpu"
    most = goal or (row.cpu_epochs if on_cpu and row.cpu_epochs else row.epochs)
    least = goal or row.least
    epochs = min(most, int(SHARE * 60 * minutes * found / len(images)))
    say(
        f"{row.name}: {found:.0f} images a second, {epochs} of {most} epochs in {minutes:g} minutes"
    )
    if epochs < least:
        need = math.ceil(least * len(images) / found / 60 / SHARE)
        raise InputError(
            f"{row.name}: {epochs} epochs in {minutes:g} minutes, expected {least}; "
            f"give --minutes {need}"
        )
    return epochs


def speed(row: Wanted, images: ImageSet, place: Place) -> float:
    """Images a second, from a short run of the row without its first third."""
    config, method_config = row.configs(1, place.device, place.workers)
    count = min((TRIAL + 4 * place.workers) * config.batch_size, len(images))
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        try:
            _run(
                row,
                subset(images, range(count)),
                dataclasses.replace(config, log_every=2),
                method_config,
                run,
            )
        except Interrupted as stop:
            raise InputError(
                f"{row.name}: stopped while its speed was measured; nothing was trained yet"
            ) from stop
        log = read_log(run / "metrics.jsonl")
    steps = count // config.batch_size
    late = [line for line in log if line["step"] > steps // 3 and "images_per_second" in line]
    return len(late) / sum(1 / line["images_per_second"] for line in late)


def _run(row: Wanted, images: ImageSet, config: TrainConfig, method_config: Any, run: Path) -> None:
    torch.manual_seed(config.seed)
    method = build_method(
        row.method, row.arch, preprocessing(config), dataclasses.asdict(method_config)
    )
    pretrain(method, images, config, run, resume=is_run(run))


@contextlib.contextmanager
def _called(command: str) -> Iterator[None]:
    """Sets sys.argv to ``command``, which a run records as the command that made it."""
    before, sys.argv = sys.argv, shlex.split(command)
    try:
        yield
    finally:
        sys.argv = before


def hours(log: list[dict[str, Any]], batch_size: int) -> float:
    """Of training, from the speeds in a log."""
    timed = [
        (line["step"], line["images_per_second"]) for line in log if "images_per_second" in line
    ]
    steps = [after - before for (before, _), (after, _) in itertools.pairwise([(0, 0.0), *timed])]
    seconds = [batch_size * count / rate for count, (_, rate) in zip(steps, timed, strict=True)]
    return sum(seconds) / 3600


def hardware(device: str) -> str:
    """What it was trained on; ``device`` is "cpu", or a GPU's name as a run records it."""
    if device != "cpu":
        return f"one {device}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    name = platform.processor() or platform.machine()
    if models:
        name = models[0].partition(":")[2].strip()
    return f"{torch.get_num_threads()} threads of {name}"
