"""Parameter groups: what is decayed and what keeps its learning rate. The optimizer is timm's."""

from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import TrainConfig
from ..methods.method import Method


def parameter_groups(method: Method, config: TrainConfig) -> list[dict]:
    """The student's parameters, with weight decay and without.

    Without it: norms (by type), biases, scales and what timm exempts. With ``decay_norms``, as on
    small images, all are decayed. Parameters under one of the method's ``constant_lr`` names are
    in groups of their own, marked ``constant_lr``.

    Differs from the authors' code: CGH, ReSSL and LEWEL go by name ("bn", "bias"), which misses
    the norms of heads and, in CGH and ReSSL, of a ResNet's downsampling; MoCo v2 and MNCLGLF decay
    everything. ``config.paper_faithful`` does as they do, by the method's ``exempt_names``.
    """
    by_name = config.paper_faithful and not config.decay_norms
    exempt_names = getattr(method, "exempt_names", None) if by_name else None
    constant_lr_names = getattr(method, "constant_lr", ())
    timm_exempts = getattr(method.student.backbone, "no_weight_decay", set)()

    def is_decayed(owner: nn.Module, full_name: str, parameter: Tensor) -> bool:
        if exempt_names is not None:
            return not any(word in full_name for word in exempt_names)
        if config.decay_norms:
            return True
        types = [kind.__name__.lower().rstrip("123d_") for kind in type(owner).__mro__]
        is_norm = any(kind.endswith("norm") for kind in types)
        is_vector = parameter.ndim <= 1  # a bias, or a scale as of LayerScale
        exempt = full_name.removeprefix("backbone.") in timm_exempts
        return not (exempt or is_norm or is_vector or full_name.endswith("bias"))

    # The state of the optimizer in a checkpoint is numbered in this order.
    groups = []
    for constant_lr in (False, True):
        for decayed in (True, False):
            group = {"params": [], "weight_decay": config.weight_decay if decayed else 0.0}
            group["constant_lr"] = constant_lr
            if config.optimizer == "lars":
                group["always_adapt"] = decayed
            groups.append(group)
    for prefix, owner in method.student.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}"
            constant_lr = full_name.partition(".")[0] in constant_lr_names
            exempt = not is_decayed(owner, full_name, parameter)
            groups[2 * constant_lr + exempt]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def create_optimizer(method: Method, config: TrainConfig) -> Optimizer:
    """timm's SGD with momentum, LARS or AdamW for the method's student.

    SGD and AdamW are fused: the kind that a flag on the device can hold back. Meta tensors have no
    fused kernel. LARS adapts the rate of what is decayed, whatever the decay.
    """
    groups = parameter_groups(method, config)
    fused = groups[0]["params"][0].device.type != "meta"
    if config.optimizer == "adamw":
        return create_optimizer_v2(groups, opt="adamw", lr=config.lr, fused=fused)
    if config.optimizer == "sgd":
        return create_optimizer_v2(
            groups, opt="momentum", lr=config.lr, momentum=config.momentum, fused=fused
        )
    return create_optimizer_v2(groups, opt="lars", lr=config.lr, momentum=config.momentum)
