"""CUDA graphs of the views and of the networks' passes: one launch in place of hundreds.

A small network's kernels are done before the processor has launched the next ones. Recorded once
and replayed, they follow each other without it.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.batched_views import ViewRequest, apply, parameters
from ..errors import say


@contextlib.contextmanager
def replayed_passes(method: Any, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within it, student and teacher replay their passes, if the config asks.

    Those that their class itself names in ``passes``, functions of images and of numbers in which
    nothing else changes from step to step, and the backbones', where a method calls these.
    """
    if not config.cuda_graphs or device.type != "cuda":
        if config.cuda_graphs:
            say("--cuda-graphs: left out, there is no CUDA device")
        yield
        return
    passes = []
    for network in (method.student, getattr(method, "teacher", None)):
        if network is not None:
            backbones = [(network.backbone, n) for n in ("forward", "forward_intermediates")]
            own = [(network, name) for name in vars(type(network)).get("passes", ())]
            passes += [ReplayedPass(module, name) for module, name in (*backbones, *own)]
    for replayed in passes:
        setattr(replayed.module, replayed.name, replayed)

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
        for replayed in passes:
            delattr(replayed.module, replayed.name)
            replayed.graphs.clear()
        gc.collect()  # or a process that is forked to read images would free graphs, and abort


class ReplayedPass:
    """Stands for a function of a network in training mode; in eval mode it is that function.

    A graph writes its activations, outputs and gradients into the same memory at every replay, so
    the calls of a step, whose backward comes after them all, have a graph each. ``calls`` counts
    them, and is set to 0 when a step begins. A pass that another one calls is part of its graph.
    """

    recording = False  # any of them

    def __init__(self, module: nn.Module, name: str):
        self.module = module
        self.name = name
        self.function = getattr(module, name)
        self.calls = 0
        self.graphs: dict[tuple, Callable[[Tensor], Any]] = {}

    def __call__(self, images: Tensor, *numbers: object, **options: object) -> Any:
        given = (*numbers, *options.values())
        is_recordable = all(isinstance(value, (int, float, str)) for value in given)
        is_training = self.module.training and images.is_cuda
        if ReplayedPass.recording or not is_training or not is_recordable:
            return self.function(images, *numbers, **options)
        key = (self.calls, images.shape, images.dtype, *given, *options, torch.is_grad_enabled())
        key += (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        self.calls += 1
        if key not in self.graphs:
            kept = {k: v for k, v in self.graphs.items() if k[0] != key[0] or k[1] == images.shape}
            if len(kept) < len(self.graphs):  # views became larger: frees the smaller ones' memory
                self.graphs = kept
                gc.collect()
            self.graphs[key] = self._record(lambda x: self.function(x, *numbers, **options), images)
        return self.graphs[key](images)

    def _record(self, function: Callable[[Tensor], Any], images: Tensor) -> Callable[[Tensor], Any]:
        buffers = list(self.module.buffers())
        before = [buffer.clone() for buffer in buffers]
        dtype = torch.get_autocast_dtype("cuda")
        autocast = torch.autocast("cuda", dtype, torch.is_autocast_enabled("cuda"))
        recorded = _Recorded(self.module, function, autocast)
        ReplayedPass.recording = True
        try:
            with torch.autocast("cuda", dtype, enabled=False, cache_enabled=False):
                graph = torch.cuda.make_graphed_callables(
                    recorded,
                    (images.clone(),),
                    allow_unused_input=True,  # a norm after the last map, for example
                )
        finally:
            ReplayedPass.recording = False
        # Batch norms have moved while it warmed up; others may be waiting for their backward.
        for buffer, value in zip(buffers, before, strict=True):
            if not torch.equal(buffer, value):
                buffer.copy_(value)
        return graph


class _Recorded(nn.Module):
    """images -> what ``function``, a pass of ``module``, gives; it is recorded.

    Autocast's casts of weights are made anew, once for all that it calls: those from before it
    would not be replayed.
    """

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Any], autocast: Any):
        super().__init__()
        self.module = module  # so that its parameters take gradients
        self.function = function
        self.autocast = autocast

    def forward(self, images: Tensor) -> Any:
        torch.clear_autocast_cache()
        with self.autocast:
            outputs = self.function(images)
        torch.clear_autocast_cache()
        return outputs


class ReplayedViews:
    """`fast_views` on a CUDA device, whose kernels are recorded once and then replayed.

    A replay writes its views into the same memory, so those of one batch are gone when the next one
    is asked for. Requests of other shapes, as of larger views, are recorded in their place.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple] = []

    def __call__(self, requests: Sequence[ViewRequest], mean: Tensor, std: Tensor) -> list[Tensor]:
        params = parameters(requests, mean, same_shapes=True)
        shapes = [(r.view, r.size, r.images.shape, r.images.dtype) for r in requests]
        shapes += [(name, tensor.shape) for found in params for name, tensor in found.items()]
        if shapes != self.shapes:
            self.shapes, self.params = shapes, params
            self.requests = [r._replace(images=r.images.clone()) for r in requests]
            self.graph = torch.cuda.CUDAGraph()
            recorded = torch.cuda.graph(self.graph, capture_error_mode="thread_local")
            for how in (contextlib.nullcontext(), recorded):  # at first, what libraries do but once
                with how:
                    asked = zip(self.requests, self.params, strict=True)
                    self.views = [apply(*one, mean, std) for one in asked]
        for mine, given in zip(self.requests, requests, strict=True):
            mine.images.copy_(given.images)
        for kept, found in zip(self.params, params, strict=True):
            for name, tensor in found.items():
                kept[name].copy_(tensor)
        self.graph.replay()
        return self.views
