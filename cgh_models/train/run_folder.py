"""A run folder: used by one trainer at a time, and described by its config.json."""

import contextlib
import dataclasses
import errno
import functools
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..backbone import OWN, architecture
from ..config import CHANGES, TrainConfig
from ..data import kept_index
from ..data.archive import GIVEN
from ..data.listing import further_endings
from ..dataclass_json import meant_before, to_dict
from ..errors import InputError, os_error_as, printable, say, shell_command
from ..evaluate.devices import pick_precision
from ..methods.method import Method
from ..one_process import OneProcess
from ..version import __version__
from ..view_recipes import is_own
from . import checkpoint
from .log_file import refuse_lost_checkpoints
from .run import Run

LOCK = ".cgh-lock"


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Makes the run folder, if it is new, and holds its lock; nothing is put into another's."""
    with os_error_as(InputError, run_dir, "cannot be used as a run folder", "give another --out"):
        if (run_dir / "config.json").exists():
            checkpoint.read_run(run_dir)
        else:
            left = checkpoint.temporary_files(run_dir)  # of one killed as it wrote config.json
            files.make_folder(run_dir, LOCK, *(path.name for path in left))
        file = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held for the whole run
    with file:
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # workers do not inherit this kind
        except ImportError:
            say("this system has no file locks: do not start two trainers on one run folder")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = printable(file.read().strip()) or "another process"
                what = f"{run_dir}: {owner} is training here"
                raise InputError(f"{what}; wait for it, or give another --out") from error
            reason = f"no file locks there ({error.strerror})"
            say(f"{run_dir}: {reason}: do not start two trainers on it")
        with contextlib.suppress(OSError):  # of a full disk, which whatever is written next says
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextlib.contextmanager
def locked_by_first(run_dir: Path, processes: OneProcess) -> Iterator[None]:
    """`lock_run_dir` by rank 0, for all processes of a run."""
    with contextlib.ExitStack() as lock:
        processes.from_first(lambda: lock.enter_context(lock_run_dir(run_dir)))
        yield


