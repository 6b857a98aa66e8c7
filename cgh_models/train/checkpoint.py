"""The private, resumable state of a run: safetensors and JSON, written so that a kill at any moment loses nothing.

A run folder holds `config.json` (what the run is), `checkpoint-<step>.safetensors` (the last two), and
`checkpoints.json`, which names them with size and sha256 and is replaced only after the file it names is safe.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import TrainConfig, from_dict
from ..errors import InputError, IntegrityError, printable
from ..files import read_json, sha256, write_json
from ..tensors import misfit, read_tensors, write_tensors

KEEP = 2
_INDEX = "checkpoints.json"
_NAMES = r"checkpoint-\d{8,}\.safetensors|checkpoints\.json|config\.json|metrics\.jsonl"
_OURS = re.compile(rf"checkpoint-\d{{8,}}\.safetensors|\.({_NAMES})\.[0-9a-f]+\.tmp")
_RUN_KEYS = {"cgh_models", "versions", "command", "method", "method_config", "arch", "train", "data"}


def save(run_dir: Path, step: int, method: nn.Module, optimizer: Optimizer) -> None:
    """Writes the state after ``step`` steps, then points to it, then lets the oldest go."""
    tensors = {f"method.{key}": value for key, value in method.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items() if value is not None}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    path = run_dir / f"checkpoint-{step:08d}.safetensors"
    write_tensors(path, tensors)
    entry = {"file": path.name, "step": step, "bytes": path.stat().st_size, "sha256": sha256(path)}
    known = [e for e in checkpoints(run_dir) if e["step"] < step]  # a damaged later one is not worth a place
    write_json(run_dir / _INDEX, {"checkpoints": [entry, *known][:KEEP]})
    sweep(run_dir)


def checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    """The checkpoints of a run, newest first: file, step, bytes, sha256. Empty if there are none yet."""
    path = run_dir / _INDEX
    if not path.exists():
        return []
    entries = read_json(path, "the list of a run's checkpoints").get("checkpoints")
    keys = {"file": str, "step": int, "bytes": int, "sha256": str}
    good = isinstance(entries, list) and all(
        isinstance(e, dict) and e.keys() == keys.keys() and all(isinstance(e[k], t) for k, t in keys.items())
        and Path(e["file"]).name == e["file"] for e in entries
    )  # fmt: skip
    if not good:
        raise IntegrityError(f"{printable(path)}: not a list of checkpoints; the run cannot be resumed without it")
    return entries  # pyright: ignore[reportReturnType]


def sweep(run_dir: Path) -> None:
    """Removes what a killed run left behind: temporary files and checkpoints nobody points to."""
    named = {entry["file"] for entry in checkpoints(run_dir)}
    for path in run_dir.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def newest(run_dir: Path, say: Callable[[str], None]) -> tuple[int, Path]:
    """(step, file) of the newest undamaged checkpoint; says when it has to fall back to an older one.

    Raises:
        InputError: the run has none yet.
        IntegrityError: all are damaged.
    """
    entries = checkpoints(run_dir)
    if not entries:
        raise InputError(f"{printable(run_dir)}: holds no checkpoint; start it with `cgh pretrain --out {run_dir}`")
    for entry in entries:
        path = run_dir / entry["file"]
        if path.is_file() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]:
            return entry["step"], path
        say(f"{printable(path)}: damaged (size or sha256 differs from what was written); trying an older checkpoint")
    raise IntegrityError(f"{printable(run_dir)}: every checkpoint is damaged; start the run again in a new folder")


def load(path: Path, method: nn.Module, optimizer: Optimizer) -> None:
    """Restores method, optimizer and random state, strictly."""
    tensors = read_tensors(path, ours=True)
    load_method_state(path, method, tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # fused kernels walk memory: the same strides as the parameter's
                values[name] = torch.empty_like(parameter).copy_(value)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])


def load_method_state(path: Path, method: nn.Module, tensors: dict[str, Tensor] | None = None) -> None:
    """Restores a method from a checkpoint file, strictly."""
    tensors = read_tensors(path, ours=True) if tensors is None else tensors
    state = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    if odd := misfit(method.state_dict(), state):
        raise IntegrityError(f"{printable(path)}: does not fit the model: {odd}; was the architecture changed?")
    method.load_state_dict(state)


def read_run(run_dir: Path) -> dict[str, Any]:
    """`config.json` of a run, checked: its keys, and the trainer's settings.

    Raises:
        InputError: not a run folder, or an unknown or missing key.
    """
    path = run_dir / "config.json"
    run = read_json(path, "the config.json of a run folder")
    if odd := (run.keys() ^ _RUN_KEYS) - {"init"}:  # what it started from, where it did
        odd = ", ".join(sorted(map(printable, odd)))
        raise InputError(
            f"{printable(path)}: unknown or missing keys ({odd[:120]}); expected one written by cgh pretrain"
        )
    shapes = {"versions": dict, "method": str, "method_config": dict, "arch": str, "train": dict, "data": dict}
    odd = [key for key, kind in shapes.items() if not isinstance(run[key], kind)]
    if odd or run["data"].keys() != {"path", "count", "digest"}:
        raise InputError(f"{printable(path)}: {(odd or ['data'])[0]} is not what cgh pretrain writes; restore the file")
    from_dict(TrainConfig, run["train"])
    return run
