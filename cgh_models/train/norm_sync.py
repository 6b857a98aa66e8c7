"""Which images the statistics of a batch norm are of, in a run of several processes."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config import TrainConfig
from ..errors import InputError
from ..one_process import OneProcess


def norm_sync_of(method: Any, config: TrainConfig, processes: OneProcess) -> str:
    """none, shuffle or sync: the config's, or what the method's authors did; "" for one process.

    Raises InputError for shuffle with a method that has no shuffled teacher.
    """
    if processes.count == 1:
        return ""
    own = getattr(method, "norm_sync", "none")
    if config.norm_sync == "shuffle" != own:
        what = f"--norm-sync shuffle: the teacher of {method.name} is not shuffled"
        raise InputError(f"{what}; give none or sync, or leave it out")
    return own if config.norm_sync == "auto" else config.norm_sync


@contextlib.contextmanager
def synced_norms(method: nn.Module, how: str, processes: Any) -> Iterator[None]:
    """Within it, batch norms take their statistics as ``how`` says, see `norm_sync_of`.

    shuffle: `teacher_forward` asks ``processes.shuffles``. sync: on CUDA devices by torch's
    SyncBatchNorm, which the method keeps; it has none for a CPU.
    """
    processes.shuffles = how == "shuffle"
    norms: list[Any] = []
    if how == "sync":
        if next(method.parameters()).is_cuda:
            for network in (method.student, getattr(method, "teacher", None)):
                if network is not None:
                    convert_sync_batchnorm(network)
        else:
            norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_forward, norm, processes)
    try:
        yield
    finally:
        processes.shuffles = False
        for norm in norms:
            del norm.forward


def running_statistics(method: nn.Module) -> list[Tensor]:
    """The running means and variances that a process's own images move, of student and teacher.

    Those of synchronized norms are the same on all, to the bit.
    """
    statistics = []
    for norm in method.modules():
        is_synced = isinstance(norm, nn.SyncBatchNorm) or "forward" in vars(norm)  # on a CPU ours
        if is_synced:
            continue
        if isinstance(norm, _BatchNorm) and norm.training and norm.running_mean is not None:
            statistics += [norm.running_mean, norm.running_var]
    return statistics


def _forward(norm: Any, processes: Any, x: Tensor) -> Tensor:
    """A batch norm's forward, timm's with an activation too, by the images of all processes."""
    if not norm.training:
        return type(norm).forward(norm, x)
    others = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    values = x if x.dtype == torch.float64 else x.float()
    mean = processes.sum(values.mean(others)) / processes.count
    centered = values - mean.view(shape)
    variance = processes.sum(centered.square().mean(others)) / processes.count
    y = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    if norm.running_mean is not None:
        _follow(norm, mean.detach(), variance.detach(), processes.count * x.numel() // x.shape[1])
    y = y.to(x.dtype)
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y


@torch.no_grad()
def _follow(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    norm.num_batches_tracked.add_(1)
    share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance * (count / (count - 1)), share)
