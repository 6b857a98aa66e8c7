"""The processes of a run, as torchrun or srun starts them: what they tell each other.

Only this file names torch.distributed. A method, a queue or a measurement is handed a `OneProcess`,
or `Processes`, which has the same members and asks the others.
"""

import contextlib
import datetime
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..errors import ERRORS, InputError, Interrupted, NetworkError, out_of_memory, printable
from ..one_process import ALONE, OneProcess
from .launch import take_from_slurm, tell
from .liveness import Watch, meet

Item = TypeVar("Item")

# A process that waits longer for the others ends. One that has stopped or died is noticed by
# `Watch` long before; this is for what nobody foresaw.
TIMEOUT = datetime.timedelta(minutes=30)
# Seconds from the first process that begins until the last. Those of several machines may read
# torch from disks of different speed.
BEGIN, BEGIN_FAR_APART = 30, 300


class Processes:
    """Several processes, each with its own rows of a batch; `OneProcess` says what members do."""

    shuffles = False  # `synced_norms` sets it

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def gather(self, rows: Tensor, dim: int = 0) -> Tensor:
        gathered = _Gather.apply(rows.movedim(dim, 0), self.rank, self.count)
        return gathered.movedim(0, dim)  # pyright: ignore

    def own(self, rows: Tensor) -> Tensor:
        return rows[self.rank :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, with gradient, of which each has a part."""
        return _Sum.apply(values)  # pyright: ignore

    def average(self, tensors: list[Tensor]) -> None:
        if tensors:
            flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
            dist.all_reduce(flat)
            pieces = flat.div_(self.count).split([tensor.numel() for tensor in tensors])
            pairs = zip(pieces, tensors, strict=True)
            torch._foreach_copy_(tensors, [piece.view_as(tensor) for piece, tensor in pairs])

    def largest(self, value: float) -> float:
        values = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.item()

    def all_finite(self, finite: Tensor) -> Tensor:
        agreed = finite.float()
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
        return agreed > 0

    def any(self, flag: bool) -> bool:
        return self.largest(float(flag)) > 0

    def together(self, work: Callable[[], Item]) -> Item:
        result, error = _tried(work)
        if self.any(error is not None):
            self._raise(error)
        return result

    def _raise(self, error: Exception | None) -> NoReturn:
        """Raises the same error on all, the first of those that some processes have."""
        found: list[tuple[type[Exception], str] | None] = [None] * self.count
        dist.all_gather_object(found, error and (type(error), str(error)))
        rank, (kind, text) = next((r, reason) for r, reason in enumerate(found) if reason)
        raise kind(text if rank == 0 else f"process {rank} of {self.count}: {text}") from error

    def from_first(self, work: Callable[[], Item]) -> Item:
        results: list[Any] = [self.together(lambda: work() if self.rank == 0 else None)]
        dist.broadcast_object_list(results)
        return results[0]

    def items(self, items: Iterator[Item]) -> Iterator[Item]:
        while True:
            item, error = _tried(lambda: next(items, None))
            state = self.largest(2 if error else 1 if item is None else 0)
            if state == 2:
                self._raise(error)
            if item is None or state:
                return
            yield item


def _tried(work: Callable[[], Item]) -> tuple[Any, Exception | None]:
    """What ``work`` returns, or the error of ours that it raises."""
    try:
        return work(), None
    except ERRORS as error:
        return None, error


class _Gather(Function):
    """Rows (n, ...) of each process -> (count n, ...), in the order of the whole batch."""

    @staticmethod
    def forward(ctx, rows: Tensor, rank: int, count: int) -> Tensor:
        ctx.rank, ctx.count = rank, count
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(count)]
        dist.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Each process computes the same loss of all rows, and gradients of parameters are averaged.
        return grad_output[ctx.rank :: ctx.count] * ctx.count, None, None


class _Sum(Function):
    """A sum over the processes, of values and of gradients."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.apply(grad_output)


@contextlib.contextmanager
def joined() -> Iterator[Any]:
    """Within it, this process is in torch's process group if torchrun or srun started it.

    Raises NetworkError when another has ended, and InputError if there is no device for each.
    """
    take_from_slurm()
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or not dist.is_available():
        yield ALONE
        return
    if dist.is_initialized():  # by the caller, who ends it
        yield Processes()
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    silenced = contextlib.nullcontext()
    if rank:  # what is said of a run, rank 0 says
        silenced = contextlib.redirect_stderr(open(os.devnull, "w"))  # noqa: SIM115 - until the end
    try:
        store = _met(rank, count)
        with silenced, Watch(store.clone(), rank, count):
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, None, TIMEOUT, count, rank, store)
            processes = Processes()
            try:
                yield processes
            except Interrupted:
                # What started them sends TERM to all when the first has ended.
                with contextlib.suppress(RuntimeError):
                    processes.any(False)
                raise
            processes.any(False)  # none leaves while another still asks
        dist.destroy_process_group()
    except RuntimeError as error:
        of_connection = isinstance(error, dist.DistError) or re.search("gloo|onnection", str(error))
        if out_of_memory(error) or not of_connection:
            raise
        reason = printable(" ".join(str(error).split()))[:160]
        what = f"another process of the run has ended or cannot be reached ({reason})"
        advice = "its own message says why; the run can be resumed from its last checkpoint"
        lost = NetworkError(f"{what}; {advice}")
        if rank:
            tell(rank, count, lost)
        raise lost from error