def is_training(run_dir: Path) -> bool:
    """Whether another process holds the run's lock; False where a system has no such locks."""
    try:
        import fcntl

        with open(run_dir / LOCK, "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for as long as the file is open
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    except ImportError:
        return False
    return False


def how_to_resume(run_dir: Path) -> str:
    """The command that goes on with a run, or the call: the command has nothing of a program's."""
    run = checkpoint.read_run(run_dir)
    of_python = run["arch"].startswith(OWN) or run["data"]["path"].startswith(GIVEN)
    if of_python or any(map(is_own, run["train"]["view"])):
        return "`pretrain(..., resume=True)` in Python"
    return shell_command("cgh", "resume", run_dir)


def settle(config: TrainConfig, device: torch.device, run_dir: Path, resume: bool) -> TrainConfig:
    """The config with a full path for ``eval_data``, and with what "auto" stands for.

    A resumed run keeps its own precision ("auto", if it is of an older version) and range of
    pixels. In a new run the device decides the precision, and the images their range.
    """
    if Path(config.eval_data).exists() and config.eval_data:
        config = dataclasses.replace(config, eval_data=str(Path(config.eval_data).resolve()))
    decided = {}
    if resume:
        before = checkpoint.read_run(run_dir)["train"]
        for name in ("precision", "pixel_range"):
            if getattr(config, name) == "auto":
                decided[name] = before[name]
    elif config.precision == "auto":
        decided["precision"] = str(pick_precision("auto", device)).removeprefix("torch.")
    return dataclasses.replace(config, **decided)


def write_or_check_config(method: Method, run: Run, resume: bool) -> None:
    """Writes config.json for a new run; compares it, key by key, with that of a resumed one."""
    run_dir = run.folder
    if resume:
        _check_config(method, run)
    elif checkpoint.is_run(run_dir):
        resume_hint = f"{how_to_resume(run_dir)} goes on with it"
        raise InputError(f"{run_dir}: holds a run; {resume_hint}, or give another --out")
    else:
        if (run_dir / "config.json").exists():  # of one that was killed before its first checkpoint
            refuse_lost_checkpoints(run_dir)
            log = run_dir / "metrics.jsonl"
            if log.is_file():  # what else it may be gets another name
                log.unlink()
        files.write_json(run_dir / "config.json", describe_run(method, run))
    checkpoint.remove_temporary_files(run_dir)
    kept_index.keep(run_dir / kept_index.FILE, run.images)


def _check_config(method: Method, run: Run) -> None:
    """Says what differs from the config.json of a resumed run. Raises InputError for most of it."""
    images = run.images
    before = checkpoint.read_run(run.folder)
    images.accept_mended(run.folder / "bad_files.txt", before["data"]["digest"])
    if dataclasses.is_dataclass(method.config):
        before["method_config"] = meant_before(type(method.config)) | before["method_config"]
    is_list = not images.archive and Path(images.source).is_file()
    is_other = images.digest != before["data"]["digest"]
    further = further_endings(images.names) if is_other and not is_list else {}
    after = describe_run(method, run)
    allowed, refused = explain_changes(before, after, further)
    if refused:
        new_run = shell_command("cgh", "pretrain", "--init", run.folder)
        what = f"{run.folder}: a resumed run keeps its settings, but {'; '.join(refused)[:200]}"
        raise InputError(f"{what}; a new run can start from it: {new_run}")
    for line in [*allowed, *_changed_versions(before, after)]:
        say(f"{run.folder}: {line}")


def describe_run(method: Method, run: Run) -> dict[str, Any]:
    """The content of config.json."""
    command = [Path(sys.argv[0]).name.replace("__main__.py", "cgh"), *sys.argv[1:]]
    images, device = run.images, run.device
    description = {
        "cgh_models": __version__,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": version("timm"),
            "commit": _commit(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": run.processes.count,
        },
        "command": shlex.join(command),
        "method": method.name,
        "method_config": to_dict(method.config),
        "arch": architecture(method.student.backbone),
        "train": to_dict(run.config) | {"pixel_range": images.pixel_range},
        "data": {"path": images.source, "count": len(images), "digest": images.digest},
    }
    if images.hidden:
        description["data"]["hidden"] = images.hidden
    if started_from := getattr(method, "started_from", None):
        description["init"] = started_from
    return description


def _changed_versions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A sentence, if the run goes on with other software or another device."""
    old, new = ({"cgh_models": run["cgh_models"], **run["versions"]} for run in (before, after))
    names = [name for name in new if new[name] and old.get(name) not in (None, new[name])]
    changed = ", ".join(f"{name} {str(old[name])[:40]} -> {new[name]}" for name in names)
    return [f"other versions, which may change results: {changed}"] if changed else []


def _commit() -> str | None:
    """The commit of the code that runs, if it is a checkout without changes."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    run = functools.partial(subprocess.check_output, cwd=root, text=True, stderr=subprocess.PIPE)
    try:
        if run(["git", "status", "--porcelain", "cgh_models"]):
            return None
        return run(["git", "rev-parse", "HEAD"]).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def explain_changes(
    before: dict[str, Any], after: dict[str, Any], further: dict[str, int] | None = None
) -> tuple[list[str], list[str]]:
    """What differs between two ``config.json``: changes a resumed run may have, then the others.

    ``further`` counts the images, by ending, that versions left out which read fewer formats.
    """
    allowed = []
    refused = []
    for key, changes in CHANGES.items():
        old, new = before["train"][key], after["train"][key]
        if old != new:
            lines = allowed if changes.startswith("nothing") else refused
            lines.append(f"{key}: {old} -> {new} changes {changes}")
    model_before, model_after = (
        run["method_config"] | {"method": run["method"], "arch": run["arch"]}
        for run in (before, after)
    )
    for key, old in model_before.items():
        new = model_after.get(key)
        if old != new:
            refused.append(f"{key}: {old} -> {new} changes the model")
    if before["data"]["digest"] != after["data"]["digest"]:
        counts = f"{before['data']['count']} -> {after['data']['count']} images"
        hidden = after["data"].get("hidden", 0) - before["data"].get("hidden", 0)
        if hidden > 0:
            counts += f" ({hidden} hidden or system entries are left out now)"
        if further:
            kinds = [f"{count} x {ending}" for ending, count in further.items()]
            others = ", ..." if len(kinds) > 3 else ""
            counts += f" ({', '.join(kinds[:3])}{others} are read, as earlier versions did not)"
        refused.append(f"data: {counts}, and not the same files: changes the images")
    return allowed, refused
