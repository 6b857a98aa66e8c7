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
from ..data import kept_index
from ..data.image_set import ImageSet, load
from ..errors import InputError, printable
from ..evaluate.devices import pick_device
from ..methods.method import Method
from ..one_process import OneProcess
from ..view_recipes import OwnView, Recipe, described, recipe_of
from .distributed import own_device
from .norm_sync import norm_sync_of
from .run import Run
from .run_folder import settle
from .step import check_sizes


def checked_run(
    method: Any,
    data: object,
    config: TrainConfig,
    run_dir: str | Path,
    resume: bool,
    views: Sequence[object] | None,
    processes: OneProcess,
) -> Run:
    """The run that arguments of `pretrain` ask for. Raises InputError."""
    folder = check_arguments(method, config, run_dir)
    device = pick_device(own_device(processes, config.device))
    recipe, config = settle_views(method, views, settle(config, device, folder, resume))
    check_sizes(method, recipe, config)
    images = open_images(data, config, folder / kept_index.FILE if resume else None)
    check_batch(images, config)
    check_shares(processes, config)
    norm_sync = norm_sync_of(method, config, processes)
    return Run(folder, images, config, device, recipe, processes, norm_sync)


def check_arguments(method: object, config: object, run_dir: object) -> Path:
    """The run folder; InputError for what cannot be trained, or would be as something else."""
    kind = f"method: a {type(method).__name__}"
    is_wrapped = isinstance(method, (torch.jit.ScriptModule, nn.parallel.DataParallel))
    if is_wrapped or hasattr(method, "_orig_mod"):
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
    method: Method, views: Sequence[object] | None, config: TrainConfig
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
        if config.size_schedule:
            given = f"size_schedule={config.size_schedule} with views that functions of yours make"
            raise InputError(f"{given}, which are of one size; leave one of the two out")
        config = dataclasses.replace(config, views="exact")
    return recipe, config


def open_images(data: object, config: TrainConfig, kept: Path | None = None) -> ImageSet:
    """The index of the training images, ``kept`` as in `load`. Raises InputError."""
    how = (data, config.follow_links)
    images = load(*how, **config.reading, cache_gib=config.cache_gib, kept=kept)
    if (images.in_chans, images.reader) != (config.in_chans, config.reader):
        given = f"data: an ImageSet with in_chans={images.in_chans}, reader={images.reader!r}"
        raise InputError(f"{given}; load it with **config.reading")
    images.max_bad = config.max_bad
    if not isinstance(data, ImageSet):
        images.report_skipped()
    return images


def check_batch(images: ImageSet, config: TrainConfig) -> None:
    """Raises InputError if there are fewer images than in one batch."""
    if config.batch_size > len(images):
        found = f"the set of {len(images)} images in {printable(images.place)}"
        given = f"batch size {config.batch_size}: larger than {found}"
        raise InputError(f"{given}; give --batch-size {len(images)} or less")


def check_shares(processes: OneProcess, config: TrainConfig) -> None:
    """Raises InputError unless each process gets as much of each part of a batch."""
    parts = processes.count * config.accumulate
    if config.batch_size % parts or (parts > 1 and config.batch_size < 2 * parts):
        of = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        given = f"batch size {config.batch_size}{of} for {processes.count} processes"
        fits = max(2, round(config.batch_size / parts)) * parts
        raise InputError(f"{given}: each needs as many images, two at least; --batch-size {fits}")
    if processes.count > 1 and config.cuda_graphs:
        given = f"--cuda-graphs with {processes.count} processes"
        raise InputError(f"{given}: only one process can replay its steps; leave it out")
