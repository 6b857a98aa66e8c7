"""What a run is going to do, said before its first step, and what speaks against it."""

import copy
import dataclasses
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import architecture
from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..data.loader import exact_views, normalized, order
from ..errors import out_of_memory, printable, say
from ..evaluate.devices import pick_device, pick_precision
from ..schedule import learning_rate
from ..view_recipes import Recipe
from .liveness import Watch
from .optim import create_optimizer
from .run import Run
from .small_outputs import small_outputs_by_products
from .step import prepare, train_step
from .verdict import FEW_IN_BATCH, swapped_temperatures

FEW_STEPS = 500
_TIMED = 16  # images of the first timed steps; of two more, if those were fast, a whole batch
_FAST = 1.0  # seconds
_SMALL = 64  # pixels, of the proposal for a CPU
_HOUR = 3600.0


def say_processes(run: Run) -> None:
    """Says how many there are, what each does, and what happens when one goes silent."""
    count = run.processes.count
    if count > 1 and run.processes.rank == 0:
        share = f"{run.config.batch_size // count} images of a batch each"
        end = f"one that is silent for {Watch.SILENT} s ends the run, which can then be resumed"
        say(f"{count} processes, {share}, norms: {run.norm_sync}; {end}")


def say_plan(
    method: object, images: ImageSet, config: TrainConfig, recipe: Recipe, processes: int = 1
) -> None:
    """Says the plan of a run of so many processes on stderr."""
    for line in plan(method, images, config, recipe, processes):
        say(line)


