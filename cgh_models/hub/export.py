"""From a run to a weights folder: the bare backbone for timm, its heads, and its card."""

import math
import re
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..dataclass_json import from_dict, to_dict
from ..errors import InputError, IntegrityError, printable, say
from ..tensors import Tensors, rounded, write_tensors
from ..train import checkpoint
from ..train.checkpoint import is_run
from ..train.log_file import read_log
from ..train.run_folder import how_to_resume
from ..train.verdict import verdict_at
from . import manifest, weights_folder
from .card import CURVE
from .registry import new_method_of_run, read_method
from .row import CodeVersion, Metric, Row, TrainingImages

DTYPES = {"float32": torch.float32, "float16": torch.float16}
_HEADS = ("all", "student", "none")
_NO_TERMS = "The terms of these images were not stated by whoever trained on them."


def export(
    run_dir: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    heads: str = "all",
    with_queue: bool = False,
    tag: str = "",
    license: str = "",
    data_name: str = "",
    data_license: str = "",
) -> Row:
    """Writes a weights folder, reads it back, and returns its row.

    ``model.safetensors`` holds the student's backbone under timm's keys, ``config.json`` what timm
    needs, ``weights.json`` the row (see `row`), ``README.md`` the card, ``curve.png`` the training.

    Args:
        out: a new or empty folder.
        dtype: of the files; float16 halves them. A tensor that it cannot hold stays float32,
            which is said and noted in the card.
        heads: "all" with the teacher; the "student"'s alone, far fewer bytes; or "none".
        with_queue, tag, license, data_name, data_license: as the flags of ``cgh export``.

    Raises InputError for no run, choices that contradict, a tag that cannot be or a full ``out``;
    IntegrityError if what was written is not what is read back; DiskError if there is no room.
    """
    run_dir = Path(run_dir)
    _check_arguments(run_dir, dtype, heads, with_queue)
    method, run = new_method_of_run(run_dir)
    weights_folder.check_tag(tag or method.name)
    step, file = checkpoint.newest(run_dir, say)
    checkpoint.load_method_state(file, method.eval())
    states = weights_folder.states_of_files(method, heads, with_queue)
    kept = _round_values(states, dtype)
    rows = read_log(run_dir / "metrics.jsonl")
    made = _how_it_was_trained(method, run, step)
    made["notes"] += kept + _notes_said(run_dir, run, step, rows)
    made["license"] = license or None
    made["data"].name = printable(data_name) or made["data"].name
    made["data"].license_note = data_license or _NO_TERMS
    with weights_folder.new_folder(Path(out)) as draft:
        for name, state in states.items():
            (draft / name).parent.mkdir(exist_ok=True)
            write_tensors(draft / name, {k: rounded(v, DTYPES[dtype]) for k, v in state.items()})
        save_curve(rows, draft / CURVE)
        row = weights_folder.describe(draft, method.student.backbone, tag or method.name, **made)
        weights_folder.check_backbone(draft, method.student.backbone)
        _check_method(draft, states)
    return row


def _check_arguments(run_dir: Path, dtype: str, heads: str, with_queue: bool) -> None:
    if not is_run(run_dir):
        raise InputError(f"{printable(run_dir)}: not a run folder; give the --out of a pretraining")
    for name, given, choices in (("dtype", dtype, DTYPES), ("heads", heads, _HEADS)):
        if given not in choices:
            shown = printable(repr(given))[:60]
            raise InputError(f"{name}={shown}: expected one of {', '.join(choices)}")
    if with_queue and heads != "all":
        reason = "leaves the queues out, --with-queue keeps them; give one of the two"
        raise InputError(f"--heads {heads} (--no-heads is none) {reason}")


def record(folder: Path, name: str, metric: Metric) -> None:
    """Writes a measured number into the description and the card of a weights folder."""
    row = manifest.read_row(folder)
    metric.command = _without_folders(metric.command)
    metric.data = printable(metric.data)
    row.metrics[name] = metric
    weights_folder.write_description(folder, row)


