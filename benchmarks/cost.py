"""What a training step of each method costs, counted on tensors without memory.

    python benchmarks/cost.py

Per image, ResNet-50 at 224 pixels, every method's default Config: floating-point operations of a
step (a multiplication and an addition are two) in units of one forward of the bare backbone, and
the bytes a method holds beside its student. No clock, no GPU, a few seconds; docs/methods.md has
the table that this prints.

    python benchmarks/cost.py processes

What several processes tell each other in a step: counted in steps that two processes take
together, compared with formulas, and by these the tables of docs/distributed.md. One to two
minutes on two cores; what was counted is kept in processes.json.
"""

import contextlib
import json
import multiprocessing
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from cgh_models.backbone import create, skeleton
from cgh_models.config import TrainConfig
from cgh_models.methods import METHODS
from cgh_models.one_process import OneProcess
from cgh_models.train.distributed import connected, joined
from cgh_models.train.norm_sync import norm_sync_of, running_statistics, synced_norms
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import train_step
from cgh_models.view_recipes import RECIPES

BATCH = 8


def count(function) -> int:
    """Operations that the function does."""
    with FlopCounterMode(display=False) as flops:
        function()
    return flops.get_total_flops()


def build(name: str, arch: str = "resnet50", **settings):
    """A method with its default Config, on meta tensors."""
    with torch.device("meta"):
        return METHODS[name](skeleton(arch).to("meta"), METHODS[name].Config(**settings)).to("meta")


def step_cost(
    name: str, arch: str = "resnet50", size: int = 224, batch: int = BATCH, **settings
) -> int:
    """Operations of a step: forwards, losses, backwards, queues, teacher."""
    method = build(name, arch, **settings)
    with torch.device("meta"):
        views = [
            torch.empty(batch, 3, view.side(size), view.side(size))
            for view in RECIPES[method.view_recipe]
        ]

        def step():
            method(views, 0.5)["loss"].backward()
            method.after_step(0.5)

        return count(step)


def beside(method) -> int:
    """Bytes of teacher and queues."""
    return sum(t.nbytes for key, t in method.state_dict().items() if not key.startswith("student."))


def costs() -> None:
    """Prints a row per method."""
    with torch.device("meta"):
        forward = count(lambda: skeleton("resnet50").to("meta")(torch.empty(BATCH, 3, 224, 224)))
    variants = [(name, {}) for name in METHODS]
    variants += [
        ("cgh", {"multi_crop": True}),
        ("ressl", {"multi_crop": True}),
        ("moco_v2", {"symmetric": True}),
    ]
    for name, settings in variants:
        shown = name + "".join(f", {key}" for key in settings)
        step = step_cost(name, **settings) / forward
        mebibytes = beside(build(name)) / 2**20
        print(f"| {shown} | {step:.1f} | {mebibytes:.0f} |")


# --- what several processes tell each other

# Each process hands over its rows of the batch, and all get those of all.
OF_THE_BATCH = ("images", "projections", "in-batch rows", "queue rows")
KINDS = ("gradients", "synchronized norms", "running statistics", "control", *OF_THE_BATCH)
# Who hands something over, by file and function, nearest first.
CALLERS = {
    ("default_hooks", "allreduce_hook"): "gradients",
    ("distributed", "backward"): "synchronized norms",
    ("norm_sync", "_forward"): "synchronized norms",
    ("distributed", "average"): "running statistics",
    ("distributed", "largest"): "control",
    ("distributed", "all_finite"): "control",
    ("feature_queue", "enqueue"): "queue rows",
    ("momentum_teacher", "teacher_forward"): "projections",
}
# Vectors of an image that are gathered: by shuffled teachers, for losses within the batch, for
# queues. Of nnclr two of each view; of mnclglf 5 of views and 2 x 6 of pairs of tiles.
VECTORS = {
    "cgh": (2, 0, 2),
    "lewel": (0, 0, 0),
    "lewel_m": (0, 0, 2),
    "mnclglf": (0, 17, 1),
    "ressl": (1, 0, 1),
    "moco_v2": (1, 0, 1),
    "byol": (0, 0, 0),
    "nnclr": (0, 4, 1),
    "sce": (1, 0, 1),
}
FLOAT = 4  # bytes
# What is counted: 2 images of 32 pixels for each of two processes.
PROCESSES, SHARE, SIDE = 2, 2, 32
COUNTED = Path(__file__).with_name("processes.json")


