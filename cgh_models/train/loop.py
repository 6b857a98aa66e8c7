"""The training loop: `pretrain(method, data, config, run_dir)`, visible top to bottom.

method = CGH(backbone.create("resnet18_cifar"), CGH.Config(queue_length=4096))
pretrain(method, "photos/", TrainConfig(image_size=32, epochs=200), "runs/photos")
"""

import contextlib
import errno
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..backbone import architecture
from ..config import TrainConfig, explain_changes, to_dict
from ..data.image_set import ImageSet, load
from ..data.loader import batches, naming_dead_readers
from ..errors import InputError, Interrupted, out_of_memory, printable, say
from ..evaluate.extraction import pick_device, pick_precision
from ..schedule import learning_rate
from ..version import __version__
from ..view_recipes import RECIPES
from . import checkpoint
from .metric_log import Journal
from .monitor import Monitor
from .optim import create_optimizer
from .step import half_fits, prepare, train_step

LOCK = ".cgh-lock"


def pretrain(
    method: Any, data: str | Path | ImageSet, config: TrainConfig, run_dir: str | Path, *, resume: bool = False
) -> None:
    """Trains ``method`` in place on unlabelled images; everything else is left in ``run_dir``.

    Args:
        method: an nn.Module that keeps the `Method` protocol.
        data: a folder of images, a text file of paths, or an ImageSet.
        config: the trainer's settings.
        run_dir: new or empty for a new run; gets config.json, metrics.jsonl, checkpoints, bad_files.txt.
        resume: go on from the newest checkpoint in ``run_dir``; on the CPU bit-identical to never having stopped.

    Raises:
        InputError: unusable data or settings, a non-finite loss, or a run folder that is taken.
        IntegrityError: no undamaged checkpoint to resume from.
        Interrupted: a signal came; the state is saved.
    """
    run_dir, device = Path(run_dir), pick_device(config.device)
    images = open_images(data, config)
    signals = _Signals()
    monitor = Monitor(images, config, device, lambda: bool(signals.received))
    per_epoch = len(images) // config.batch_size
    total = per_epoch * config.epochs
    with _claim(run_dir), signals:
        _enter(run_dir, describe(method, images, config), resume)
        done, file = checkpoint.newest(run_dir, say) if resume else (0, None)
        if done == total:
            say(f"{run_dir}: finished at step {done} of {total}; export it: `cgh export {run_dir} --out WEIGHTS`")
            return
        images.log_bad_to(run_dir / "bad_files.txt")
        if images.pixels is None:
            images.keep_pixels(config.memory_gib, lambda: bool(signals.received))
            if images.pixels is None and (hint := images.decoder_hint()):
                say(hint)
        method.to(device, memory_format=torch.channels_last).train()
        prepare(method, config, device)
        optimizer = create_optimizer(method, config)
        if file:
            checkpoint.load(file, method, optimizer)
        recipe, precision = RECIPES[method.view_recipe], pick_precision(config.precision, device)
        backbone = method.student.backbone
        with naming_dead_readers(), Journal(run_dir, config, images, monitor, done, total) as journal:
            if not file:
                journal.measure(0, backbone)
                journal.keep(0, method, optimizer, must=True)
            if signals.received:  # while the images were read
                raise _interrupted(run_dir, signals.received, done, total)
            for views, indices in journal.timed(batches(images, recipe, config, done, total, device)):
                lr = learning_rate(done / total, config.lr, config.warmup)
                losses = None
                try:
                    losses = train_step(
                        method, optimizer, views, done / total, lr, device.type, precision, config.clip_norm,
                        config.accumulate,
                    )  # fmt: skip
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                if losses is None:  # not above: what failed holds its memory for as long as its error is handled
                    fits = half_fits(method, views, done / total, device.type, precision, config.accumulate)
                    if done:
                        journal.keep(done, method, optimizer, must=True)
                    raise _too_large(run_dir, config, device, done, fits) from None
                done += 1
                journal.step(done, lr, losses, indices, backbone)
                stop = signals.received if done < total else ""
                if stop or done == total or done % config.checkpoint_every == 0:
                    journal.keep(done, method, optimizer, must=bool(stop) or done == total)
                if stop:
                    raise _interrupted(run_dir, stop, done, total)
    say(f"{run_dir}: done after {total} steps; export it: `cgh export {run_dir} --out WEIGHTS`")


