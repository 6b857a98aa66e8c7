"""A faster copy of a network for inference: batch norms folded, bfloat16, channels_last."""

import contextlib
import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..backbone import channels, input_size

MIN_COSINE = 0.9999  # between the embeddings of a network and of its copy


def inference_copy(model: nn.Module, precision: torch.dtype) -> nn.Module:
    """The copy, in evaluation mode, on the model's device; it takes images of its parameters' type.

    A change that moves embeddings of noise further than `MIN_COSINE` allows is left out.
    """
    fastest = copy.deepcopy(model).eval().requires_grad_(False)
    images = _noise(fastest)
    with torch.inference_mode():
        expected = fastest(images).float()
        for change in (folded, lambda network: copy.deepcopy(network).to(precision)):
            changed = change(fastest).to(memory_format=torch.channels_last)
            embeddings = changed(images.to(next(changed.parameters()).dtype)).float()
            if (torch.cosine_similarity(embeddings, expected) >= MIN_COSINE).all():
                fastest = changed
    return fastest


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with each batch norm folded into the convolution that feeds it."""
    copied = copy.deepcopy(model).eval()
    names = {module: name for name, module in copied.named_modules()}
    for conv, norm in _conv_norm_pairs(copied):
        copied.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        # timm's BatchNormAct2d has these two, which stay.
        rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        copied.set_submodule(names[norm], nn.Sequential(*rest))
    return copied


def _conv_norm_pairs(model: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and norms that only feed each other, as one forward shows."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(conv: nn.Conv2d, _inputs: tuple[Tensor], output: Tensor) -> None:
        outputs.append((conv, output))

    def before_norm(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        pairs.extend((conv, norm) for conv, output in outputs if output is inputs[0])

    with contextlib.ExitStack() as hooks, torch.inference_mode():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(after_conv))
            elif isinstance(module, nn.BatchNorm2d):
                hooks.enter_context(module.register_forward_pre_hook(before_norm))
        model(_noise(model))
    convs = [conv for conv, _ in pairs]
    norms = [norm for _, norm in pairs]
    return [(c, n) for c, n in pairs if convs.count(c) == norms.count(n) == 1]


def _noise(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels(model), *input_size(model), generator=generator)
    return images.to(next(model.parameters()).device)
