"""What a GPU does in a step with its views: images/s, kernels, how long it works, host syncs.

Each step is taken twice: launched kernel by kernel, and replayed as by `--cuda-graphs`.

    python benchmarks/bench_gpu.py        # `make test-gpu` runs it after the tests
    python benchmarks/bench_gpu.py cudnn  # a step with cudnn.benchmark off and on, by turns
    python benchmarks/bench_gpu.py cpu    # a small step, to see that the script works

Images are noise that lies on the device as pixels, as small images of a run do.
"""

import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.data.batched_views import ViewRequest, fast_views
from cgh_models.data.draws import COLUMNS, boxes, uniform
from cgh_models.evaluate import pick_precision
from cgh_models.methods import CGH
from cgh_models.train.cuda_graphs import ReplayedViews, replayed_passes
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import prepare, train_step
from cgh_models.view_recipes import RECIPES

WARM, STEPS, PROFILED, TURNS = 5, 30, 3, 3


class Way(NamedTuple):
    """A network, its images, and CGH's sizes."""

    arch: str
    side: int
    batch: int
    queue: int
    width: int
    splits: int = 1
    replayed: bool = False

    @property
    def name(self) -> str:
        splits = f", norms of {self.splits} parts" if self.splits > 1 else ""
        how = ", replayed" if self.replayed else ""
        return f"{self.arch}, {self.side} pixels, batch {self.batch}{splits}{how}"


ON_GPU = (
    Way("resnet18_cifar", 32, 256, 4096, 128),
    Way("resnet18_cifar_w16", 32, 256, 4096, 128),
    Way("resnet18_cifar_w16", 32, 256, 4096, 128, splits=8),
    Way("resnet18", 64, 128, 16384, 128),
    Way("resnet50", 224, 256, 131072, 512),
)
ON_CPU = (Way("resnet18_cifar_w16", 32, 16, 64, 16),)
BY_TURNS = (
    ON_GPU[0],
    ON_GPU[3],
    Way("resnet50", 64, 256, 16384, 128),
    Way("resnet50", 224, 128, 16384, 128),
)


@contextlib.contextmanager
def stepper(way: Way, device: torch.device) -> Iterator[Callable[[int], object]]:
    """Takes the step of that number: views of pixels on the device, then a training step.

    The first steps, which choose algorithms and take memory, have been taken.
    """
    config = TrainConfig(image_size=way.side, batch_size=way.batch, cuda_graphs=way.replayed)
    sizes = {"queue_length": way.queue, "projection_width": way.width}
    method = CGH(create(way.arch), CGH.Config(**sizes, batch_norm_splits=way.splits))
    method.to(device, memory_format=torch.channels_last).train()
    prepare(method, config, device)
    optimizer = create_optimizer(method, config)
    shape = (way.batch, way.side, way.side, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    mean, std = torch.full((2, 3), 0.5, device=device)
    last = (device.type, pick_precision("auto", device))
    make = ReplayedViews() if way.replayed else fast_views

    def step(number: int) -> object:
        asked = []
        for stream, view in enumerate(RECIPES[method.view_recipe]):
            u = uniform(0, number, np.arange(way.batch), COLUMNS, stream)
            box = boxes(view, u, way.side, way.side)
            asked.append(ViewRequest(view, pixels, u, view.side(way.side), box))
        return train_step(method, optimizer, make(asked, mean, std), 0.5, 0.01, *last)

    with replayed_passes(method, config, device):
        for number in range(WARM):
            step(number)
        wait(device)
        yield step


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def host_syncs(step: Callable[[int], object]) -> int:
    """How often the processor waits for a GPU in a step."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(WARM)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in said)


def kernels_and_work(step: Callable[[int], object], device: torch.device) -> tuple[float, float]:
    """Kernels of a step, and milliseconds in which the device works."""
    of_device = DeviceType.CPU if device.type == "cpu" else DeviceType.CUDA
    activity = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as taken:
        for number in range(PROFILED):
            step(number)
        wait(device)
    events = [event for event in taken.events() or [] if event.device_type == of_device]
    microseconds = sum(
        event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
        for event in events
    )
    return len(events) / PROFILED, microseconds / PROFILED / 1000


def cudnn_by_turns(ways: Sequence[Way], device: torch.device) -> None:
    """Prints what the device works in a step, with cuDNN's own choices and with those by timing."""
    print("| a step of CGH with its views | busy ms, cudnn.benchmark off | on |\n|---|---|---|")
    for way in ways:
        steps, works = {}, {False: [], True: []}
        with contextlib.ExitStack() as until:
            for timed in works:
                torch.backends.cudnn.benchmark = timed
                steps[timed] = until.enter_context(stepper(way, device))
            for timed in [*works] * TURNS:
                torch.backends.cudnn.benchmark = timed
                works[timed].append(kernels_and_work(steps[timed], device)[1])
        off, on = (f"{statistics.median(values):.4g}" for values in works.values())
        print(f"| {way.name} | {off} | {on} |")


def main() -> None:
    """Prints a row for each way."""
    on_cpu = sys.argv[1:] == ["cpu"]
    if not on_cpu and not torch.cuda.is_available():
        raise SystemExit("bench_gpu.py: needs a CUDA device; `bench_gpu.py cpu` tries the script")
    device = torch.device("cpu" if on_cpu else "cuda")
    print(f"{torch.__version__}, {'cpu' if on_cpu else torch.cuda.get_device_name()}\n")
    if sys.argv[1:] == ["cudnn"]:
        return cudnn_by_turns(BY_TURNS, device)
    print("| a step of CGH with its views | images/s | ms | kernels | busy ms | host syncs |")
    print("|---|---|---|---|---|---|")
    ways = [way._replace(replayed=replayed) for way in ON_GPU for replayed in (False, True)]
    for way in ON_CPU if on_cpu else ways:
        with stepper(way, device) as step:
            start = time.perf_counter()
            for number in range(STEPS):
                step(number)
            wait(device)
            seconds = (time.perf_counter() - start) / STEPS
            kernels, work = kernels_and_work(step, device)
            syncs = "-" if on_cpu else host_syncs(step)
        numbers = f"{way.batch / seconds:,.0f} | {1000 * seconds:.4g} | {kernels:,.0f}"
        print(f"| {way.name} | {numbers} | {work:.4g} | {syncs} |", flush=True)


if __name__ == "__main__":
    main()
