"""Parameter groups and the learning-rate schedule; the optimizer itself is timm's."""

from typing import Any

from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer


def parameter_groups(method: Any, config: Any) -> list[dict]:
    """The student's parameters, decayed and not: norms (by type), biases, scales and what timm exempts are not.

    With ``decay_norms``, as on small images, all are. Parameters under one of the method's ``constant_lr`` names are in
    groups of their own, marked ``constant_lr``.

    Differs from the authors' code: CGH, ReSSL and LEWEL go by name ("bn", "bias"), which misses the norms of heads and,
    in CGH and ReSSL, of a ResNet's downsampling; MoCo v2 and MNCLGLF decay everything. ``config.paper_faithful`` does
    as they do, by the method's ``exempt_names``.
    """
    student = method.student
    by_name = config.paper_faithful and not config.decay_norms
    names = getattr(method, "exempt_names", None) if by_name else None
    constant = getattr(method, "constant_lr", ())
    listed = getattr(student.backbone, "no_weight_decay", set)()  # timm's: position embeddings, tokens
    kinds: dict[tuple[bool, bool], list] = {(held, spared): [] for held in (False, True) for spared in (False, True)}
    for prefix, owner in student.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full = f"{prefix}.{name}"
            if names is not None:
                spared = any(word in full for word in names)
            else:
                exempt = _norm_bias_or_scale(owner, name, parameter) or full.removeprefix("backbone.") in listed
                spared = exempt and not config.decay_norms
            kinds[full.partition(".")[0] in constant, spared].append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if spared else config.weight_decay, "constant_lr": held}
        | ({"always_adapt": not spared} if config.optimizer == "lars" else {})
        for (held, spared), parameters in kinds.items()
        if parameters
    ]


def _norm_bias_or_scale(owner: nn.Module, name: str, parameter: Tensor) -> bool:
    """Norms by the names of their types, which end so in torch and timm; biases; vectors such as LayerScale."""
    kinds = {kind.__name__.lower().rstrip("123d_") for kind in type(owner).__mro__}
    return name.endswith("bias") or parameter.ndim <= 1 or any(kind.endswith("norm") for kind in kinds)


def create_optimizer(method: Any, config: Any) -> Optimizer:
    """timm's SGD with momentum, LARS or AdamW for the method's student.

    SGD and AdamW are fused: the kind that a flag on the device can hold back. Meta tensors have no fused kernel. LARS
    adapts the rate of what is decayed, whatever the decay.
    """
    groups = parameter_groups(method, config)
    fused = groups[0]["params"][0].device.type != "meta"
    if config.optimizer == "adamw":
        return create_optimizer_v2(groups, opt="adamw", lr=config.lr, fused=fused)
    if config.optimizer == "sgd":
        return create_optimizer_v2(groups, opt="momentum", lr=config.lr, momentum=config.momentum, fused=fused)
    return create_optimizer_v2(groups, opt="lars", lr=config.lr, momentum=config.momentum)
