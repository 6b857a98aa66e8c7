"""What `pretrain` can take: everything else is refused before work begins."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..errors import InputError, printable
from ..methods.method import Method


def check_arguments(method: Any, data: Any, config: Any, run_dir: Any) -> Path:
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
    for name, value, kinds in (
        ("data", data, (str, os.PathLike, ImageSet)),
        ("run_dir", run_dir, (str, os.PathLike)),
    ):
        if not isinstance(value, kinds):
            shown = printable(repr(value))[:60]
            raise InputError(f"{name}: {shown}: expected a path, or for data an ImageSet")
    student: Any = method.student
    backbone = student.backbone
    if isinstance(backbone, torch.jit.ScriptModule) or hasattr(backbone, "_orig_mod"):
        raise InputError(f"{kind}: its backbone is compiled or scripted; give timm's module itself")
    for name, tensor in (*method.named_parameters(), *method.named_buffers()):
        if tensor.is_meta or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            found = f"{name} is {tensor.dtype} on {tensor.device}"
            raise InputError(f"{kind}: {found}; give one in float32 with memory (.float())")
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise InputError(f"{kind}: all of its backbone is frozen; call requires_grad_(True) on it")
    return Path(run_dir)
