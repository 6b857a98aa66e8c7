"""How near to the machine's limits pieces of a step are, and kNN.

    python benchmarks/roofline.py

An operator cannot be faster than its bytes move, nor than its products are multiplied; the limit of
a piece is the sum over its operators of the longer of the two. The machine's rates are measured:
bytes by adding a tensor to another, for each size, since small ones stay in caches; products by one
of two large matrices. What a piece does beside that (Python, NumPy, exp, topk's comparisons)
counts as nothing, so no piece reaches its limit.
"""

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch
from counters import CountOps
from knn import TEMPERATURE, K, clusters
from queue_loss import streamed, vectors
from side_by_side import milliseconds
from torch.utils.flop_counter import flop_registry
from views import COUNT, photographs, with_ours

from cgh_models.backbone import create
from cgh_models.evaluate import knn
from cgh_models.methods.momentum_teacher import make_teacher, update_teacher

SIDE = 2048  # of the matrices whose product is timed
_PICKS = ("index", "index_select", "gather")  # read few numbers of a tensor
_PUTS = ("index_copy_", "scatter_add_")  # write few
_FILLS = ("copy_", "fill_", "zero_")  # read nothing of what they change


class Machine:
    """What as many threads as torch has can move and multiply.

    Attributes:
        sizes, per_second: bytes that an addition touches, and how many of them move a second.
        flops: a second, in each dtype.
    """

    def __init__(self):
        self.sizes = [2**n for n in range(16, 30)]
        self.per_second = [1000 * size / _fastest(_addition(size)) for size in self.sizes]
        self.flops = {}
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.randn(2, SIDE, SIDE).to(dtype)
            self.flops[dtype] = 2000 * SIDE**3 / _fastest(lambda a=a, b=b: a @ b)

    def bandwidth(self, size: int) -> float:
        """Bytes a second of an operator that touches ``size`` bytes."""
        return self.per_second[min(bisect.bisect_left(self.sizes, size), len(self.sizes) - 1)]


class Roofline(CountOps):
    """Adds up the least milliseconds of what runs inside the block, and its products."""

    def __init__(self, machine: Machine):
        super().__init__()
        self.machine, self.least, self.flops = machine, 0.0, 0

    def moved(self, func, args, kwargs, out) -> int:
        """Bytes that an operator has to move; what is only written, or expanded, counts once."""
        name, multiplied = func.overloadpacket.__name__, 0.0
        moved = _touched(name, super().moved(func, args, kwargs, out), args, kwargs, out)
        kind = getattr(torch.ops.aten, name.rstrip("_"), None)
        if kind in flop_registry:
            flops = flop_registry[kind](*args, **kwargs, out_val=out)
            self.flops += flops
            multiplied = flops / self.machine.flops[out.dtype]
        self.least += 1000 * max(moved / self.machine.bandwidth(moved), multiplied)
        return moved


def _touched(name: str, counted: int, args: tuple, kwargs: dict, out: Any) -> int:
    """Of the bytes of whole inputs and outputs, which are ``counted``, those that have to move."""
    if name in _PICKS:
        return 2 * out.nbytes
    if name in _PUTS:
        return 2 * args[3].nbytes
    if name in _FILLS or "out" in kwargs:
        counted -= out.nbytes
    if out is None:  # of lists, changed where they lie: the writes
        counted += sum(tensor.nbytes for tensor in args[0])
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return counted - sum(tensor.nbytes - _held(tensor) for tensor in tensors)


def _held(tensor: torch.Tensor) -> int:
    """Bytes without those that are one number expanded."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride or not size)


def _addition(size: int) -> Callable[[], object]:
    a, b = torch.ones(2, size // 12)
    return lambda: a.add_(b)  # two read, one written


def _fastest(way: Callable[[], object]) -> float:
    """Milliseconds. A median would be a limit that can be passed."""
    return min(milliseconds({"": way}, 1)[""] for _ in range(30))


def pieces() -> dict[str, tuple[int, Callable[[], object]]]:
    """Threads, and what they run."""
    student = create("resnet50")
    teacher = make_teacher(student)
    given = vectors(32, "cpu")
    found = {
        "teacher's update, resnet50": (2, lambda: update_teacher(teacher, student, 0.99)),
        "CGH's losses, batch 32, queue 131072 x 512": (2, lambda: streamed(*given)),
        f"two views of {COUNT} images of 32 pixels": (1, with_ours(photographs(COUNT))),
    }
    for width in (2048, 512):
        known = clusters(50_000, width)
        found[f"kNN of 2,000 among 50,000, D {width}"] = (
            2,
            lambda known=known: knn(*known, k=K, temperature=TEMPERATURE),
        )
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    machines = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        machine = machines[threads] = Machine()
        near, far = (rate / 1e9 for rate in (max(machine.per_second), machine.per_second[-1]))
        rates = ", ".join(f"{rate / 1e9:,.0f} in {dtype}" for dtype, rate in machine.flops.items())
        print(
            f"{threads} threads: {near:.0f} GB/s in caches, {far:.1f} in memory; GFLOP/s: {rates}"
        )
    print("\n| piece | ms | GB | GFLOP | limit, ms | of the limit |\n|---|---|---|---|---|---|")
    for name, (threads, way) in pieces().items():
        torch.set_num_threads(threads)
        with Roofline(machines[threads]) as roofline:
            way()
        taken = milliseconds({name: way}, 5)[name]
        cells = f"{roofline.bytes / 1e9:.3g} | {roofline.flops / 1e9:.3g} | {roofline.least:.3g}"
        print(f"| {name} | {taken:.4g} | {cells} | {100 * roofline.least / taken:.0f} % |")
