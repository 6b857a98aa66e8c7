"""The training loop: `pretrain(method, data, config, run_dir)`, visible from top to bottom.

config = TrainConfig(image_size=32, epochs=200)
settings = CGH.Config(queue_length=4096)
method = build_method("cgh", "resnet18_cifar", preprocessing(config), settings)
pretrain(method, "photos/", config, "runs/photos")
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ..config import TrainConfig
from ..data import kept_index
from ..data.image_set import ImageSet, load
from ..data.loader import batches
from ..errors import InputError, Interrupted, NetworkError, printable, say, shell_command
from ..evaluate.devices import pick_device, pick_precision
from ..one_process import OneProcess
from ..own_network import OWN
from ..schedule import learning_rate
from ..tensors import plain_defaults
from ..view_recipes import Recipe
from . import checkpoint
from .arguments import check_arguments, settle_views
from .cuda_graphs import replayed_passes
from .distributed import connected, joined
from .launch import check_shares, does_not_fit, is_launched, own_device, say_processes
from .log_file import read_log
from .metric_log import MetricLogger
from .monitor import Monitor
from .norm_sync import norm_sync_of, synced_norms
from .optim import create_optimizer
from .plan import say_plan
from .run_folder import how_to_resume, locked_by_first, settle, write_or_check_config
from .signals import StopSignals
from .step import MemoryGuard, batch_too_large, half_fits, prepare, train_step
from .verdict import verdict_at

Item = TypeVar("Item")


@plain_defaults()
def pretrain(
    method: Any,
    data: Any,
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    plan: bool = False,
    on_log: Callable[[dict[str, float]], object] | None = None,
    views: Sequence[Any] | None = None,
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
        run = processes.together(lambda: _settled(*arguments))
        signals = StopSignals(launched=is_launched())
        monitor = processes.together(
            lambda: Monitor(run.images, run.config, run.device, signals, run.recipe, processes)
        )
        with locked_by_first(run.folder, processes), signals:
            done, file = processes.from_first(lambda: _opened(run, method, resume, processes.count))
            log = MetricLogger(
                run.folder,
                run.images,
                run.config,
                run.device,
                monitor,
                done,
                resume,
                on_log,
                processes,
            )
            if done == log.total and not processes.from_first(lambda: log.missed(done)):
                say(_ending(run.folder, f"finished at step {done} of {log.total}", done))
                return
            _prepare(method, run, signals, plan, processes)
            done = _train(method, run, file, log, signals, processes)

        if done < log.total or processes.from_first(lambda: log.missed(done)):
            name = signals.received or "a signal to another process"
            stopped = f"{run.folder}: {name} at step {done} of {log.total}, saved"
            raise Interrupted(f"{stopped}; go on with {how_to_resume(run.folder)}")
        say(_ending(run.folder, f"done after {log.total} steps", done))


class _Run(NamedTuple):
    """What a run is made of, checked."""

    folder: Path
    device: torch.device
    recipe: Recipe
    config: TrainConfig
    images: ImageSet
    norm_sync: str  # as `norm_sync_of` says


def _settled(
    method: Any,
    data: Any,
    config: TrainConfig,
    run_dir: str | Path,
    resume: bool,
    views: Sequence[Any] | None,
    processes: OneProcess,
) -> _Run:
    """The arguments of `pretrain`, checked before work begins."""
    folder = check_arguments(method, config, run_dir)
    device = pick_device(own_device(processes, config.device))
    recipe, config = settle_views(method, views, settle(config, device, folder, resume))
    images = open_images(data, config, folder / kept_index.FILE if resume else None)
    check_batch(images, config)
    check_shares(processes, config)
    norm_sync = norm_sync_of(method, config, processes)
    return _Run(folder, device, recipe, config, images, norm_sync)


def _prepare(
    method: Any, run: _Run, signals: StopSignals, plan: bool, processes: OneProcess
) -> None:
    """Says what is going to be done, and reads what fits in memory."""
    say_processes(processes, run.config, run.norm_sync)
    if plan:
        processes.from_first(
            lambda: signals.unless_stopped(
                lambda: say_plan(method, run.images, run.config, run.recipe, processes.count)
            )
        )
    processes.together(lambda: signals.unless_stopped(lambda: _read_images(run, processes)))


def _train(
    method: Any,
    run: _Run,
    file: Path | None,
    log: MetricLogger,
    signals: StopSignals,
    processes: OneProcess,
) -> int:
    """The steps of a run, from those that its checkpoint ``file`` has. Returns how many are done.

    Raises InputError if the images, or memory, end before.
    """
    # --- networks and optimizer
    _, device, recipe, config, images, norm_sync = run
    done, total = log.done, log.total
    method.to(device, memory_format=torch.channels_last).train()
    prepare(method, config, device)
    optimizer = create_optimizer(method, config)
    if file:
        processes.together(lambda: checkpoint.load(file, method, optimizer))

    # --- loop
    dtype = pick_precision(config.precision, device)
    settings = (device.type, dtype, config.clip_norm, config.accumulate)
    guard = MemoryGuard(method)
    loader = batches(images, recipe, config, done, total, device, processes)
    with (
        log,
        contextlib.closing(loader),
        replayed_passes(method, config, device),
        synced_norms(method, norm_sync, processes),
        connected(method, processes, config) as network,
        _saved_without_network(lambda: log.rescue(done, method, optimizer)),
    ):
        log.start(method, optimizer)
        read = processes.items(signals.until_stopped(loader))
        read = _saved_if_it_ends(read, lambda: log.rescue(done, method, optimizer))
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
                raise batch_too_large(config, device, fits, log.rescue(done, method, optimizer))
            done += 1
            log.log_step(done, lr, losses, indices, method, optimizer)
        log.save_checkpoint(done, method, optimizer, must=True)
    return done


def _opened(run: _Run, method: Any, resume: bool, processes: int) -> tuple[int, Path | None]:
    """The steps that a run has done, and its checkpoint; a new one gets its config.json."""
    write_or_check_config(run.folder, method, run.images, run.config, resume, processes)
    return checkpoint.resume_point(run.folder, say) if resume else (0, None)


def _read_images(run: _Run, processes: OneProcess) -> None:
    """Keeps the pixels of a run's images in memory if they fit; its bad files are read again."""
    run.images.log_bad_files_to(run.folder / "bad_files.txt")
    if run.images.pixels is None:
        run.images.cache_pixels(run.config.memory_gib / processes.on_machine)
        run.images.report_decoder()