class Told(NamedTuple):
    """What a process hands over in a step."""

    bytes: Counter  # by kind
    passes: list[tuple[int, int]]  # through synchronized norms, as of `norm_passes`


def told(name: str, share: int, size: int, arch: str = "resnet50", **settings) -> Told:
    """The formulas: of ``share`` images a process, norms as the method's authors had them.

    Those that are synchronized are as on a CPU; `sent` has those of GPUs.
    """
    how, passes, trained, statistics, width = _networks(name, arch, tuple(settings.items()))
    shuffled, in_batch, queued = VECTORS[name]
    if how != "shuffle":
        shuffled = 0
    vectors = FLOAT * width * share
    found = {
        "gradients": FLOAT * trained,
        "synchronized norms": FLOAT * 2 * sum(channels * ways for channels, ways in passes),
        "running statistics": FLOAT * statistics,
        "control": 8 + FLOAT,  # whether there are images, and whether all is finite
        "images": FLOAT * share * 3 * size**2 * bool(shuffled),
        "projections": shuffled * vectors,
        "in-batch rows": in_batch * vectors,
        "queue rows": queued * vectors,
    }
    return Told(Counter(found), passes)


@cache
def _networks(name: str, arch: str, settings: tuple) -> tuple[str, list, int, int, int]:
    """How norms are synchronized, their passes, numbers that are trained and that norms keep, P."""
    method = build(name, arch, **short_queue(name), **dict(settings)).train()
    several = OneProcess()
    several.count = PROCESSES
    how = norm_sync_of(method, TrainConfig(), several)
    passes = norm_passes(method) if how == "sync" else []
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    statistics = 0 if how == "sync" else sum(t.numel() for t in running_statistics(method))
    return how, passes, trained, statistics, method.config.projection_width


def norm_passes(method: Any) -> list[tuple[int, int]]:
    """(channels, ways) of each pass of a step through a norm; ways: 2 with a backward, else 1."""
    passes = []

    def note(norm, _, out):
        if norm.training:
            passes.append((norm.num_features, 1 + out.requires_grad))

    hooks = [m.register_forward_hook(note) for m in method.modules() if isinstance(m, _BatchNorm)]
    with torch.device("meta"):
        method(views_of(method, 2, SIDE), 0.5)
    for hook in hooks:
        hook.remove()
    return passes


def views_of(method: Any, count: int, size: int) -> list[torch.Tensor]:
    """Views without content, on the default device."""
    sides = [view.side(size) for view in RECIPES[method.view_recipe]]
    return [torch.zeros(count, 3, side, side) for side in sides]


def short_queue(name: str) -> dict[str, int]:
    """The setting of a queue that takes no time; how long it is changes nothing that is told."""
    return {"queue_length": 64} if VECTORS[name][2] else {}