def plan(
    method: Any, images: ImageSet, config: TrainConfig, recipe: Recipe, processes: int = 1
) -> list[str]:
    """Lines about a run that has not begun. Times a step or two on a copy of the method.

    Of several processes a step is timed with the images that each of them takes.
    """
    device = pick_device(config.device)
    steps = len(images) // config.batch_size
    total = steps * config.epochs
    of_process = dataclasses.replace(config, batch_size=config.batch_size // processes)
    times = []
    sizes = []
    begun = 0
    for size, end in config.phases:
        of_phase = dataclasses.replace(of_process, image_size=size, size_schedule="")
        of_step = seconds_of_step(method, images, of_phase, device, recipe)
        times.append((end - begun) * steps * of_step)
        before = f" before epoch {end}" if end < config.epochs else ""
        sizes.append(f"{', '.join(str(view.side(size)) for view in recipe)} pixels{before}")
        begun = end
    seconds = sum(times) if all(times) else 0.0
    trained = _count(p for p in method.student.parameters() if p.requires_grad)
    backbone = _count(method.student.backbone.parameters())
    queue = _queue_length(method)
    lines = [
        f"images   {len(images):,} of {printable(images.place)}",
        f"steps    {total:,}: {config.epochs} epochs of {steps:,}, {config.batch_size} images "
        f"each; warm-up of {math.ceil(config.warmup * total):,}",
        f"views    {len(recipe)} of each image ({method.view_recipe}; {', '.join(sizes)}"
        f"{'; ' if config.view else ''}{' '.join(config.view)})",
        f"networks {method.name} on {architecture(method.student.backbone)}: backbone "
        f"{backbone / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained with its heads",
        f"time     about {_duration(seconds)} on {device}, without reading images"
        if seconds
        else f"time     not known: a step could not be timed on {device}",
        f"files    {_megabytes(_checkpoint_bytes(method))} a checkpoint, of which two are kept; "
        f"{_megabytes(4 * backbone)} of an export",
    ]
    if queue:
        lines.append(f"queue    {queue:,} images, {queue / len(images):.2g} times those of the set")
    warnings = _warnings(method, images, config, total)
    if device.type == "cpu" and seconds > _HOUR:
        warnings.append(_within_an_hour(config, seconds))
    return lines + [f"warning: {text}" for text in warnings]


def _warnings(method: Any, images: ImageSet, config: TrainConfig, total: int) -> list[str]:
    """What speaks against the run, and what to type instead."""
    found = []
    if total < FEW_STEPS:
        epochs = math.ceil(FEW_STEPS / max(1, len(images) // config.batch_size))
        few = f"{total} steps are few to learn from: --epochs {epochs} makes {FEW_STEPS} or more"
        found.append(f"{few}, a smaller --batch-size more of an epoch")
    queue = _queue_length(method)
    if queue > len(images):
        smaller = 2 ** max(0, len(images).bit_length() - 2)
        larger = f"the queue ({queue:,}) is larger than the set, so that an image meets itself"
        found.append(f"{larger} in it: --set queue_length={smaller} is smaller")
    if config.batch_size < FEW_IN_BATCH:
        few = f"{config.batch_size} images a batch are few for batch norms"
        found.append(f"{few}: --batch-size {FEW_IN_BATCH} or more")
    if swapped := swapped_temperatures(vars(method.config)):
        found.append(swapped)
    return found


def _within_an_hour(config: TrainConfig, seconds: float) -> str:
    """Flags with which a run ends within an hour on this CPU."""
    flags = ""
    if config.image_size > _SMALL and not config.size_schedule:
        # Convolutions cost as many times less as there are pixels.
        seconds *= (_SMALL / config.image_size) ** 2
        flags = f"--image-size {_SMALL} "
    epochs = int(config.epochs * _HOUR / seconds)
    if epochs:
        flags += f"--epochs {min(epochs, config.epochs)}"
    else:
        share = config.epochs * _HOUR / seconds
        flags += f"--epochs 1 and {100 * share:.2g} % of the images"
    return f"a GPU is meant by these settings; with {flags} it is about an hour here"


def seconds_of_step(
    method: nn.Module, images: ImageSet, config: TrainConfig, device: torch.device, recipe: Recipe
) -> float:
    """Seconds that a step of a whole batch takes, without its views; 0 if that is not known.

    Nothing of it stays: neither in the method nor in the random state.
    """
    if config.compile:
        return 0.0
    try:
        trained: Any = copy.deepcopy(method)
        on_gpu = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(on_gpu), small_outputs_by_products(trained, device):
            trained.to(device, memory_format=torch.channels_last).train()
            prepare(trained, config, device)
            optimizer = create_optimizer(trained, config)
            parts = config.accumulate
            splits = getattr(method.config, "batch_norm_splits", 1)
            count = min(config.batch_size, max(_TIMED, 2 * splits) * parts)
            few_views = _few_views(recipe, images, config, count)
            dtype = pick_precision(config.precision, device)
            settings = (device.type, dtype, config.clip_norm, parts)
            rate = learning_rate(0.0, config.lr, config.warmup)
            taken = 0.0
            for number, size in enumerate((count, count, *[config.batch_size] * 2)):
                views = [few[torch.arange(size) % len(few)].to(device) for few in few_views]
                start = time.perf_counter()
                losses = train_step(trained, optimizer, views, 0.0, rate, *settings)
                losses["loss"].item()  # waits for the device
                taken = (time.perf_counter() - start) * config.batch_size / size
                if number == 1 and taken > _FAST:  # 0 also allocates, as 2 does
                    break
            return taken
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return 0.0


def _few_views(recipe: Recipe, images: ImageSet, config: TrainConfig, count: int) -> list[Tensor]:
    """Views (n, C, S, S) of at most _TIMED images for each view of the recipe."""
    chosen = order(config.seed, 0, len(images))[: min(count, _TIMED)]
    made = exact_views(images, recipe, config, 0, chosen)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return [normalized(view, pixels, mean, std) for view, pixels in zip(recipe, made, strict=True)]


def _queue_length(method: object) -> int:
    queue = getattr(method, "queue", None)
    return queue.rows.shape[1] if queue is not None else 0


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _checkpoint_bytes(method: nn.Module) -> int:
    """Of all its tensors and the optimizer's state, one number for each that is trained."""
    tensors = [tensor.numel() * tensor.element_size() for tensor in method.state_dict().values()]
    return sum(tensors) + 4 * _count(p for p in method.parameters() if p.requires_grad)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count > 5e5 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:,.0f} hours"
