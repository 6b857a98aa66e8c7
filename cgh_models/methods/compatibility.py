"""Which timm models a method can pretrain, found by trying a step on tensors without memory."""

import copy
import fnmatch
from typing import Any

import timm
import torch
from torch import nn

from ..backbone import skeleton
from ..errors import InputError, printable
from ..view_recipes import RECIPES
from . import METHODS


def matching(pattern: str) -> list[str]:
    """timm's architectures by shell pattern, ours too. Raises InputError if there are none."""
    found = fnmatch.filter(timm.list_models(), pattern)
    if not found:
        reason = "timm has no architecture like that; try a pattern such as 'resnet*'"
        raise InputError(f"{printable(pattern)!r}: {reason}")
    return found


def refusals(arch: str) -> dict[str, str]:
    """For each method why it cannot pretrain the architecture at its own size; "" if it can."""
    try:
        backbone = skeleton(arch).to("meta")
    except Exception as error:  # a constructor may raise anything
        return dict.fromkeys(METHODS, f"timm cannot build it ({_one_line(error)})")
    return {name: _refusal(backbone, method) for name, method in METHODS.items()}


def _refusal(backbone: nn.Module, method_class: Any) -> str:
    try:
        with torch.device("meta"):
            method = method_class(copy.deepcopy(backbone))
            size = method.student.backbone.pretrained_cfg["input_size"][-1]
            sides = [view.side(size) for view in RECIPES[method.view_recipe]]
            views = [torch.empty(4, 3, side, side) for side in sides]
            method.to("meta")(views, 0.0)["loss"].backward()
            method.after_step(0.0)
    except InputError as error:
        return str(error)
    except Exception as error:  # a forward may raise anything too
        return f"its step ends in {_one_line(error)}"
    return ""


def _one_line(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[:120])