def count_told(runs: list[tuple], file: str | Path) -> None:
    """Writes the bytes of each (key, method, share, size, arch, settings), by kind, as counted.

    To be called by several processes, which take three steps of each; counted is the second.
    """
    found = {}
    with joined() as processes:
        for key, name, share, size, arch, settings in runs:
            torch.manual_seed(0)
            config = TrainConfig(batch_size=share * processes.count, image_size=size, device="cpu")
            chosen = METHODS[name].Config(**short_queue(name), **settings)
            method = METHODS[name](create(arch), chosen).train()
            optimizer = create_optimizer(method, config)
            views = [torch.randn_like(view) for view in views_of(method, share, size)]
            how = (0.5, 0.0, "cpu", torch.float32, 0.0, 1, processes)
            begun = []
            with (
                synced_norms(method, norm_sync_of(method, config, processes), processes),
                connected(method, processes, config) as network,
                counted(network) as counts,
            ):
                for step_views in processes.items(iter([views] * 3)):
                    begun.append(counts.copy())
                    train_step(network, optimizer, step_views, *how)
            found[key] = begun[2] - begun[1]
        if processes.rank == 0:
            Path(file).write_text(json.dumps(found, indent=1) + "\n")


@contextlib.contextmanager
def counted(network: Any) -> Iterator[Counter]:
    """Counts the bytes that this process hands over within it, by kind."""
    found: Counter = Counter()

    def all_reduce(tensor, *args, **kwargs):
        found[_kind(tensor)] += tensor.nbytes
        return reduce(tensor, *args, **kwargs)

    def all_gather(parts, rows, *args, **kwargs):
        found[_kind(rows)] += rows.nbytes
        return gather(parts, rows, *args, **kwargs)

    network.register_comm_hook(None, allreduce_hook)  # what the reducer does, from Python
    reduce, gather = dist.all_reduce, dist.all_gather
    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        yield found
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


def _kind(tensor: torch.Tensor) -> str:
    """What is handed over, by who does it."""
    frame = sys._getframe(2)
    while frame:
        caller = (Path(frame.f_code.co_filename).stem, frame.f_code.co_name)
        if caller in CALLERS:
            return "images" if tensor.ndim == 4 else CALLERS[caller]
        frame = frame.f_back
    return "in-batch rows"


