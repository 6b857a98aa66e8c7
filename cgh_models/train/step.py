"""One training step, and what prepares and rescues it."""

from typing import Any

import torch
from torch import Tensor

from ..backbone import architecture, norm_momentum
from ..errors import InputError, out_of_memory, say
from ..methods.feature_queue import FeatureQueue


def train_step(
    method: Any,
    optimizer: Any,
    views: list[Tensor],
    progress: float,
    lr: float,
    device_type: str,
    precision: torch.dtype,
    clip_norm: float = 0.0,
    parts: int = 1,
) -> dict[str, Tensor]:
    """One step: losses, gradients, student, teacher, queues. Waits for nothing on the device.

    With ``parts`` > 1 the batch passes in that many parts, whose gradients are added.

    A loss or gradient that is not finite leaves weights, the optimizer and the queues as they were. (LARS, which
    has no fused kernel, takes a step without a gradient instead.)

    Returns:
        the method's losses, ``grad_norm``, and ``finite`` (1.0 or 0.0), all 0-dim and detached.
    """
    losses = add_gradients(method, views, progress, device_type, precision, parts)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = torch.isfinite(norm + losses["loss"])
    if clip_norm:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1))
    for group in optimizer.param_groups:
        if not group["constant_lr"]:
            group["lr"] = lr
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()  # torch's fused optimizers do nothing where this is 1
    elif "trust_coeff" in optimizer.defaults:
        for gradient in gradients:
            gradient.masked_fill_(~finite, 0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(progress, finite)
    return {**losses, "grad_norm": norm, "finite": finite.float()}


def add_gradients(
    method: Any, views: list[Tensor], progress: float, device_type: str, precision: torch.dtype, parts: int
) -> dict[str, Tensor]:  # fmt: skip
    """Forward and backward of a batch in equal parts: the means of its losses, detached; gradients are added up."""
    totals: dict[str, Tensor] = {}
    for part in zip(*(view.chunk(parts) for view in views), strict=True):
        images = [view.contiguous(memory_format=torch.channels_last) for view in part]
        with torch.autocast(device_type, precision, enabled=precision != torch.float32):
            losses = method(images, progress)
        with norm_momentum(method.student, lambda _: 0.0):  # of gradient checkpointing, a forward for the second time
            (losses["loss"] if parts == 1 else losses["loss"] / parts).backward()
        for name, loss in losses.items():
            share = loss.detach() if parts == 1 else loss.detach() / parts
            totals[name] = totals[name] + share if name in totals else share
    return totals


def prepare(method: Any, config: Any, device: torch.device, backend: str = "inductor") -> None:
    """Turns on gradient checkpointing and torch.compile in the method's networks, if the config asks for them.

    Raises:
        InputError: timm has no gradient checkpointing for the backbone.
    """
    backbone = method.student.backbone
    if config.grad_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
            raise InputError(
                f"{architecture(backbone)}: timm cannot checkpoint it; leave --grad-checkpointing out"
            ) from error
    if config.compile and device.type == "cpu" and backend == "inductor":
        say("--compile: left out on the CPU, where compiling costs more than it saves")
    elif config.compile:
        for network in (method.student, getattr(method, "teacher", None)):
            if network is not None:  # in place: names of parameters stay
                network.backbone.compile(backend=backend)
                network.backbone.forward_intermediates = torch.compile(
                    network.backbone.forward_intermediates, backend=backend
                )


def half_fits(
    method: Any, views: list[Tensor], progress: float, device_type: str, precision: torch.dtype, parts: int
) -> bool:  # fmt: skip
    """Whether forward and backward fit with half the images at once, by doing them; nothing of it is kept."""
    buffers = {name: tensor.clone() for name, tensor in method.named_buffers() if tensor.ndim <= 1}  # of batch norms
    try:
        count = views[0].shape[0] // parts // 2
        if count < 2:
            return False
        _forget(method)
        add_gradients(method, [view[:count] for view in views], progress, device_type, precision, 1)
        return True
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        _forget(method)
        for name, tensor in buffers.items():
            method.get_buffer(name).copy_(tensor)


def _forget(method: Any) -> None:
    """Frees gradients and what waits for the queues."""
    method.zero_grad(set_to_none=True)
    for module in method.modules():
        if isinstance(module, FeatureQueue):
            module.drop()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
