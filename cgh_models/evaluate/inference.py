"""A copy of a network that is only run forward, and faster: batch norms folded, bfloat16, channels_last."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..backbone import input_size

LEAST_COSINE = 0.9999  # between the embeddings of a network and of its copy


def inference_copy(model: nn.Module, precision: torch.dtype) -> nn.Module:
    """The copy, in evaluation mode, on the model's device; it takes images of its parameters' type.

    Of what makes it faster, that which moves embeddings of noise by more than `LEAST_COSINE` allows is left out.
    """
    best = copy.deepcopy(model).eval().requires_grad_(False)
    images = _noise(best)
    with torch.inference_mode():
        wanted = best(images).float()
        for change in (folded, lambda x: copy.deepcopy(x).to(precision)):
            changed = change(best).to(memory_format=torch.channels_last)
            found = changed(images.to(next(changed.parameters()).dtype)).float()
            if (torch.cosine_similarity(found, wanted) >= LEAST_COSINE).all():
                best = changed
    return best


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which each batch norm that a convolution feeds is part of the convolution.

    Which feeds which is seen in a forward; activations that timm keeps in its norms stay.
    """
    copied = copy.deepcopy(model).eval()
    names = {module: name for name, module in copied.named_modules()}
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the id of the output, which is held so that none is reused
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Conv2d, _inputs: tuple[Tensor], output: Tensor) -> None:
        made[id(output)] = module, output

    def before_norm(module: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [m.register_forward_hook(after_conv) for m in copied.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in copied.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.inference_mode():
        copied(_noise(copied))
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        if len({id(c) for c, n in pairs if n is norm}) == len([1 for c, n in pairs if c is conv]) == 1:
            copied.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
            rest: Any = [norm.drop, norm.act] if hasattr(norm, "act") else []  # timm's BatchNormAct2d
            copied.set_submodule(names[norm], nn.Sequential(*rest))
    return copied


def _noise(model: nn.Module) -> Tensor:
    images = torch.randn(2, 3, *input_size(model), generator=torch.Generator().manual_seed(0))
    return images.to(next(model.parameters()).device)
