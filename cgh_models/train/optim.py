"""Parameter groups: what is decayed, what keeps its rate. LARS and Muon; the others are timm's."""

import itertools
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..backbone import TimmModel
from ..config import TrainConfig
from ..evaluate.devices import pick_precision
from ..methods.method import Method

_MUON_MOMENTUM = 0.95


def parameter_groups(method: Method, config: TrainConfig) -> list[dict]:
    """The student's parameters, with weight decay and without.

    Without it: norms (by type), biases, scales and what timm exempts. With ``decay_norms``, as on
    small images, all are decayed. Parameters under one of the method's ``constant_lr`` names are
    in groups of their own, marked ``constant_lr``; so are, for `Muon`, matrices of the backbone but
    its first layer's, marked ``orthogonal``.

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

    is_muon = config.optimizer == "muon"
    matrices = _inner_matrices(method.student.backbone) if is_muon else set()
    # The state of the optimizer in a checkpoint is numbered in this order.
    groups = {}
    for key in itertools.product((False, True), (False, True), (True, False)):
        orthogonal, constant_lr, decayed = key
        group = {"params": [], "weight_decay": config.weight_decay if decayed else 0.0}
        group["constant_lr"] = constant_lr
        if config.optimizer == "lars":
            group["always_adapt"] = decayed
        if is_muon:
            group |= {"orthogonal": orthogonal, "momentum": 0.0 if orthogonal else config.momentum}
        groups[key] = group
    for prefix, owner in method.student.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}"
            constant_lr = full_name.partition(".")[0] in constant_lr_names
            decayed = is_decayed(owner, full_name, parameter)
            key = (id(parameter) in matrices, constant_lr, decayed)
            groups[key]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _inner_matrices(backbone: TimmModel) -> set[int]:
    """The ids of its weights with two dimensions or more, but the first layer's.

    A convolution in groups counts as one matrix; one of single channels, as of ConvNeXt, as none.
    """
    matrices = {}
    for name, parameter in backbone.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and parameter.ndim > 1 and min(parameter.shape[:2]) > 1:
            matrices[layer] = id(parameter)
    first = backbone.pretrained_cfg.get("first_conv") or next(iter(matrices), ())
    firsts = {first} if isinstance(first, str) else set(first)
    return {found for layer, found in matrices.items() if layer not in firsts}


def create_optimizer(method: Method, config: TrainConfig) -> Optimizer:
    """SGD with momentum or AdamW, as timm makes them, `Lars` or `Muon`, for the method's student.

    SGD and AdamW are fused: the kind that a flag on the device can hold back. Meta tensors have no
    fused kernel. The momentum starts at zero, so that a first step can be held back, too.
    """
    groups = parameter_groups(method, config)
    fused = groups[0]["params"][0].device.type != "meta"
    if config.optimizer == "adamw":
        return create_optimizer_v2(groups, opt="adamw", lr=config.lr, fused=fused)
    if config.optimizer == "lars":
        return Lars(groups, config.lr, config.momentum, config.lr_in_momentum)
    options: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "fused": fused}
    if config.optimizer == "muon":
        device = groups[0]["params"][0].device
        optimizer = Muon(groups, pick_precision(config.precision, device), **options)
    else:
        optimizer = create_optimizer_v2(groups, opt="momentum", **options)
    for group in optimizer.param_groups:
        if group["momentum"] or group.get("orthogonal"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class Lars(Optimizer):
    """LARS (arXiv 1708.03888), equal to timm's, but held back where ``found_inf`` is 1.

    Groups with ``always_adapt`` are decayed, and adapted by their norms. ``lr_in_momentum``: the
    momentum adds up steps and not gradients, as in the code of LEWEL and EMAN; then steps of the
    warm-up keep their own, lower learning rate.
    """

    found_inf: Tensor  # float, 0-dim; set by `train_step`

    def __init__(self, groups: list[dict], lr: float, momentum: float, lr_in_momentum: bool):
        defaults = {"lr": lr, "momentum": momentum, "lr_in_momentum": lr_in_momentum}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Takes a step. ``closure`` is torch's and not used."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        finite = self.found_inf == 0
        updates = [p.grad.masked_fill_(~finite, 0) for p in parameters if p.grad is not None]
        if group["always_adapt"]:
            decay = group["weight_decay"]
            norms = torch.stack(torch._foreach_norm(parameters))
            gradient_norms = torch.stack(torch._foreach_norm(updates))
            ratios = 0.001 * norms / (gradient_norms + norms * decay + 1e-8)
            ratios = torch.where((norms > 0) & (gradient_norms > 0), ratios, 1.0) * finite
            updates = torch._foreach_add(updates, parameters, alpha=decay)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        lr = group["lr"]
        if group["lr_in_momentum"]:
            torch._foreach_mul_(updates, lr)
            lr = 1.0
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, torch.where(finite, group["momentum"], 1.0))
        torch._foreach_add_(buffers, updates)
        torch._foreach_copy_(updates, buffers)
        torch._foreach_mul_(updates, finite.float())
        torch._foreach_add_(parameters, updates, alpha=-lr)


class Muon(SGD):
    """SGD whose steps of matrices, in groups marked ``orthogonal``, are orthogonal: Muon.

    Of each, Nesterov's gradient (out, rest) is replaced by the nearest matrix whose singular values
    are equal, about 1, so that no direction is learned much faster than the others. Held back where
    ``found_inf`` is 1, as torch's fused SGD, which takes the steps.

    Source: K. Jordan et al., Muon (2024), kellerjordan.github.io/posts/muon: the momentum and the
    iteration's five steps and coefficients. Its steps are not scaled by the matrix's shape.
    """

    found_inf: Tensor  # float, 0-dim; set by `train_step`

    def __init__(self, groups: list[dict], precision: torch.dtype, **options: Any):
        super().__init__(groups, **options)
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes a step. ``closure`` is torch's and not used."""
        finite = self.found_inf == 0
        same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    pair = (parameter.grad, self.state[parameter]["momentum_buffer"])
                    same_shape.setdefault(parameter.shape, []).append(pair)
        for pairs in same_shape.values():
            for gradient, momentum in pairs:
                moved = momentum.lerp(gradient, 1 - _MUON_MOMENTUM)
                torch.where(finite, moved, momentum, out=momentum)
                gradient.lerp_(momentum, _MUON_MOMENTUM)
            gradients = [gradient.movedim(1, -1) for gradient, _ in pairs]  # as they lie in memory
            matrices = [gradient.flatten(1).to(self.precision) for gradient in gradients]
            steps = orthogonalized(torch.stack(matrices))
            for gradient, step in zip(gradients, steps, strict=True):
                gradient.copy_(step.view(gradient.shape))
        return super().step()


def orthogonalized(matrices: Tensor) -> Tensor:
    """(G, M, N) -> for each the nearest matrix whose singular values are 1, within about 0.3.

    By five steps of a Newton-Schulz iteration, whose coefficients are `Muon`'s source's.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x