def _met(rank: int, count: int) -> dist.Store:
    """Where the processes of this start, and no earlier ones, leave word. Raises NetworkError."""
    near = os.environ.get("LOCAL_WORLD_SIZE") == str(count)
    most = BEGIN if near else BEGIN_FAR_APART
    store = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=most)))[0]
    return dist.PrefixStore(meet(store, rank, count, most), store)


def own_device(processes: OneProcess, name: str) -> str:
    """The device of this process, by the config's. Raises InputError for one that all would use."""
    count = processes.count
    if count == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        given = f"--device {name} with {count} processes"
        raise InputError(f"{given}: all would use it; leave it out, each takes a GPU of its own")
    number, found = int(os.environ.get("LOCAL_RANK", processes.rank)), torch.cuda.device_count()
    if number >= found:
        hint = f"start {found} (--nproc-per-node {found}), or give --device cpu"
        raise InputError(f"{processes.on_machine} processes on a machine with {found} GPUs; {hint}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


@contextlib.contextmanager
def connected(method: nn.Module, processes: OneProcess, config: TrainConfig) -> Iterator[nn.Module]:
    """Within it, a method's queues and losses are of all processes.

    Yields what a step calls: the method in DistributedDataParallel, or of one process the method.
    State and random numbers are those of rank 0. Queues, and modules of one's own that have an
    attribute ``processes``, are handed them.
    """
    if processes is ALONE:
        yield method
        return
    asking = [module for module in method.modules() if hasattr(module, "processes")]
    device = next(method.parameters()).device
    for module in asking:
        setattr(module, "processes", processes)  # noqa: B010 - not a tensor, nor a module
    try:
        for buffer in method.buffers():
            dist.broadcast(buffer, 0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            network = DistributedDataParallel(
                method,
                broadcast_buffers=False,  # they stay equal by themselves
                gradient_as_bucket_view=True,
                # Some backbones have parameters that no output needs. A static graph knows them
                # after a step; parts of a batch, which do not all communicate, make it no such one.
                static_graph=config.accumulate == 1,
                find_unused_parameters=config.accumulate > 1,
            )
        random = [torch.get_rng_state()]
        if device.type == "cuda":
            random.append(torch.cuda.get_rng_state(device))
        dist.broadcast_object_list(random)
        torch.set_rng_state(random[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(random[1], device)
        yield network
    finally:
        for module in asking:
            setattr(module, "processes", ALONE)  # noqa: B010


def method_of(network: nn.Module) -> Any:
    """The method of what `connected` gives."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def unless_last(network: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Within it, gradients are added up but not yet averaged, unless this part is the last."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