def in_two_processes(work: Any, *args: Any) -> None:
    """Calls ``work`` in processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    started = []
    for rank in range(PROCESSES):
        env = {"RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = {name: str(value) for name, value in env.items()}
        started.append(context.Process(target=_called, args=(words, work, *args)))
        started[-1].start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def _called(env: dict[str, str], work: Any, *args: Any) -> None:
    os.environ |= env
    torch.set_num_threads(1)
    work(*args)


# --- what each sends, and how long that takes: models

GPUS = (8, 64, 256)
BATCHES = (256, 4096)
ON_A_NODE = 8
NVLINK = 450e9  # bytes a second and direction of a GPU: half of the 900 GB/s that NVIDIA states
NETWORK = 50e9  # of a GPU: a port of 400 Gbit/s each, as a DGX H100 has
SHARE_REACHED = 0.8  # of both; assumed
# Seconds until a message is through, of all processes of a node and of several; assumed.
LATENCY, LATENCY_OF_NETWORK = 20e-6, 60e-6
BEHIND_BACKWARD = 0.5  # share of the computing in which gradients are sent beside it; assumed
BUCKET = 25 * 2**20  # bytes of the last gradients, beside which nothing is left; torch's default
# Measured on one H200 (benchmarks/README.md): a step of cgh with 256 images of 224 pixels, and
# one of 64 pixels, in which the GPU waits until the host, with slow cores, has launched all.
STEP, STEP_IMAGES, LAUNCHES = 94.45e-3, 256, 58.4e-3


def sent(what: Told, count: int) -> Counter:
    """Bytes that each of so many GPUs sends in a step, by kind, where rings are used.

    An all-reduce of b bytes sends 2 (N - 1) / N b, a gather of b bytes of each (N - 1) b.
    Synchronized norms: torch's SyncBatchNorm gathers mean, deviation and count forward, and reduces
    two sums backward.
    """
    found = Counter()
    for kind, handed in what.bytes.items():
        gathered = count - 1
        found[kind] = handed * (gathered if kind in OF_THE_BATCH else 2 * gathered / count)
    found["synchronized norms"] = 0
    for width, ways in what.passes:
        found["synchronized norms"] += (count - 1) * FLOAT * (2 * width + 1)
        found["synchronized norms"] += (ways - 1) * 2 * (count - 1) / count * FLOAT * 2 * width
    return found


def bytes_table(count: int = ON_A_NODE) -> str:
    """Markdown: MB that each of so many GPUs sends in a step."""
    shown = ("gradients", "synchronized norms", "running statistics", *OF_THE_BATCH)
    lines = [
        f"| `--method` | {' | '.join(shown)} | all, batch 256 | all, batch 4,096 |",
        "|---|" + "---|" * (len(shown) + 2),
    ]
    for name in METHODS:
        of_256, of_4096 = (sent(told(name, batch // count, 224), count) for batch in BATCHES)
        cells = [_mb(of_256[kind]) for kind in shown]
        totals = f"{_mb(of_256.total())} | {_mb(of_4096.total())}"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {totals} |")
    return "\n".join(lines)


def _mb(count: float) -> str:
    if count == 0:
        return ""
    return f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:.1f}"


class Step(NamedTuple):
    """Seconds of a step."""

    computing: float
    waiting: float  # for messages
    launching: float  # by the host, beside both


def model_step(name: str, relative: float, batch: int, count: int) -> Step:
    """The step of a method that costs ``relative`` times one of cgh, on so many GPUs."""
    computing = relative * STEP * batch / count / STEP_IMAGES
    what = told(name, batch // count, 224)
    of_kind = sent(what, count)
    of_kind.pop("control")  # by the host
    speed = SHARE_REACHED * (NVLINK if count <= ON_A_NODE else NETWORK)
    latency = LATENCY if count <= ON_A_NODE else LATENCY_OF_NETWORK
    gradients = of_kind.pop("gradients")
    last = BUCKET * 2 * (count - 1) / count
    late = max(gradients / speed - BEHIND_BACKWARD * computing, last / speed)
    messages = 1 + sum(ways for _, ways in what.passes) + sum(map(bool, of_kind.values()))
    waiting = late + of_kind.total() / speed + messages * latency
    return Step(computing, waiting, relative * LAUNCHES)


def scaling_table(names: tuple[str, ...] = ("cgh", "byol")) -> str:
    """Markdown: the model's times, and images a second if launches are as fast as needed, or not.

    Percentages are of so many times one GPU that always computes.
    """
    lines = [
        "| `--method` | batch | GPUs | images of each | computing, ms | waiting, ms | images/s | "
        "launching, ms | images/s then |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    of_cgh = step_cost("cgh")
    for name in names:
        relative = step_cost(name) / of_cgh
        for batch in BATCHES:
            for count in GPUS:
                if batch < 2 * count:
                    continue
                step = model_step(name, relative, batch, count)
                took = step.computing + step.waiting
                speeds = []
                for seconds in (took, max(took, step.launching)):
                    share = 100 * step.computing / seconds
                    speeds.append(f"{batch / seconds:,.0f} ({share:.0f} %)")
                fast, launched = speeds
                sizes = f"{batch:,} | {count} | {batch // count}"
                times = f"{1000 * step.computing:.1f} | {1000 * step.waiting:.1f}"
                end = f"{1000 * step.launching:.0f} | {launched}"
                lines.append(f"| `{name}` | {sizes} | {times} | {fast} | {end} |")
    return "\n".join(lines)


def processes() -> None:
    """Counts, compares with the formulas, and prints both tables."""
    runs = [(name, name, SHARE, SIDE, "resnet50", {}) for name in METHODS]
    in_two_processes(count_told, runs, COUNTED)
    for name, found in json.loads(COUNTED.read_text()).items():
        expected = told(name, SHARE, SIDE).bytes
        assert found == +expected, (name, found, expected)
    print(f"counted and computed alike: {', '.join(METHODS)}\n")
    print(bytes_table())
    print()
    print(scaling_table())


if __name__ == "__main__":
    processes() if sys.argv[1:] == ["processes"] else costs()