def _too_large(run_dir: Path, config: TrainConfig, device: torch.device, done: int, fits: bool) -> InputError:
    """What to do where a batch does not fit; ``fits`` says whether half of one did."""
    part = config.batch_size // config.accumulate
    saved = f"; saved at step {done}, `cgh resume {run_dir}`" if done else ""
    ways = "--grad-checkpointing, which a resumed run may add"
    if fits:
        parts = range(2 * config.accumulate, config.batch_size // 2 + 1)
        divisor = next((n for n in parts if config.batch_size % n == 0), 0)
        ways = f"--batch-size {part // 2} or {ways}"
        what = f"{part // 2} did when tried: give {f'--accumulate {divisor}, ' if divisor else ''}{ways}"
    else:
        what = f"nor did {part // 2}: give a smaller --image-size, a quarter of --batch-size or {ways}"
    return InputError(f"{part} images at once do not fit in the memory of {device}, {what}{saved}")


def _interrupted(run_dir: Path, signal_name: str, done: int, total: int) -> Interrupted:
    where = f"{signal_name} at step {done} of {total}"
    return Interrupted(f"{run_dir}: {where}, saved; go on with `cgh resume {run_dir}`")


def describe(method: Any, images: ImageSet, config: TrainConfig) -> dict[str, Any]:
    """What a run is: the content of its config.json."""
    init = {"init": method.started_from} if hasattr(method, "started_from") else {}
    return init | {
        "cgh_models": __version__,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": version("timm")}
        | {"commit": _commit()},
        "command": shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "cgh"), *sys.argv[1:]]),
        "method": method.name,
        "method_config": to_dict(method.config),
        "arch": architecture(method.student.backbone),
        "train": to_dict(config),
        "data": {"path": images.source, "count": len(images), "digest": images.digest},
    }


def _commit() -> str | None:
    """The commit of the code that runs, if it is a checkout and equal to that commit."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        done = [
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "cgh_models"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return None if done[1] else done[0]


def open_images(data: str | Path | ImageSet, config: TrainConfig) -> ImageSet:
    """The index of the training images, checked against the config. Raises InputError."""
    images = data if isinstance(data, ImageSet) else load(data, config.follow_links)
    if images is not data:
        images.say_skipped()
    if config.batch_size > len(images):
        raise InputError(
            f"batch size {config.batch_size}: larger than the set of {len(images)} images in {printable(images.root)}; "
            f"give --batch-size {len(images)} or less"
        )
    return images


def _enter(run_dir: Path, description: dict[str, Any], resume: bool) -> None:
    """Writes config.json for a new run; checks it, key by key, against a resumed one."""
    if not resume:
        if checkpoint.checkpoints(run_dir):
            raise InputError(f"{run_dir}: holds a run; `cgh resume {run_dir}` goes on with it, or give another --out")
        if (run_dir / "config.json").exists():
            checkpoint.read_run(run_dir)  # a run that was killed before it had saved anything starts over
            checkpoint.sweep(run_dir)
            (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        else:
            files.make_folder(run_dir, spare=frozenset({LOCK}))
        files.write_json(run_dir / "config.json", description)
        return
    safe, refused = explain_changes(checkpoint.read_run(run_dir), description)
    if refused:
        raise InputError(
            f"{run_dir}: a resumed run keeps its settings, but {'; '.join(refused)[:200]}; "
            f"a new run can start from it: `cgh pretrain --init {run_dir}`"
        )
    for line in safe:
        say(f"{run_dir}: {line}")
    checkpoint.sweep(run_dir)


@contextlib.contextmanager
def _claim(run_dir: Path) -> Iterator[None]:
    """Holds the run folder: a second trainer on it is refused, naming the first."""
    try:
        if not (run_dir / "config.json").exists():
            files.make_folder(run_dir, spare=frozenset({LOCK}))  # before anything is written into what is not a run's
        file = open(run_dir / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - held for the whole run
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be used as a run folder ({error.strerror}); give another --out") from error
    with file:
        try:
            import fcntl
        except ImportError:
            say("this system has no file locks: do not start two trainers on one run folder")
        else:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # workers do not inherit this kind
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    say(f"{run_dir}: no file locks there ({error.strerror}): do not start two trainers on it")
                else:
                    file.seek(0)
                    owner = printable(file.read().strip()) or "another process"
                    what = f"{run_dir}: {owner} is training here"
                    raise InputError(f"{what}; wait for it, or give another --out") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


class _Signals:
    """Remembers the first of TERM, INT, USR1, HUP; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: Any) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
