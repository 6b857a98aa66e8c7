"""The private, resumable state of a run: safetensors and JSON. A kill at any moment loses nothing.

A run folder holds `config.json` (what the run is), `checkpoint-<step>.safetensors` (the last two),
and `checkpoints.json`, their index with size and sha256, written after the file that it names.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..config import TrainConfig
from ..dataclass_json import from_dict, from_older, to_dict
from ..errors import DiskError, InputError, IntegrityError, os_error_as, printable, shell_command
from ..files import read_json, write_json
from ..hashing import sha256
from ..tensors import Tensors, read_tensors, refuse_mismatch, write_tensors
from ..version import __version__
from .log_file import refuse_lost_checkpoints

KEEP = 2
_INDEX = "checkpoints.json"
_CHECKPOINT = r"checkpoint-\d{8,}\.safetensors"
_TEMPORARY = rf"\.({_CHECKPOINT}|(checkpoints|config)\.json|metrics\.jsonl)\.[0-9a-f]+\.tmp"
_TEMPORARY += r"|\.tmp[A-Za-z0-9]{6}"  # safetensors' own, before it has that name


@dataclass(frozen=True)
class CheckpointEntry:
    """A row of checkpoints.json."""

    file: str
    step: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class RunImages:
    """``data`` of config.json."""

    path: str
    count: int
    digest: str
    hidden: int = 0


@dataclass(frozen=True)
class RunDescription:
    """The keys of config.json; ``init`` is there if the run started from weights."""

    method: str
    method_config: dict
    arch: str
    train: dict
    data: dict
    cgh_models: str = "unknown"
    versions: dict = field(default_factory=dict)
    command: str = ""
    init: str = ""


def save(run_dir: Path, step: int, method: nn.Module, optimizer: Optimizer) -> None:
    """Writes the state after ``step`` steps, then the index, then removes what they supersede."""
    tensors = {f"method.{key}": value for key, value in method.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{number}.{key}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    device = next(method.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    path = run_dir / f"checkpoint-{step:08d}.safetensors"
    write_tensors(path, tensors)
    with os_error_as(DiskError, path, "cannot be read back", "check the disk"):
        entries = _write_index(run_dir, path)
        names = _names(run_dir)
    if len(entries) == KEEP:
        for name in names:
            if _step(name) < entries[-1].step:
                with contextlib.suppress(OSError):  # the next save tries it again
                    (run_dir / name).unlink()


def _write_index(run_dir: Path, path: Path) -> list[CheckpointEntry]:
    """Makes a checkpoint the newest of the index, with older ones that are there; returns it."""
    step = _step(path.name)
    older = [e for e in read_index(run_dir) if e.step < step and (run_dir / e.file).is_file()]
    entry = CheckpointEntry(path.name, step, path.stat().st_size, sha256(path))
    entries = [entry, *older][:KEEP]
    write_json(run_dir / _INDEX, {"checkpoints": [to_dict(row) for row in entries]})
    return entries


def resume_point(run_dir: Path, say: Callable[[str], None]) -> tuple[int, Path]:
    """`newest`; the index then names it, and newer ones, which were passed over, are renamed.

    Else a damaged one could later take the place of a good one.
    """
    step, path = newest(run_dir, say)
    newer = [run_dir / name for name in _names(run_dir) if _step(name) > _step(path.name)]
    for damaged in newer:
        damaged.replace(damaged.with_name(damaged.name + ".damaged"))
        say(f"{printable(damaged)}: renamed to {damaged.name}.damaged")
    if [entry.file for entry in read_index(run_dir)][:1] != [path.name]:
        _write_index(run_dir, path)
    return step, path


def newest(run_dir: Path, say: Callable[[str], None]) -> tuple[int, Path]:
    """(step, file) of the newest undamaged checkpoint; says which ones are passed over.

    A file that the index does not name, as it was lost or is older, counts if it can be read.

    Raises:
        InputError: there is no checkpoint yet.
        IntegrityError: all are damaged.
        DiskError: the system cannot read one; that it is damaged is not known then.
    """
    index = {entry.file: entry for entry in read_index(run_dir)}
    for file in newest_first(run_dir):
        path = run_dir / file
        with os_error_as(DiskError, path, "cannot be read", "check disk and permissions"):
            problem = _problem(path, index.get(file))
        if problem:
            say(f"{printable(path)}: {problem}; trying an older checkpoint")
            continue
        if file not in index:
            say(f"{printable(path)}: not in {_INDEX}, which is lost or older; read and taken")
        return _step(file), path
    reason = "every checkpoint is damaged; start anew in another folder"
    raise IntegrityError(f"{printable(run_dir)}: {reason}")


def newest_first(run_dir: Path) -> list[str]:
    """The checkpoints that are there or in the index. Raises InputError if there is none."""
    files = {entry.file for entry in read_index(run_dir)} | set(_names(run_dir))
    if not files:
        refuse_lost_checkpoints(run_dir)
        start = shell_command("cgh", "pretrain", "--out", run_dir)
        raise InputError(f"{printable(run_dir)}: holds no checkpoint; start it with {start}")
    return sorted(files, key=_step, reverse=True)


def _problem(path: Path, entry: CheckpointEntry | None) -> str:
    """Why a checkpoint cannot be taken; "" if it can. Raises OSError or DiskError if not read."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError, InputError, IntegrityError):
        if entry:
            same = sha256(path) == entry.sha256
            return "" if same else "damaged (sha256 differs from what was written)"
        if "random.cpu" in read_tensors(path, ours=True):
            return ""
    return "not a readable checkpoint"


