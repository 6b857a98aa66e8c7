"""The door to timm: creates a backbone; its embedding and feature maps in one forward."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .errors import InputError

if TYPE_CHECKING:
    from .view_recipes import View

# timm's modules have no common class with pretrained_cfg, forward_intermediates and forward_head.
TimmModel = Any
OWN = "module:"  # what the name of a network of the user's own begins with, in a run's config.json
Output = TypeVar("Output")


def create(arch: str, preprocessing: dict[str, Any] | None = None, **model_args) -> TimmModel:
    """Creates a headless timm module with random weights.

    Args:
        arch: a timm architecture without a tag; one with a fixed input size is built for
            ``preprocessing["input_size"]``.
        preprocessing: fields of timm's pretrained_cfg that describe its images.
        model_args: timm's own model arguments.

    Raises:
        InputError: timm has no such architecture, or cannot build it with these arguments.
    """
    preprocessing = preprocessing or {}
    if arch.startswith(OWN):
        advice = "`cgh export RUN --format state-dict` writes its tensors"
        raise InputError(f"{arch}: a network of your own, which only your code can build; {advice}")
    if "." in arch:
        hint = f"give --arch {arch.partition('.')[0]}, and --init {arch} to start from its weights"
        raise InputError(f"architecture {arch!r}: has a tag; {hint}")
    if not timm.is_model(arch):
        near = ", ".join(difflib.get_close_matches(arch, timm.list_models(), n=3))
        hint = f"did you mean {near}?" if near else "timm.list_models('*') lists the names"
        raise InputError(f"architecture {arch!r}: timm has no model of this name; {hint}")
    cfg = timm.get_pretrained_cfg(arch)
    if cfg is not None and cfg.fixed_input_size and "input_size" in preprocessing:
        model_args.setdefault("img_size", preprocessing["input_size"][-1])
    overlay = {"num_classes": 0, **preprocessing}
    try:
        return timm.create_model(arch, num_classes=0, pretrained_cfg_overlay=overlay, **model_args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        what = f"architecture {arch!r} cannot be built with {model_args}"
        raise InputError(f"{what}: {error}") from error


class _ParametersOnMeta(TorchFunctionMode):
    """Puts new parameters on the meta device and does not fill them; computed buffers stay real."""

    _FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
    _FILLS = (
        *(Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.mul_, Tensor.add_),
        *(init.kaiming_uniform_, init.uniform_, init.normal_, init.constant_),
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self._FACTORIES and kwargs.get("device") is None:
            return func(*args, **kwargs | {"device": "meta"})
        if func in self._FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def skeleton(name: str, **kwargs) -> TimmModel:
    """Creates a headless timm module whose parameters have no memory, if it can be built so."""
    kwargs = {"num_classes": 0, **kwargs}
    try:
        with _ParametersOnMeta():
            return timm.create_model(name, **kwargs)
    except RuntimeError:  # its constructor reads values
        return timm.create_model(name, **kwargs)


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Makes the tensors, in float32, the parameters of a `skeleton` that they fit.

    Returns False if a buffer that only the constructor makes is still without memory.
    """
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    model.load_state_dict(state, assign=True)
    return not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def architecture(backbone: TimmModel) -> str:
    """Returns the timm architecture name of a module that timm made."""
    return backbone.pretrained_cfg["architecture"].split(".")[0]


def model_args(backbone: TimmModel) -> dict[str, Any]:
    """Returns the arguments timm needs to build it again: the image size, where that is fixed."""
    cfg = backbone.pretrained_cfg
    return {"img_size": cfg["input_size"][-1]} if cfg.get("fixed_input_size") else {}


def channels(backbone: TimmModel) -> int:
    """Returns how many channels an image has that the backbone was built for."""
    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    return (cfg.get("input_size") or (3,))[0]


