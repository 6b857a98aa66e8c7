"""Adapter to timm: create a backbone, and its pooled embedding with its feature maps in one forward."""

import difflib
from typing import Any

import timm
import torch
from torch import Tensor

from .errors import InputError


def create(arch: str, preprocessing: dict | None = None, **model_args) -> Any:
    """A headless, randomly initialized timm module.

    Args:
        arch: a timm architecture without a tag.
        preprocessing: fields of timm's pretrained_cfg that describe the images it will see (``input_size``, ``mean``,
            ``std``, ...). Architectures with a fixed input size are built for ``input_size``.
        model_args: timm's own model arguments.

    Raises:
        InputError: timm knows no such architecture.
    """
    preprocessing = dict(preprocessing or {})
    if "/" in arch or not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models('*') lists the names"
        raise InputError(f"architecture {arch!r}: timm has no model of this name; {hint}")
    cfg = timm.get_pretrained_cfg(arch)
    if cfg is not None and cfg.fixed_input_size and "input_size" in preprocessing:
        model_args.setdefault("img_size", preprocessing["input_size"][-1])
    overlay = {"num_classes": 0, **preprocessing}
    try:
        return timm.create_model(arch, num_classes=0, pretrained_cfg_overlay=overlay, **model_args)
    except (TypeError, AssertionError) as error:
        raise InputError(f"architecture {arch!r} cannot be built with {model_args}: {error}") from error


def architecture(backbone: Any) -> str:
    """The timm architecture name of a module that timm made."""
    return backbone.pretrained_cfg["architecture"].split(".")[0]


def embed(backbone: Any, images: Tensor, taps: int = 0, splits: int = 1) -> tuple[Tensor, list[Tensor]]:
    """The pooled embedding (N, D) and the ``taps`` deepest maps [(N, C, h, w)], shallow to deep.

    With ``splits`` > 1 the batch passes in that many parts, so that batch norm sees the statistics of a part: what a
    batch spread over ``splits`` GPUs gets without synchronized norms.
    """
    if splits > 1:
        parts = [embed(backbone, part, taps) for part in images.chunk(splits)]
        return torch.cat([e for e, _ in parts]), [torch.cat(maps) for maps in zip(*[m for _, m in parts], strict=True)]
    if not taps:
        return backbone(images), []
    final, maps = backbone.forward_intermediates(images, indices=taps)
    return backbone.forward_head(final, pre_logits=True), maps


@torch.no_grad()
def widths(backbone: Any, taps: int = 0) -> tuple[int, list[int]]:
    """The embedding width and the channels of the ``taps`` deepest maps, measured on one blank image.

    Raises:
        InputError: the backbone gives fewer feature maps than ``taps``.
    """
    device = next(backbone.parameters()).device
    patches = getattr(backbone, "patch_embed", None)
    size = getattr(patches, "img_size", None) or backbone.pretrained_cfg["input_size"][-2:]
    training = backbone.training
    backbone.eval()
    try:
        embedding, maps = embed(backbone, torch.zeros(1, 3, *size, device=device), taps)
    except (AssertionError, AttributeError, IndexError, RuntimeError) as error:
        name = architecture(backbone)
        raise InputError(f"taps={taps}: {name} does not give that many feature maps ({error}); use fewer") from error
    finally:
        backbone.train(training)
    return embedding.shape[1], [m.shape[1] for m in maps]
