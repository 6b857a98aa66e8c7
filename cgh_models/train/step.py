"""One training step, what prepares a method for it, and what to do if its batch does not fit."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..backbone import architecture, norm_momentum
from ..config import TrainConfig
from ..errors import InputError, out_of_memory, printable, say
from ..methods.feature_queue import FeatureQueue
from ..methods.method import Losses
from ..one_process import ALONE, OneProcess
from ..view_recipes import Recipe
from .distributed import method_of, unless_last
from .launch import tell
from .norm_sync import running_statistics
from .optim import Lars, Muon


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    views: list[Tensor],
    progress: float,
    lr: float,
    device_type: str,
    precision: torch.dtype,
    clip_norm: float = 0.0,
    parts: int = 1,
    processes: OneProcess = ALONE,
) -> Losses:
    """One step: losses, gradients, student, teacher, queues. Waits for nothing on the device.

    With ``parts`` > 1 the batch passes in that many parts, whose gradients are added. ``network``
    is the method; of several ``processes``, what `distributed.connected` makes of it.

    A loss or gradient that is not finite leaves weights, the optimizer's state and queues as they
    were, in a first step too. Statistics of batch norms have moved with the forward by then.

    Returns:
        this process's losses, ``grad_norm``, and ``finite`` (1.0 or 0.0), all 0-dim and detached.
    """
    method = method_of(network)
    losses = add_gradients(network, views, progress, device_type, precision, parts)
    gradients = []
    for group in optimizer.param_groups:
        gradients += [p.grad for p in group["params"] if p.grad is not None]
        if not group["constant_lr"]:
            group["lr"] = lr
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = processes.all_finite(torch.isfinite(norm + losses["loss"]))
    if clip_norm:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1))
    if optimizer.defaults.get("fused") or isinstance(optimizer, (Lars, Muon)):
        # Torch's fused kernels, our LARS and Muon do nothing where this is 1.
        setattr(optimizer, "found_inf", (~finite).float())  # noqa: B010 - no declared attribute
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if processes.count > 1:
        processes.average(running_statistics(method))
    method.after_step(progress, finite)
    return {**losses, "grad_norm": norm, "finite": finite.float()}


def add_gradients(
    network: nn.Module,
    views: list[Tensor],
    progress: float,
    device_type: str,
    dtype: torch.dtype,
    parts: int,
) -> Losses:
    """Forward and backward of a batch in equal parts. Returns the means of the losses, detached."""
    totals: Losses = {}
    for number, part in enumerate(zip(*(view.chunk(parts) for view in views), strict=True), 1):
        images = [view.contiguous(memory_format=torch.channels_last) for view in part]
        with unless_last(network, number == parts):
            with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
                losses = network(images, progress)
            if parts > 1:
                losses = {name: loss / parts for name, loss in losses.items()}
            # Gradient checkpointing repeats forwards here; batch norms move their statistics once.
            with norm_momentum(method_of(network).student, lambda _: 0.0):
                losses["loss"].backward()
        for name, loss in losses.items():
            share = loss.detach()
            totals[name] = totals[name] + share if name in totals else share
    return totals


class MemoryGuard:
    """A block that ends silently if memory is full. What did not fit is freed after it.

    What a forward moves is as before it then: batch norms' statistics and torch's random state.
    """

    def __init__(self, method: nn.Module):
        self.device = next(method.parameters()).device
        buffers = [buffer for buffer in method.buffers() if buffer.ndim <= 1]
        floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        counts = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self.moved = [kind for kind in (floats, counts) if kind]
        self.saved = [[torch.empty_like(buffer) for buffer in kind] for kind in self.moved]

    def __enter__(self) -> None:
        for saved, moved in zip(self.saved, self.moved, strict=True):
            torch._foreach_copy_(saved, moved)
        self.random = torch.get_rng_state()
        if self.device.type == "cuda":
            self.random_cuda = torch.cuda.get_rng_state(self.device)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        full = isinstance(error, RuntimeError) and out_of_memory(error)
        if full:
            self.restore()
        return full

    def restore(self) -> None:
        """Brings back what was there when the block was entered."""
        for saved, moved in zip(self.saved, self.moved, strict=True):
            torch._foreach_copy_(moved, saved)
        torch.set_rng_state(self.random)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random_cuda, self.device)


def half_fits(
    method: nn.Module,
    views: list[Tensor],
    progress: float,
    device_type: str,
    dtype: torch.dtype,
    parts: int,
) -> bool:
    """Whether forward and backward of half a part fit. Restores the method afterwards."""
    half = [view[: len(view) // parts // 2] for view in views]
    guard = MemoryGuard(method)
    losses = None
    _free(method)
    if len(half[0]) > 1:
        with guard:
            losses = add_gradients(method, half, progress, device_type, dtype, parts=1)
            guard.restore()
    _free(method)
    return losses is not None


def check_sizes(method: Any, recipe: Recipe, config: TrainConfig) -> None:
    """Raises InputError unless the method takes the smaller views of a run's phases, by trying."""
    count = 2 * getattr(method.config, "batch_norm_splits", 1)
    for size, _ in config.phases[:-1]:
        guard = MemoryGuard(method)
        shapes = [(count, config.in_chans, *[view.side(size)] * 2) for view in recipe]
        with guard, torch.no_grad():
            try:
                method([torch.zeros(shape, device=guard.device) for shape in shapes], 0.0)
            except (AssertionError, IndexError, RuntimeError, ValueError) as error:
                given = f"{method.name} on {architecture(method.student.backbone)}"
                given = f"size_schedule={config.size_schedule}: {given} cannot take {size} pixels"
                reason = printable(" ".join(str(error).split()))[:120]
                raise InputError(f"{given} ({reason}); give a larger size") from error
            finally:
                guard.restore()


