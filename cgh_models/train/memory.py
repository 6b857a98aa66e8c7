"""What happens when a batch does not fit in the memory of the device."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..errors import InputError, out_of_memory
from ..methods.feature_queue import FeatureQueue
from .step import add_gradients


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
    """The error that says what to do; ``fits`` tells whether half the images at once did fit."""
    at_once = config.batch_size // config.accumulate
    half = at_once // 2
    found = f"nor did {half}: give a smaller --image-size, a quarter of --batch-size"
    if fits:
        parts = 2 * config.accumulate
        while config.batch_size % parts:
            parts += 1
        accumulate = f"--accumulate {parts}, " if parts <= config.batch_size // 2 else ""
        found = f"{half} did when tried: give {accumulate}--batch-size {half}"
    saved = f"; saved at step {done}, `cgh resume {run_dir}`" if done else ""
    return InputError(
        f"{at_once} images at once do not fit in the memory of {device}, {found} "
        f"or --grad-checkpointing, which a resumed run may add{saved}"
    )
