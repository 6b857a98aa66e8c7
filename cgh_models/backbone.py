"""Adapter to timm: create a backbone, and its pooled embedding with its feature maps in one forward."""

import contextlib
import difflib
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

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
    if "." in arch:
        name = arch.partition(".")[0]
        raise InputError(
            f"architecture {arch!r}: has a tag; give --arch {name}, and --init {arch} to start from its weights"
        )
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
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"architecture {arch!r} cannot be built with {model_args}: {error}") from error


class _Skeleton(TorchFunctionMode):
    """New parameters get no memory (the meta device) and are not filled; what is computed from indices is real."""

    _NEW = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))
    _FILLS = frozenset(
        [getattr(Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_", "mul_", "add_")]
        + [init.kaiming_uniform_, init.uniform_, init.normal_, init.constant_]
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self._NEW and kwargs.get("device") is None:
            return func(*args, **(kwargs | {"device": "meta"}))
        if func in self._FILLS and (tensor := args[0] if args else kwargs["tensor"]).is_meta:
            return tensor
        return func(*args, **kwargs)


def skeleton(name: str, **kwargs) -> Any:
    """A headless timm module whose parameters have shapes but no memory.

    An architecture that cannot be built so is built with random weights.
    """
    try:
        with _Skeleton():
            return timm.create_model(name, num_classes=0, **kwargs)
    except (RuntimeError, NotImplementedError):  # its constructor reads values
        return timm.create_model(name, num_classes=0, **kwargs)


def fill(model: Any, tensors: dict[str, Tensor]) -> bool:
    """Makes the tensors the parameters of a skeleton that they fit; False if something of it has no memory even then.

    What a state dict does not hold, buffers made in the constructor, may stay without memory.
    """
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, assign=True)
    return not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def architecture(backbone: Any) -> str:
    """The timm architecture name of a module that timm made."""
    return backbone.pretrained_cfg["architecture"].split(".")[0]


def model_args(backbone: Any) -> dict[str, Any]:
    """timm's arguments it was built with beyond its name: the image size, where the architecture fixes one."""
    cfg = backbone.pretrained_cfg
    return {"img_size": cfg["input_size"][-1]} if cfg.get("fixed_input_size") else {}


def embed(backbone: Any, images: Tensor, taps: int = 0, splits: int = 1) -> tuple[Tensor, list[Tensor]]:
    """The pooled embedding (N, D) and the ``taps`` deepest maps [(N, C, h, w)], shallow to deep.

    With ``splits`` > 1 the batch passes in that many parts, so that batch norm sees the statistics of a part: what a
    batch spread over ``splits`` GPUs gets without synchronized norms. The running statistics take one step a batch,
    towards a mean over the parts.

    Raises:
        InputError: fewer than two images a part.
    """
    if splits > 1:
        if images.shape[0] < 2 * splits:
            raise InputError(f"batch_norm_splits={splits}: a batch of {images.shape[0]} is too small; 2 images a part")
        with norm_momentum(backbone, lambda momentum: 1 - (1 - momentum) ** (1 / splits)):
            parts = [embed(backbone, part, taps) for part in images.tensor_split(splits)]
        return torch.cat([e for e, _ in parts]), [torch.cat(maps) for maps in zip(*[m for _, m in parts], strict=True)]
    if not taps:
        return backbone(images), []
    final, maps = backbone.forward_intermediates(images, indices=taps)
    return backbone.forward_head(final, pre_logits=True), maps


def embed_with_pixels(backbone: Any, images: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """The embedding (N, D), the map it is pooled from as pixels (N, h * w, C), and that map's (h, w).

    A ViT's pixels are its normalized patch tokens. C and D differ where timm widens after the pooling (MobileNetV3).
    """
    final, (deepest,) = backbone.forward_intermediates(images, indices=1)
    embedding, size = backbone.forward_head(final, pre_logits=True), deepest.shape[2:]
    if final.ndim == 3:  # tokens: what is no patch comes first
        return embedding, final[:, -size.numel() :], size
    if final.shape[2:] != size:  # Swin: channels last
        final = final.permute(0, 3, 1, 2)
    return embedding, final.flatten(2).transpose(1, 2), size


@contextlib.contextmanager
def norm_momentum(module: nn.Module, change: Callable[[float], float]) -> Iterator[None]:
    """Within it, the batch norms of a module move their running statistics at another momentum."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = change(momentum) if momentum else momentum
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def fixed_size(backbone: Any) -> tuple[int, int] | None:
    """The height and width that an architecture of fixed size insists on; None if it takes others."""
    height, width = input_size(backbone)
    insists = backbone.pretrained_cfg.get("fixed_input_size") and _refusal(backbone, height // 2, width // 2)
    return (height, width) if insists else None


def input_size(backbone: Any) -> tuple[int, int]:
    """Height and width that the backbone was built for."""
    patches = getattr(backbone, "patch_embed", None)
    height, width = getattr(patches, "img_size", None) or backbone.pretrained_cfg["input_size"][-2:]
    return height, width


def check_sizes(backbone: Any, sides: list[int], what: str) -> None:
    """Raises InputError unless the backbone takes square images of these sides; ``what`` wants them."""
    for side in sides:
        if why := _refusal(backbone, side, side):
            raise InputError(
                f"{what}: {architecture(backbone)} cannot take images of {side} x {side} ({why}); "
                "give a larger --image-size or an architecture that takes any size"
            )


@torch.no_grad()
def _refusal(backbone: Any, height: int, width: int) -> str:
    """Why the backbone cannot take one image of this size; empty if it can."""
    training = backbone.training
    backbone.eval()
    try:
        embed(backbone, torch.zeros(1, 3, height, width, device=next(backbone.parameters()).device))
    except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    finally:
        backbone.train(training)
    return ""


@torch.no_grad()
def widths(backbone: Any, taps: int = 0) -> tuple[int, list[int]]:
    """The embedding width and the channels of the ``taps`` deepest maps, measured on one blank image.

    Raises:
        InputError: the backbone cannot take images of its input size, or gives fewer feature maps than ``taps``.
    """
    device, name = next(backbone.parameters()).device, architecture(backbone)
    size = input_size(backbone)
    if why := _refusal(backbone, *size):
        raise InputError(f"{name} cannot take images of {size[0]} x {size[1]} ({why}); another --image-size?")
    training = backbone.training
    backbone.eval()
    try:
        embedding, maps = embed(backbone, torch.zeros(1, 3, *size, device=device), taps)
    except (AssertionError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"taps={taps}: {name} does not give that many feature maps ({error}); use fewer") from error
    finally:
        backbone.train(training)
    return embedding.shape[1], [m.shape[1] for m in maps]
