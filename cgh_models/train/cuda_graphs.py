"""CUDA graphs of a backbone's passes: one launch in place of hundreds.

A small network's kernels are done before the processor has launched the next ones. Recorded once
and replayed, they follow each other without it.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import TimmModel
from ..config import TrainConfig
from ..errors import say


@contextlib.contextmanager
def replayed_passes(method: Any, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within it, the backbones of student and teacher replay their passes, if the config asks."""
    if not config.cuda_graphs or device.type != "cuda":
        if config.cuda_graphs:
            say("--cuda-graphs: left out, there is no CUDA device")
        yield
        return
    networks = (method.student, getattr(method, "teacher", None))
    backbones = [network.backbone for network in networks if network is not None]
    passes = []
    for backbone in backbones:
        for name in ("forward", "forward_intermediates"):
            passes.append(ReplayedPass(backbone, getattr(backbone, name)))
            setattr(backbone, name, passes[-1])

    def begin_step(*_: object) -> None:
        for replayed in passes:
            replayed.calls = 0

    hook = method.register_forward_pre_hook(begin_step)
    try:
        with warnings.catch_warnings():
            # Recording takes gradients on a stream of its own, which torch finds worth a warning.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            yield
    finally:
        hook.remove()
        for backbone in backbones:
            del backbone.forward, backbone.forward_intermediates


class ReplayedPass:
    """Stands for ``function`` of a backbone in training mode; in eval mode it is that function.

    A graph writes its activations, outputs and gradients into the same memory at every replay, so
    the calls of a step, whose backward comes after them all, have a graph each. ``calls`` counts
    them, and is set to 0 when a step begins.
    """

    def __init__(self, backbone: TimmModel, function: Callable[..., Any]):
        self.backbone = backbone
        self.function = function
        self.calls = 0
        self.graphs: dict[tuple, Callable[[Tensor], tuple[Tensor, ...]]] = {}

    def __call__(self, images: Tensor, **options: object) -> Tensor | tuple[Tensor, list[Tensor]]:
        if not self.backbone.training or not images.is_cuda:
            return self.function(images, **options)
        key = (self.calls, images.shape, *options.values(), torch.is_grad_enabled())
        key += (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        self.calls += 1
        if key not in self.graphs:
            # Of views that have become larger, the smaller ones' memory is free again.
            kept = self.graphs.items()
            self.graphs = {k: v for k, v in kept if k[0] != key[0] or k[1] == images.shape}
            self.graphs[key] = self._record(images, options)
        first, *maps = self.graphs[key](images)
        return (first, maps) if options else first

    def _record(self, images: Tensor, options: dict[str, object]) -> Callable[..., Any]:
        buffers = list(self.backbone.buffers())
        before = [buffer.clone() for buffer in buffers]
        # A recording keeps no weights that autocast cast before it.
        dtype = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, torch.is_autocast_enabled("cuda"), cache_enabled=False):
            graph = torch.cuda.make_graphed_callables(
                _FlatPass(self.backbone, self.function, options),
                (images.clone(),),
                allow_unused_input=True,  # a norm after the last map, for example
            )
        # Batch norms have moved while it warmed up.
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return graph


class _FlatPass(nn.Module):
    """images -> a tuple of tensors, which is what can be recorded."""

    def __init__(self, backbone: TimmModel, function: Callable[..., Any], options: dict[str, Any]):
        super().__init__()
        self.backbone = backbone  # so that its parameters take gradients
        self.function = function
        self.options = options

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.function(images, **self.options)
        return (outputs[0], *outputs[1]) if self.options else (outputs,)
