"""The training loop: `pretrain(method, data, config, run_dir)`, visible from top to bottom.

config = TrainConfig(image_size=32, epochs=200)
settings = CGH.Config(queue_length=4096)
method = build_method("cgh", "resnet18_cifar", preprocessing(config), settings)
pretrain(method, "photos/", config, "runs/photos")
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..backbone import OWN
from ..config import TrainConfig
from ..data.loader import batches
from ..errors import InputError, Interrupted, NetworkError, say, shell_command
from ..evaluate.devices import pick_precision
from ..kept_memory import freed_memory_kept
from ..schedule import learning_rate
from ..tensors import plain_defaults
from . import checkpoint
from .arguments import checked_run
from .cuda_graphs import ReplayedViews, replayed_passes
from .distributed import connected, joined
from .launch import is_launched
from .log_file import read_log
from .metric_log import MetricLogger
from .monitor import Monitor
from .norm_sync import synced_norms
from .optim import create_optimizer
from .plan import say_plan, say_processes
from .run import Run
from .run_folder import how_to_resume, locked_by_first, write_or_check_config
from .signals import StopSignals
from .small_outputs import small_outputs_by_products
from .step import MemoryGuard, batch_too_large, does_not_fit, half_fits, prepare, train_step
from .verdict import verdict_at


@plain_defaults()
def pretrain(
    method: torch.nn.Module,
    data: object,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    plan: bool = False,
    on_log: Callable[[dict[str, float]], object] | None = None,
    views: Sequence[object] | None = None,
) -> None:
    """Trains ``method`` in place on unlabelled images; everything else is left in ``run_dir``.

    Called by each process that torchrun starts, they share each batch (docs/distributed.md).

    Args:
        method: an nn.Module with the members of `Method`.
        data: images: a folder, a list of paths, arrays, a dataset, ... as `data.load` takes them.
        config: the trainer's settings.
        run_dir: new or empty for a new run; gets config.json, metrics.jsonl and checkpoints.
        resume: go on from the newest checkpoint; on the CPU to the same bits as without a stop.
        plan: say first what it is going to do, and how long that takes by some timed steps.
        on_log: is called with each line of metrics.jsonl, a dict, when it is written.
        views: in place of the method's: a `View`, or a function as of `data.own_views`, for each.

    Raises InputError for unusable data or settings, a loss that is not finite, or a run folder that
    is taken; IntegrityError without an undamaged checkpoint to resume from; Interrupted when a
    signal came, after the state is saved.
    """
    with joined() as processes:
        arguments = (method, data, config, run_dir, resume, views, processes)
        run = processes.together(lambda: checked_run(*arguments))
        signals = StopSignals(launched=is_launched())
        monitor = processes.together(lambda: Monitor(run, signals))
        kept = freed_memory_kept(run.device)
        with locked_by_first(run.folder, processes), signals, kept:
            done, file = processes.from_first(lambda: _open_folder(method, run, resume))
            log = MetricLogger(run, monitor, done, resume, on_log)
            if done == run.total and not log.unmeasured(done):
                say(_ending(run.folder, f"finished at step {done} of {run.total}", done))
                return
            say_processes(run)
            if plan:
                asked = (method, run.images, run.config, run.recipe, processes.count)
                processes.from_first(lambda: signals.unless_stopped(lambda: say_plan(*asked)))
            processes.together(lambda: signals.unless_stopped(lambda: _read_images(run)))
            done = _train(method, run, file, log, signals)

        if done < run.total or log.unmeasured(done):
            name = signals.received or "a signal to another process"
            stopped = f"{run.folder}: {name} at step {done} of {run.total}, saved"
            raise Interrupted(f"{stopped}; go on with {how_to_resume(run.folder)}")
        say(_ending(run.folder, f"done after {run.total} steps", done))


def _open_folder(method: Any, run: Run, resume: bool) -> tuple[int, Path | None]:
    """The steps that a run has done, and its checkpoint; a new one gets its config.json."""
    write_or_check_config(method, run, resume)
    return checkpoint.resume_point(run.folder, say) if resume else (0, None)


def _read_images(run: Run) -> None:
    """Keeps the pixels in memory if they fit; tries again what bad_files.txt names already."""
    run.images.log_bad_files_to(run.folder / "bad_files.txt")
    if run.images.pixels is None:
        run.images.cache_pixels(run.config.memory_gib / run.processes.on_machine)
        run.images.report_decoder()


def _train(
    method: Any, run: Run, file: Path | None, log: MetricLogger, signals: StopSignals
) -> int:
    """The steps of a run, from those that its checkpoint ``file`` has. Returns how many are done.

    Raises InputError if the images, or memory, end before, or if the embeddings have collapsed and
    the config asks to stop then.
    """
    # --- networks and optimizer
    config, device, processes = run.config, run.device, run.processes
    done, total = log.done, run.total
    method.to(device, memory_format=torch.channels_last).train()
    prepare(method, config, device)
    optimizer = create_optimizer(method, config)
    if file:
        processes.together(lambda: checkpoint.load(file, method, optimizer))

    # --- loop
    dtype = pick_precision(config.precision, device)
    settings = (device.type, dtype, config.clip_norm, config.accumulate)
    guard = MemoryGuard(method)
    make = ReplayedViews() if config.cuda_graphs and device.type == "cuda" else None
    loader = batches(run.images, run.recipe, config, done, total, device, processes, make)
    with (
        log,
        contextlib.closing(loader),
        replayed_passes(method, config, device),
        small_outputs_by_products(method, device),
        synced_norms(method, run.norm_sync, processes),
        connected(method, processes, config) as network,
        _saved_at(NetworkError, lambda: log.rescue(done)),  # batches and measurements read images
    ):
        log.start(method, optimizer)
        read = processes.items(signals.until_stopped(loader))
        read = _until_error(read, lambda: log.rescue(done))
        for views, indices in log.timed(read):
            progress = done / total
            lr = learning_rate(progress, config.lr, config.warmup, 1 / total)
            losses = None
            with guard:
                losses = train_step(network, optimizer, views, progress, lr, *settings, processes)
            if losses is None and processes.count > 1:
                raise does_not_fit(config, device, processes)
            if losses is None:
                fits = half_fits(method, views, progress, device.type, dtype, config.accumulate)
                raise batch_too_large(config, device, fits, log.rescue(done))
            done += 1

            log.add_step(done, lr, losses, indices)
            if log.is_measured_after(done):
                log.measure(done)
                if config.stop_when_collapsed and log.verdict and log.verdict.collapsed:
                    raise InputError(f"step {done}: {log.verdict}{log.rescue(done)}")
            elif done % log.log_every == 0:
                log.flush()
            if done % config.checkpoint_every == 0:
                log.save_checkpoint(done)
        log.save_checkpoint(done, must=True)
    return done


@contextlib.contextmanager
def _saved_at(kind: type[Exception], save: Callable[[], str]) -> Iterator[None]:
    """Within it, an error of this kind first saves what was trained; ``save`` returns a clause."""
    try:
        yield
    except kind as error:
        raise kind(f"{error}{save()}") from error


def _until_error(items: Iterator[Any], save: Callable[[], str]) -> Iterator[Any]:
    """The same items; if reading them ends in an InputError, what was trained is saved."""
    with _saved_at(InputError, save):
        yield from items


def _ending(run_dir: Path, text: str, done: int) -> str:
    """The last line of a run that is done: what comes next, or that it is worth nothing."""
    log = read_log(run_dir / "metrics.jsonl")
    run = checkpoint.read_run(run_dir)
    found = verdict_at(done, log, run)
    if found and found.collapsed:
        return f"{run_dir}: {text}, but it {found}; start anew with a lower --base-lr"
    alone = ["--format", "state-dict"] if run["arch"].startswith(OWN) else []
    export = shell_command("cgh", "export", run_dir, *alone, "--out", "WEIGHTS")
    if found and found.alarm:
        return f"{run_dir}: {text}, but it is {found}; to export it all the same: {export}"
    said = f", {found}" if found else ""
    return f"{run_dir}: {text}{said}; export it: {export}"
