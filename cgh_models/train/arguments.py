"""What `pretrain` can take: everything else is refused before work begins."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbone import channels
from ..config import TrainConfig
from ..errors import InputError, printable
from ..methods.method import Method
from ..view_recipes import OwnView, Recipe, described, recipe_of


def check_arguments(method: Any, config: Any, run_dir: Any) -> Path:
    """The run folder; InputError for what cannot be trained, or would be as something else."""
    kind = f"method: a {type(method).__name__}"
    if isinstance(method, (torch.jit.ScriptModule, nn.parallel.DataParallel)) or hasattr(
        method, "_orig_mod"
    ):
        hint = "give the method itself (compile=True in TrainConfig compiles it)"
        raise InputError(f"{kind}: its state would have other names; {hint}")
    members = [*Method.__annotations__, "forward", "after_step"]
    if not isinstance(method, nn.Module) or not all(hasattr(method, name) for name in members):
        expected = "an nn.Module with the members of cgh_models.methods.Method"
        raise InputError(f"{kind}: expected {expected}, such as CGH(backbone)")
    if not isinstance(config, TrainConfig):
        raise InputError(f"config: a {type(config).__name__}: expected a TrainConfig")
    if not isinstance(run_dir, (str, os.PathLike)):
        raise InputError(f"run_dir: {printable(repr(run_dir))[:60]}: expected a path")
    student: Any = method.student
    backbone = student.backbone
    if isinstance(backbone, torch.jit.ScriptModule) or hasattr(backbone, "_orig_mod"):
        raise InputError(f"{kind}: its backbone is compiled or scripted; give timm's module itself")
    found = channels(backbone)
    if found != config.in_chans:
        expected = "build it with preprocessing(config) of cgh_models.methods"
        raise InputError(f"{kind}: takes {found} channels, in_chans={config.in_chans}; {expected}")
    for name, tensor in (*method.named_parameters(), *method.named_buffers()):
        if tensor.is_meta or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            found = f"{name} is {tensor.dtype} on {tensor.device}"
            raise InputError(f"{kind}: {found}; give one in float32 with memory (.float())")
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise InputError(f"{kind}: all of its backbone is frozen; call requires_grad_(True) on it")
    return Path(run_dir)


def settle_views(
    method: Any, views: Sequence[Any] | None, config: TrainConfig
) -> tuple[Recipe, TrainConfig]:
    """The views of a run, and the config that describes them. Raises InputError."""
    if views is None:
        return recipe_of(method.view_recipe, config.view), config
    recipe, changes = described(method.view_recipe, views)
    if config.view and [*config.view] != changes:
        given = f"view={printable(config.view)[:80]} of the config together with views"
        raise InputError(f"{given}; give one of the two")
    config = dataclasses.replace(config, view=tuple(changes))
    if any(isinstance(view, OwnView) for view in recipe):
        config = dataclasses.replace(config, views="exact")
    return recipe, config
