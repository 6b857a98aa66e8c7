"""A row as timm sees it: its config and its model."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg, adapt_input_conv, create_model, get_pretrained_cfg
from timm.version import __version__ as timm_version

from .. import backbone
from ..backbone import TimmModel
from ..errors import InputError, printable
from ..tensors import Tensors, read_shapes, refuse_mismatch
from .row import Row

_LARGE = 512  # pixels a side


def skeleton(row: Row, **kwargs: object) -> TimmModel:
    """The row's headless model without memory for its weights. Raises InputError."""
    try:
        args = {"in_chans": row.in_chans, **row.model_args, **kwargs}
        return backbone.skeleton(row.architecture, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:  # also: no such model
        reason = printable(" ".join(str(error).split())[:100])
        given = f"{row.architecture} with {row.model_args} ({reason})"
        what = f"{row.name}: timm {timm_version} cannot build {given}"
        raise InputError(f"{what}; install another timm") from error


def from_folder(folder: Path) -> TimmModel:
    """What timm itself makes of a weights folder."""
    name = str(folder)
    with contextlib.ExitStack() as exits:
        if name.encode("utf-8", "replace").decode() != name:
            handle = os.open(folder, os.O_RDONLY)  # safetensors takes no path that is not UTF-8
            exits.callback(os.close, handle)
            name = f"/proc/self/fd/{handle}"
        return create_model(f"local-dir:{name}", pretrained=True)


def pass_a_large_image(model: TimmModel) -> TimmModel:
    """The model; if its images are large one has passed, which a MemoryLimit around may refuse."""
    _, height, width = model.pretrained_cfg["input_size"]
    if max(height, width) > _LARGE:
        with contextlib.suppress(LookupError, RuntimeError, TypeError, ValueError):
            backbone.on_zeros(lambda model, image: model(image), model, height, width)
    return model


def adapt_first_layer(state: Tensors, model: TimmModel) -> Tensors:
    """A state dict whose first layer, if it is of RGB, takes the channels of the model.

    As timm does it: of one channel the sum over RGB, of others RGB repeated and scaled.
    """
    count = backbone.channels(model)
    names = model.pretrained_cfg.get("first_conv") or ()
    adapted = {}
    for name in (names,) if isinstance(names, str) else names:
        key = f"{name}.weight"
        if count != 3 and key in state and state[key].ndim == 4 and state[key].shape[1] == 3:
            adapted[key] = adapt_input_conv(count, state[key])
    return state | adapted


def check_fit(row: Row, path: Path) -> None:
    """Raises IntegrityError unless a file has exactly the tensors of the row's headless model."""
    _refuse_mismatch(row, path, skeleton(row), read_shapes(path))


def model_with_tensors(row: Row, tensors: Tensors, file: str | os.PathLike[str]) -> TimmModel:
    """The headless model of a row with ``tensors``, those of ``file``, as its parameters."""
    cfg = pretrained_cfg(row, file)
    model = skeleton(row, pretrained_cfg=cfg)
    _refuse_mismatch(row, file, model, tensors)
    if not backbone.fill(model, tensors):  # it has buffers that only the constructor can make
        args: dict[str, Any] = {"num_classes": 0, **row.model_args}
        model = create_model(row.architecture, pretrained_cfg=cfg, **args)
        model.load_state_dict(tensors)
    return model


def _refuse_mismatch(row: Row, file: object, model: TimmModel, found: Tensors) -> None:
    kind = f"{row.architecture} of timm {timm_version}"
    refuse_mismatch(model.state_dict(), found, file, "install another timm", kind)


def pretrained_cfg(row: Row, file: str | os.PathLike[str]) -> PretrainedCfg:
    """timm's description of a row whose weights are in ``file``."""
    return PretrainedCfg(file=file, architecture=row.architecture, **_fields(row))  # pyright: ignore


def timm_config(row: Row) -> dict[str, object]:
    """timm's config.json of a row."""
    pool = getattr(skeleton(row), "global_pool", None)
    pool_type = getattr(pool, "pool_type", None) or (pool if isinstance(pool, str) else "avg")
    return {
        "architecture": row.architecture,
        "num_classes": 0,
        "num_features": row.num_features,
        "global_pool": pool_type,
        "model_args": row.model_args,
        "pretrained_cfg": _fields(row),
    }


def _fields(row: Row) -> dict[str, object]:
    """A PretrainedCfg's fields: those on weights and images are ours, layer names are timm's."""
    stock = get_pretrained_cfg(row.architecture) or PretrainedCfg()
    return {
        "tag": row.tag,
        "custom_load": False,
        **row.preprocessing.to_timm(),
        "fixed_input_size": stock.fixed_input_size,
        "num_classes": 0,
        "pool_size": tuple(row.pool_size),
        # timm would take the layer for one of RGB, and leave it random.
        "first_conv": stock.first_conv if row.in_chans == 3 else None,
        "classifier": stock.classifier,
        "license": row.license,
        "origin_url": None,
        "paper_ids": tuple(row.paper_ids),
    }


@torch.no_grad()
def fingerprint(model: TimmModel, input_size: list[int]) -> list[float]:
    """Eight numbers (six digits) of a headless model: means of eighths of one image's embedding.

    The image (C, H, W), values in [-1, 1), is made of whole numbers: it is the same everywhere.
    """
    index = torch.arange(math.prod(input_size))
    image = ((index * 2654435761) % 65536).float().view(1, *input_size) / 32768 - 1
    with backbone.eval_mode(model):
        embedding = model(image)[0].double()  # (D,)
    return [float(f"{part.mean():.6g}") for part in embedding.tensor_split(8)]