def embed(
    backbone: TimmModel, images: Tensor, taps: int = 0, splits: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """The pooled embedding (N, D) and the ``taps`` deepest maps [(N, C, h, w)], shallow to deep.

    Args:
        splits: parts in which the batch passes, each with batch-norm statistics of its own, as on
            that many GPUs without synchronized norms. The running statistics take one step a batch,
            towards the mean of the parts.
    """
    if splits > 1:
        if len(images) < 2 * splits:
            given = f"batch_norm_splits={splits}: a batch of {len(images)}"
            raise InputError(f"{given} is too small; 2 images a part")
        pieces = images.tensor_split(splits)
        parts = [embed(backbone, pieces[part], taps) for part in count_parts(backbone, splits)]
        embedding = torch.cat([embedding for embedding, _ in parts])
        return embedding, [torch.cat([maps[tap] for _, maps in parts]) for tap in range(taps)]
    if not taps:
        return backbone(images), []
    final, maps = backbone.forward_intermediates(images, indices=taps)
    return backbone.forward_head(final, pre_logits=True), maps


def stack_maps(maps: Sequence[Tensor]) -> Tensor:
    """A hypercolumn (N, sum of C, h, w): maps [(N, C, h, w)] resized to the last one and stacked.

    Bilinear resizing without anti-aliasing; a factor of 2 is exactly 2x2 average pooling. Maps of
    the same size (ViT) are stacked as they are.
    """
    size = maps[-1].shape[-2:]
    resized = [m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear") for m in maps]
    return torch.cat(resized, 1)


def map_names(backbone: TimmModel) -> list[str]:
    """timm's names of the modules that end in a map, shallow to deep; [] where it has no maps."""
    info = getattr(backbone, "feature_info", ())
    if not hasattr(backbone, "forward_intermediates"):
        return []
    return [info[number]["module"] for number in range(len(info))]


def embed_with_pixels(backbone: TimmModel, images: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """The embedding (N, D), the pixels it is pooled from (N, h * w, C), and their (h, w).

    A ViT's pixels are its normalized patch tokens. MobileNetV3 widens what was pooled: D is not C.
    """
    final, (deepest,) = backbone.forward_intermediates(images, indices=1)
    embedding = backbone.forward_head(final, pre_logits=True)
    size = deepest.shape[2:]
    if final.ndim == 3:  # tokens: class and register tokens come first
        return embedding, final[:, -size.numel() :], size
    if final.shape[2:] != size:  # Swin: channels last
        final = final.permute(0, 3, 1, 2)
    return embedding, final.flatten(2).transpose(1, 2), size


def count_parts(module: nn.Module, splits: int) -> Iterator[int]:
    """Counts the parts of a batch, in each of which the module's batch norms take their share.

    After all of them the running statistics took one step towards the mean over the parts.
    """
    for part in range(splits):
        left = splits - 1 - part
        with norm_momentum(module, lambda m, left=left: m / (splits - left * m)):
            yield part


def start_norms_at_one(module: nn.Module) -> None:
    """Sets weights of batch norms that timm starts at 0, the last of each residual, to 1."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.weight is not None and not norm.weight.any():
            init.ones_(norm.weight)


@contextlib.contextmanager
def norm_momentum(module: nn.Module, change: Callable[[float], float]) -> Iterator[None]:
    """Within it, the module's batch norms move their running statistics at another momentum."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = {norm: norm.momentum for norm in norms if norm.momentum}
    for norm, momentum in before.items():
        norm.momentum = change(momentum)
    try:
        yield
    finally:
        for norm, momentum in before.items():
            norm.momentum = momentum


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within it, the module is in eval mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@torch.no_grad()
def on_zeros(
    forward: Callable[[TimmModel, Tensor], Output], backbone: TimmModel, height: int, width: int
) -> Output:
    """Output of ``forward(backbone, image)`` in eval mode for an image of zeros, to measure it."""
    with eval_mode(backbone):
        device = next(backbone.parameters()).device
        return forward(backbone, torch.zeros(1, channels(backbone), height, width, device=device))


def input_size(backbone: TimmModel) -> tuple[int, int]:
    """The height and width that the backbone was built for. Raises InputError for none of timm."""
    if not getattr(backbone, "pretrained_cfg", None):
        given = f"backbone: a {type(backbone).__name__}, which is not timm's"
        raise InputError(f"{given}; wrap it: OwnNetwork(module, preprocessing(config))")
    patches = getattr(backbone, "patch_embed", None)
    height, width = getattr(patches, "img_size", None) or backbone.pretrained_cfg["input_size"][-2:]
    return height, width


def fixed_size(backbone: TimmModel) -> tuple[int, int] | None:
    """Returns the height and width that an architecture insists on; None if it takes others."""
    height, width = input_size(backbone)
    fixed = backbone.pretrained_cfg.get("fixed_input_size")
    return (height, width) if fixed and _refusal(backbone, height // 2, width // 2) else None


def check_size(backbone: TimmModel, height: int, width: int, what: str) -> None:
    """Raises InputError unless the backbone takes images of this size, which ``what`` needs."""
    if reason := _refusal(backbone, height, width):
        found = f"{architecture(backbone)} cannot take images of {height} x {width} ({reason})"
        hint = "give a larger --image-size or an architecture that takes any size"
        raise InputError(f"{what}: {found}; {hint}")


def check_views(backbone: TimmModel, views: "Iterable[View]", what: str) -> None:
    """Raises InputError unless the backbone takes views of their sizes, which ``what`` needs."""
    height, _ = input_size(backbone)
    for view in views:
        side = view.side(height)
        check_size(backbone, side, side, what)


def _refusal(backbone: TimmModel, height: int, width: int) -> str:
    """Why the backbone cannot take an image of this size, found out by trying; empty if it can."""
    try:
        on_zeros(embed, backbone, height, width)
    except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
    return ""


def widths(backbone: TimmModel, taps: int = 0) -> tuple[int, list[int]]:
    """The embedding width and the channels of the ``taps`` deepest maps, measured on zeros.

    Raises InputError if the backbone cannot take its input size or has fewer maps.
    """
    size = input_size(backbone)
    check_size(backbone, *size, "the input size")
    try:
        embedding, maps = on_zeros(partial(embed, taps=taps), backbone, *size)
    except (AssertionError, AttributeError, IndexError, RuntimeError) as error:
        what = f"taps={taps}: {architecture(backbone)} does not give that many feature maps"
        raise InputError(f"{what} ({error}); use fewer") from error
    return embedding.shape[1], [m.shape[1] for m in maps]
