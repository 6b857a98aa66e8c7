"""One training step, what prepares a method for it, and what to do if its batch does not fit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..backbone import architecture, norm_momentum
from ..config import TrainConfig
from ..errors import InputError, out_of_memory, say, shell_command
from ..methods.feature_queue import FeatureQueue
from ..methods.method import Losses


def train_step(
    method: Any,
    optimizer: Optimizer,
    views: list[Tensor],
    progress: float,
    lr: float,
    device_type: str,
    precision: torch.dtype,
    clip_norm: float = 0.0,
    parts: int = 1,
) -> Losses:
    """One step: losses, gradients, student, teacher, queues. Waits for nothing on the device.

    With ``parts`` > 1 the batch passes in that many parts, whose gradients are added.

    A loss or gradient that is not finite leaves weights, optimizer and queues as they were. (LARS,
    which has no fused kernel, takes a step without a gradient instead.)

    Returns:
        the method's losses, ``grad_norm``, and ``finite`` (1.0 or 0.0), all 0-dim and detached.
    """
    losses = add_gradients(method, views, progress, device_type, precision, parts)
    gradients = []
    for group in optimizer.param_groups:
        gradients += [p.grad for p in group["params"] if p.grad is not None]
        if not group["constant_lr"]:
            group["lr"] = lr
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = torch.isfinite(norm + losses["loss"])
    if clip_norm:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1))
    if optimizer.defaults.get("fused"):  # torch's fused kernels do nothing where this is 1
        setattr(optimizer, "found_inf", (~finite).float())  # noqa: B010 - no declared attribute
    elif "trust_coeff" in optimizer.defaults:
        for gradient in gradients:
            gradient.masked_fill_(~finite, 0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(progress, finite)
    return {**losses, "grad_norm": norm, "finite": finite.float()}


def add_gradients(
    method: Any,
    views: list[Tensor],
    progress: float,
    device_type: str,
    dtype: torch.dtype,
    parts: int,
) -> Losses:
    """Forward and backward of a batch in equal parts. Returns the means of the losses, detached."""
    totals: Losses = {}
    for part in zip(*(view.chunk(parts) for view in views), strict=True):
        images = [view.contiguous(memory_format=torch.channels_last) for view in part]
        with torch.autocast(device_type, dtype, enabled=dtype != torch.float32):
            losses = method(images, progress)
        if parts > 1:
            losses = {name: loss / parts for name, loss in losses.items()}
        # Gradient checkpointing repeats forwards here; batch norms move their statistics once.
        with norm_momentum(method.student, lambda _: 0.0):
            losses["loss"].backward()
        for name, loss in losses.items():
            share = loss.detach()
            totals[name] = totals[name] + share if name in totals else share
    return totals


@contextlib.contextmanager
def suppress_out_of_memory() -> Iterator[None]:
    """Full memory ends the block silently. After it, what did not fit is freed."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise


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
    statistics = {name: b.clone() for name, b in method.named_buffers() if b.ndim <= 1}
    losses = None
    _free(method)
    if len(half[0]) > 1:
        with suppress_out_of_memory():
            losses = add_gradients(method, half, progress, device_type, dtype, parts=1)
    _free(method)
    for name, buffer in statistics.items():  # of batch norms
        method.get_buffer(name).copy_(buffer)
    return losses is not None


def _free(method: nn.Module) -> None:
    """Frees gradients and what waits for the queues."""
    method.zero_grad(set_to_none=True)
    for module in method.modules():
        if isinstance(module, FeatureQueue):
            module.discard_pending()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def batch_too_large(
    run_dir: Path, config: TrainConfig, device: torch.device, done: int, fits: bool
) -> InputError:
    """The error that says what to do; ``fits``: whether half the images at once did fit."""
    at_once = config.batch_size // config.accumulate
    half = at_once // 2
    found = f"nor did {half}: give a smaller --image-size, a quarter of --batch-size"
    if fits:
        parts = 2 * config.accumulate
        while config.batch_size % parts:
            parts += 1
        accumulate = f"--accumulate {parts}, " if parts <= config.batch_size // 2 else ""
        found = f"{half} did when tried: give {accumulate}--batch-size {half}"
    resume = shell_command("cgh", "resume", run_dir)
    saved = f"; saved at step {done}, {resume}" if done else ""
    return InputError(
        f"{at_once} images at once do not fit in the memory of {device}, {found} "
        f"or --grad-checkpointing, which a resumed run may add{saved}"
    )


def prepare(
    method: Any, config: TrainConfig, device: torch.device, backend: str = "inductor"
) -> None:
    """Turns on gradient checkpointing and torch.compile if the config asks for them."""
    backbone = method.student.backbone
    if config.grad_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
            advice = "timm cannot checkpoint it; leave --grad-checkpointing out"
            raise InputError(f"{architecture(backbone)}: {advice}") from error
    if config.compile and device.type == "cpu" and backend == "inductor":
        say("--compile: left out on the CPU, where compiling costs more than it saves")
    elif config.compile:
        for network in (method.student, getattr(method, "teacher", None)):
            if network is not None:  # in place: names of parameters stay
                backbone = network.backbone
                forward = torch.compile(backbone.forward_intermediates, backend=backend)
                backbone.forward_intermediates = forward
                backbone.compile(backend=backend)