def total_steps(run: dict[str, Any]) -> int:
    """How many steps a run has at its end, by its description."""
    return run["data"]["count"] // run["train"]["batch_size"] * run["train"]["epochs"]


def is_run(run_dir: Path) -> bool:
    """Whether the trainer has saved a checkpoint into this folder."""
    described = (run_dir / "config.json").is_file()
    return (run_dir / _INDEX).is_file() or (described and bool(_names(run_dir)))


def read_index(run_dir: Path) -> list[CheckpointEntry]:
    """The rows of checkpoints.json, newest first; none if it is not there or not what it should be.

    Raises DiskError if the system cannot read it now.
    """
    try:
        rows = read_json(run_dir / _INDEX, "the index of a run's checkpoints")["checkpoints"]
        entries = [from_dict(CheckpointEntry, row) for row in rows]
    except (InputError, IntegrityError, AttributeError, KeyError, TypeError) as error:
        if isinstance(error.__cause__, OSError):
            raise DiskError(str(error)) from error
        return []
    are_ours = all(re.fullmatch(_CHECKPOINT, e.file) and _step(e.file) == e.step for e in entries)
    return entries if are_ours else []


def temporary_files(run_dir: Path) -> list[Path]:
    """What a write that was killed left behind; none in a folder that is not there."""
    paths = run_dir.iterdir() if run_dir.is_dir() else ()
    return [path for path in paths if re.fullmatch(_TEMPORARY, path.name)]


def remove_temporary_files(run_dir: Path) -> None:
    """Removes them."""
    for path in temporary_files(run_dir):
        path.unlink(missing_ok=True)


def _names(run_dir: Path) -> list[str]:
    return [path.name for path in run_dir.iterdir() if re.fullmatch(_CHECKPOINT, path.name)]


def _step(name: str) -> int:
    return int(name.removeprefix("checkpoint-").removesuffix(".safetensors"))


def load(path: Path, method: nn.Module, optimizer: Optimizer) -> None:
    """Restores method, optimizer and random state, strictly."""
    tensors = load_method_state(path, method)
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # fused kernels need the parameter's strides
                values[name] = torch.empty_like(parameter).copy_(value)
    torch.set_rng_state(tensors["random.cpu"])
    device = next(method.parameters()).device
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def load_method_state(path: Path, method: nn.Module) -> Tensors:
    """Restores a method from a checkpoint file, strictly; returns all tensors of the file."""
    tensors = read_tensors(path, ours=True)
    state = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    refuse_mismatch(method.state_dict(), state, path, "was the architecture changed?")
    method.load_state_dict(state)
    return tensors


def read_run(run_dir: Path) -> dict[str, Any]:
    """`config.json` of a run, completed by what it meant where it is older than a key or setting.

    Raises InputError for unknown keys and settings, and for those that are missing without that.
    """
    path = run_dir / "config.json"
    run = read_json(path, "the config.json of a run folder")
    try:
        run = to_dict(from_older(RunDescription, run))
        run["train"] = to_dict(from_older(TrainConfig, run["train"]))
        from_older(RunImages, run["data"])
    except InputError as error:
        writer = printable(run.get("cgh_models", __version__))[:20]
        other = f" of {__version__}, not {writer}: use that" if writer != __version__ else ""
        expected = f"expected one written by cgh pretrain{other}"
        raise InputError(f"{printable(path)}: {printable(error)}; {expected}") from error
    return run
