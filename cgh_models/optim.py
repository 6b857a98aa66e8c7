"""Parameter groups and the learning-rate schedule; the optimizer itself is timm's."""

import math

from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def parameter_groups(module: nn.Module, weight_decay: float, decay_norms: bool) -> list[dict]:
    """Two groups, decayed and not: norms (by type), biases and what timm exempts are not, unless ``decay_norms``.

    Differs from the authors' code: CGH and ReSSL go by name ("bn", "bias"), which misses the norms of a ResNet's
    downsampling and of the hypercolumn.
    """
    listed = getattr(getattr(module, "backbone", None), "no_weight_decay", set)()  # timm's: position embeddings, tokens
    spared_by_timm = {id(p) for name, p in module.named_parameters() if name.removeprefix("backbone.") in listed}
    decayed, exempt = [], []
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            norm_or_bias = name.endswith("bias") or isinstance(owner, _NORMS)
            spared = not decay_norms and (norm_or_bias or id(parameter) in spared_by_timm)
            (exempt if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def create_optimizer(module: nn.Module, config) -> Optimizer:
    """SGD with momentum, fused: the kind that a flag on the device can hold back. Meta tensors have no fused kernel."""
    groups = parameter_groups(module, config.weight_decay, config.decay_norms)
    fused = groups[0]["params"][0].device.type != "meta"
    return create_optimizer_v2(groups, opt="momentum", lr=config.lr, momentum=config.momentum, fused=fused)


def learning_rate(progress: float, lr: float, warmup: float) -> float:
    """Linear from exactly 0 to ``lr`` over the first ``warmup`` of the run, then a cosine to 0."""
    if progress < warmup:
        return lr * progress / warmup
    return 0.5 * lr * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
