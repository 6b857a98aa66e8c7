"""A training step of CGH on a CPU against the same step in plain PyTorch.

    python benchmarks/cpu_step.py [ARCH SIDE BATCH]

Plain: the published order of operations under autocast in channels_last, torch's SGD, a loop over
the teacher's parameters, as a user of a library of losses and heads writes it. Each way has
processes of its own, in turns, because what malloc does with freed memory is a process's; of each
the median step counts. Synthetic images; the networks and weights of all ways are the same.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections import Counter

import torch
from published import Published
from side_by_side import table
from torch.utils._python_dispatch import TorchDispatchMode

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.evaluate import pick_precision
from cgh_models.kept_memory import freed_memory_kept
from cgh_models.methods import CGH
from cgh_models.train.optim import create_optimizer
from cgh_models.train.small_outputs import small_outputs_by_products
from cgh_models.train.step import train_step

CPU = torch.device("cpu")
WAYS = ("plain PyTorch", "ours, without the next two", "with freed memory kept")
OURS = "and small outputs by products: ours"
ROUNDS, WARM_UP, STEPS = 2, 1, 3
PRODUCTS = ("conv", "mm")  # in the names of torch's operators


class TimeOps(TorchDispatchMode):
    """Adds up what each operator takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[func.overloadpacket.__name__] += time.perf_counter() - start
        return result


def one_way(way: str, arch: str, side: int, batch: int) -> dict[str, object]:
    """Milliseconds of a step and, of ours, of its operators."""
    torch.manual_seed(0)
    precision = pick_precision("auto", CPU)
    images = torch.randn(2, batch, 3, side, side)
    weak, strong = (view.contiguous(memory_format=torch.channels_last) for view in images)
    config = CGH.Config(queue_length=4096, projection_width=128)
    method = CGH(create(arch), config).to(memory_format=torch.channels_last)
    published = Published(method.student, method.queue.rows)
    optimizer = create_optimizer(method, TrainConfig(batch_size=batch))

    def step() -> None:
        if way == WAYS[0]:
            with torch.autocast("cpu", precision):
                published.step(weak, strong)
        else:
            train_step(method, optimizer, [weak, strong], 1.0, 0.05, "cpu", precision)

    taken = []
    with contextlib.ExitStack() as contexts:
        if way in (WAYS[2], OURS):
            contexts.enter_context(freed_memory_kept(CPU))
        if way == OURS:
            contexts.enter_context(small_outputs_by_products(method, CPU))
        for _ in range(WARM_UP + STEPS):
            start = time.perf_counter()
            step()
            taken.append(1000 * (time.perf_counter() - start))
        with TimeOps() as timed:
            step()
    operators = {name: 1000 * seconds for name, seconds in timed.seconds.items()}
    return {"step": statistics.median(taken[WARM_UP:]), "operators": operators}


def compare(arch: str, side: int, batch: int) -> None:
    """Prints what each way takes, and what ours takes beside convolutions and products."""
    found: dict[str, list[dict]] = {way: [] for way in (*WAYS, OURS)}
    for _ in range(ROUNDS):
        for way, runs in found.items():
            words = [sys.executable, __file__, "--way", way, arch, str(side), str(batch)]
            runs.append(json.loads(subprocess.check_output(words, text=True)))
    taken = {way: statistics.mean(run["step"] for run in runs) for way, runs in found.items()}
    table(f"{arch}, {side} pixels, batch {batch}, a step", taken)
    operators = Counter(found[OURS][-1]["operators"])
    products = [name for name in operators if any(word in name for word in PRODUCTS)]
    milliseconds = sum(operators.pop(name) for name in products)
    print(f"\nOf ours, convolutions and matrix products: {milliseconds:.4g} ms,", end=" ")
    print(", ".join(f"{name} {value:.3g}" for name, value in operators.most_common(6)))


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--way"]:
        torch.set_num_threads(2)
        print(json.dumps(one_way(words[1], words[2], int(words[3]), int(words[4]))))
    elif words:
        compare(words[0], int(words[1]), int(words[2]))
    else:
        compare("resnet18_cifar", 32, 256)
        compare("resnet50", 64, 128)