def _round_values(states: dict[str, Tensors], dtype: str) -> list[str]:
    """Gives a method's tensors the values of files; says and returns what stays float32."""
    exact = []
    for state in states.values():
        for key, tensor in state.items():
            cast = rounded(tensor, DTYPES[dtype])
            if tensor.is_floating_point() and cast.dtype != DTYPES[dtype]:
                exact.append(key)
            tensor.copy_(cast)
    if not exact:
        return []
    names = ", ".join(exact[:3]) + (" and others" if len(exact) > 3 else "")
    note = f"{len(exact)} tensors are float32, as {dtype} cannot hold their values: {names}."
    say(note)
    return [note]


def _check_method(folder: Path, states: dict[str, Tensors]) -> None:
    if len(states) == 1:  # the backbone's alone
        return
    backbone, heads = weights_folder.split_state(read_method(folder, trusted=True)[0])
    loaded = backbone | heads
    for state in states.values():
        if not all(torch.equal(loaded[key], value) for key, value in state.items()):
            reason = "the heads read back differ from those trained; do not use it"
            raise IntegrityError(f"{folder}: {reason}")


def _how_it_was_trained(method: Any, run: dict[str, Any], step: int) -> dict[str, Any]:
    train = from_dict(TrainConfig, run["train"])
    data = run["data"]
    notes = [method.note] if hasattr(method, "note") else []
    if run["init"]:
        notes.append(f"Its training {_without_folders(run['init'])}.")
    return {
        "method": method.name,
        "method_config": run["method_config"],
        "train_config": to_dict(train) | {"eval_data": printable(Path(train.eval_data).name)},
        "data": TrainingImages(printable(Path(data["path"]).name), data["count"], data["digest"]),
        "epochs": step / max(1, data["count"] // train.batch_size),
        "steps": step,
        "seed": train.seed,
        "code": CodeVersion(run["cgh_models"], run["versions"].get("commit")),
        "command": _without_folders(run["command"]),
        "paper_ids": [method.paper],
        "notes": notes,
    }


def _notes_said(
    run_dir: Path, run: dict[str, Any], step: int, rows: list[dict[str, float]]
) -> list[str]:
    """Notes on a run that has not ended and on what it learned; what is bad is also said."""
    notes = []
    total = checkpoint.total_steps(run)
    if step < total:
        at = f"step {step} of {total}"
        resume = how_to_resume(run_dir)
        say(f"{run_dir}: is at {at}, exported before its end; {resume} goes on with it")
        notes.append(f"Exported at {at}, before the end of its training.")
    if found := verdict_at(step, rows, run):
        if found.alarm:
            say(f"{run_dir}: {found}")
        notes.append(f"Verdict of the measurements of its training: {printable(found)}.")
    return notes


def save_curve(log: list[dict[str, float]], path: Path) -> None:
    """Writes a PNG of loss and kNN accuracy side by side; nothing if the log has neither twice."""
    knn = "knn" if any("knn" in line for line in log) else "knn_train"  # without val/ images
    panels = {"loss": _points(log, "loss"), "kNN on a sample, %": _points(log, knn)}
    panels = {title: points for title, points in panels.items() if len(points) > 1}
    if not panels:
        return
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        say(f"{path.name} is not drawn: matplotlib is missing; pip install '.[report]'")
        return
    with style.context("default"):
        figure = Figure(figsize=(4.2 * len(panels), 2.6), dpi=100, layout="constrained")
        for place, (title, points) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), place, title=title, xlabel="step")
            axes.plot([step for step, _ in points], [value for _, value in points])
        figure.savefig(path, metadata={"Software": None})


def _points(log: list[dict[str, float]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in log if math.isfinite(line.get(key, math.nan))]


def _without_folders(command: str) -> str:
    """The text, escaped, with the last part alone of each path from the root."""
    return printable(re.sub(r"(?<![^\s='\"])[/~][^\s'\":;]*/([^\s/'\":;]+)", r"\1", command))