def _free(method: nn.Module) -> None:
    """Frees gradients and what waits for the queues."""
    method.zero_grad(set_to_none=True)
    for module in method.modules():
        if isinstance(module, FeatureQueue):
            module.discard_pending()
    torch.cuda.empty_cache()  # nothing where CUDA is not used


def batch_too_large(
    config: TrainConfig, device: torch.device, fits: bool, saved: str
) -> InputError:
    """The error that says what to do; ``fits``: whether half the images at once did fit."""
    at_once = config.batch_size // config.accumulate
    half = at_once // 2
    found = f"nor did {half}: give a smaller --image-size, a quarter of --batch-size"
    if fits:
        parts = 2 * config.accumulate
        while config.batch_size % parts:
            parts += 1
        can_be_split = parts <= config.batch_size // 2 and not config.cuda_graphs
        accumulate = f"--accumulate {parts}, " if can_be_split else ""
        found = f"{half} did when tried: give {accumulate}--batch-size {half}"
    what = f"{at_once} images at once do not fit in the memory of {device}, {found}"
    flag = "--no-cuda-graphs" if config.cuda_graphs else "--grad-checkpointing"
    return InputError(f"{what} or {flag}, which a resumed run may add{saved}")


def does_not_fit(config: TrainConfig, device: torch.device, processes: OneProcess) -> InputError:
    """The error of one of several processes; the others learn that it ended."""
    share = config.batch_size // config.accumulate // processes.count
    what = f"{share} images at once do not fit in the memory of {device}"
    advice = "give a smaller --batch-size, more --accumulate or --grad-checkpointing"
    error = InputError(f"{what}; {advice}; the run can be resumed from its last checkpoint")
    if processes.rank:
        tell(processes.rank, processes.count, error)
    return error


def prepare(method: Any, config: TrainConfig, device: torch.device) -> None:
    """Turns on gradient checkpointing and torch.compile if the config asks for them."""
    backbone = method.student.backbone
    if config.grad_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
            advice = "timm cannot checkpoint it; leave --grad-checkpointing out"
            raise InputError(f"{architecture(backbone)}: {advice}") from error
    if config.compile and device.type == "cpu":
        say("--compile: left out on the CPU, where compiling costs more than it saves")
    elif config.compile:
        for network in (method.student, getattr(method, "teacher", None)):
            if network is not None:  # in place: names of parameters stay
                backbone = network.backbone
                backbone.forward_intermediates = torch.compile(backbone.forward_intermediates)
                backbone.compile()
