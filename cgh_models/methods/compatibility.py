"""Which timm models a method can pretrain: each is tried, one whole step on tensors that have shapes but no memory."""

import copy
import dataclasses
import fnmatch
from typing import Any

import timm
import torch

from .. import backbone
from ..errors import InputError, printable
from ..view_recipes import RECIPES
from . import METHODS

_QUEUE = 1024  # its length changes nothing here, and one is filled with real random numbers elsewhere


def matching(pattern: str) -> list[str]:
    """timm's architectures by shell pattern, this package's among them. Raises InputError if there are none."""
    found = fnmatch.filter(timm.list_models(), pattern)
    if not found:
        raise InputError(f"{printable(pattern)!r}: timm has no architecture like that; try a pattern such as 'resnet*'")
    return found


def refusals(arch: str) -> dict[str, str]:
    """For each method why it cannot pretrain the architecture at its own image size, in a sentence; empty: it can."""
    try:
        network = backbone.skeleton(arch).to("meta")
    except Exception as error:  # a constructor may raise anything
        return dict.fromkeys(METHODS, f"timm cannot build it ({_one_line(error)})")
    return {name: _refusal(network, method) for name, method in METHODS.items()}


def _refusal(network: Any, method: Any) -> str:
    short = {"queue_length": _QUEUE} if "queue_length" in {f.name for f in dataclasses.fields(method.Config)} else {}
    size = network.pretrained_cfg["input_size"][-1]
    try:
        with torch.device("meta"):
            built = method(copy.deepcopy(network), method.Config(**short)).to("meta")
            views = [torch.empty(4, 3, v.side(size), v.side(size)) for v in RECIPES[built.view_recipe]]
            built(views, 0.0)["loss"].backward()
            built.after_step(0.0)
    except InputError as error:
        return str(error)
    except Exception as error:  # so may a forward
        return f"its step ends in {_one_line(error)}"
    return ""


def _one_line(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split())[:120])