def _saved_if_it_ends(items: Iterator[Item], save: Callable[[], str]) -> Iterator[Item]:
    """The same items; if reading them ends in an error, what was trained is saved, which it says.

    ``save`` returns a clause.
    """
    try:
        yield from items
    except InputError as error:
        raise InputError(f"{error}{save()}") from error


@contextlib.contextmanager
def _saved_without_network(save: Callable[[], str]) -> Iterator[None]:
    """The same for whatever reads images from an address: batches and measurements."""
    try:
        yield
    except NetworkError as error:
        raise NetworkError(f"{error}{save()}") from error


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


def open_images(data: Any, config: TrainConfig, kept: Path | None = None) -> ImageSet:
    """The index of the training images, ``kept`` as in `load`. Raises InputError."""
    how = config.reading | {"cache_gib": config.cache_gib, "kept": kept}
    images = load(data, config.follow_links, **how)
    if (images.in_chans, images.reader) != (config.in_chans, config.reader):
        given = f"data: an ImageSet with in_chans={images.in_chans}, reader={images.reader!r}"
        raise InputError(f"{given}; load it with **config.reading")
    images.max_bad = config.max_bad
    if not isinstance(data, ImageSet):
        images.report_skipped()
    return images


def check_batch(images: ImageSet, config: TrainConfig) -> None:
    """Raises InputError if there are fewer images than in one batch."""
    if config.batch_size > len(images):
        raise InputError(
            f"batch size {config.batch_size}: larger than the set of {len(images)} images in "
            f"{printable(images.place)}; give --batch-size {len(images)} or less"
        )
