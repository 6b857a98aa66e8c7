"""From WEIGHTS to a network: a published name, a timm name, a weights folder, or a run folder."""

import fnmatch
import os
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .. import backbone, small_resnets
from ..config import TrainConfig
from ..dataclass_json import from_dict
from ..errors import InputError, IntegrityError, NetworkError, printable, say
from ..methods import method_of_file, preprocessing
from ..tensors import describe_mismatch, plain_defaults
from ..train import checkpoint
from ..train.checkpoint import is_run
from . import fetch, foreign_config, manifest, memory_limit, tags, timm_models, weights_folder
from .card import in_words
from .fetch import CacheDir
from .memory_limit import MemoryLimit
from .row import BACKBONE, HEADS, Row

# What timm's constructors and loaders raise for arguments or a config.json that cannot be.
_TIMMS = (AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_TIMMS += (ArithmeticError,)
_BYTES_PER_CLASS = 2**17  # of a classifier, at most: 8,192 floats, which timm makes and fills


def create_model(
    weights: str | os.PathLike[str],
    pretrained: bool = True,
    *,
    cache_dir: CacheDir = None,
    **kwargs: Any,
) -> nn.Module:
    """A plain timm module in float32, headless unless ``num_classes`` is given.

    Args:
        weights: a published name (`list_pretrained`), a timm name (also ``hf-hub:``), a weights
            folder written by ``cgh export``, or a run folder. A name comes before a folder that is
            called like it: that folder is ``./NAME``.
        pretrained: False takes the architecture with random weights.
        cache_dir: where downloads go and are looked for; None: huggingface_hub's own.
        kwargs: timm's own (``num_classes``, ``in_chans``, ``features_only``, ...); none for a run.

    Raises:
        InputError: nothing of this name, or timm has no weights for it.
        NetworkError: its weights could not be fetched.
        IntegrityError: a damaged file.
        DiskError: the cache cannot be written.
    """
    for name, least in (("num_classes", 0), ("in_chans", 1)):
        value = kwargs.get(name, least)
        if type(value) is not int or value < least:
            raise InputError(f"{name}={value!r}: expected a whole number of at least {least}")
    with plain_defaults():
        folder = manifest.find_folder(weights)
        name = str(weights)
        if folder is not None:
            model = _from_folder(folder, pretrained, kwargs)
        elif name in manifest.rows():
            model = _from_row(manifest.rows()[name], None, cache_dir, pretrained, kwargs)
        else:
            cached = {"cache_dir": cache_dir} if cache_dir else {}
            model = _from_timm(name, pretrained, kwargs | cached)
    device = torch.get_default_device()
    return model if device.type == "cpu" else model.to(device)


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if not name.startswith("hf-hub:"):
        arch, _, tag = name.partition(".")
        if not timm.is_model(arch):
            backbone.create(arch)  # raises, with names that are close
        if (pretrained or tag) and not timm.is_model_pretrained(name):
            what = f"{printable(name)}: no weights of this name and no such folder"
            lists = f"`cgh list` and timm.list_pretrained('{arch}*') show weights"
            raise InputError(f"{what}; {lists}, --random takes untrained ones")
    args = {"num_classes": 0, **kwargs}
    try:
        return timm.create_model(name, pretrained=pretrained, **args)
    except Exception as error:  # timm and huggingface_hub raise some twenty kinds here
        if not pretrained or isinstance(error, TypeError) or not _can_build(name, args):
            raise _cannot_build(name, kwargs, error) from error
        reason = " ".join(str(error).split())[:120]
        what = f"{name}: its weights could not be fetched ({reason})"
        raise NetworkError(f"{what}; try later, or give a folder") from error


def _can_build(name: str, args: dict[str, Any]) -> bool:
    """Whether timm builds it untrained; if so, what failed was to get its weights."""
    try:
        return name.startswith("hf-hub:") or bool(timm.create_model(name, **args))
    except Exception:
        return False


def _from_row(
    row: Row, folder: Path | None, cache_dir: CacheDir, pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    """A row's model: filled without initializing it first if it is headless, else built by timm."""
    file = tags.VerifiedFile(row, cache_dir) if folder is None else folder / BACKBONE
    if pretrained and kwargs in ({}, {"num_classes": 0}):
        tensors = fetch.read(row, BACKBONE, folder, cache_dir)
        return timm_models.model_with_tensors(row, tensors, file)
    if folder is None:
        timm_models.skeleton(row)  # raises if this timm cannot build it
    else:  # what VerifiedFile does when timm opens it
        fetch.read(row, BACKBONE, folder)
        timm_models.check_fit(row, folder / BACKBONE)
    cfg = timm_models.pretrained_cfg(row, file)
    args = {"num_classes": 0, **row.model_args, **kwargs}
    try:
        return timm.create_model(row.architecture, pretrained, cfg, **args)
    except _TIMMS as error:
        raise _cannot_build(row.name, kwargs, error) from error


def _from_folder(path: Path, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a run or of a weights folder, checked against the folder's row if it has one."""
    name = printable(path)
    if not pretrained:
        hint = "give the architecture's name for untrained ones"
        raise InputError(f"{name}: holds trained weights; {hint}")
    if is_run(path):
        if kwargs:
            what = f"{name}: a run folder takes no model arguments"
            raise InputError(f"{what}; `cgh export` it first")
        return load_run(path).student.backbone
    if not weights_folder.is_weights(path):
        raise InputError(f"{name}: holds no weights (config.json, model.safetensors) and no run")
    with MemoryLimit(path, [path / BACKBONE], _BYTES_PER_CLASS * kwargs.get("num_classes", 0)):
        if (path / manifest.ROW_FILE).is_file():
            row = manifest.read_row(path)
            return timm_models.pass_a_large_image(_from_row(row, path, None, True, kwargs))
        arch, cfg, args = foreign_config.read(path)
        args = {**args, "num_classes": 0, **kwargs}
        try:
            return timm_models.pass_a_large_image(timm.create_model(arch, True, cfg, **args))
        except _TIMMS as error:
            raise _cannot_build(name, kwargs, error) from error


def _cannot_build(what: str, kwargs: dict[str, object], error: Exception) -> InputError:
    reason = printable(" ".join(f"{type(error).__name__}: {error}".split())[:120])
    problem = f"timm cannot build it with {kwargs} ({reason}); change those"
    return InputError(f"{printable(what)}: {problem}")


def list_models(filter: str = "") -> list[str]:
    """Architectures with published weights or of this package, by shell pattern."""
    ours = {row.architecture for row in manifest.rows().values()}
    ours |= small_resnets.default_cfgs.keys()
    return sorted(fnmatch.filter(ours, filter or "*"))


def list_pretrained(filter: str = "") -> list[str]:
    """Names of the published weights, ``architecture.tag``, by shell pattern."""
    return manifest.names(filter)


def weights_info(name: str) -> dict[str, object]:
    """What published weights are, how they were made, hashes, measured numbers: their row as JSON.

    Raises:
        InputError: there are none of this name.
    """
    return manifest.row(name).to_json()


def load_method(weights: str | os.PathLike[str], *, cache_dir: CacheDir = None) -> Any:
    """The whole method (backbone, heads, teacher, queues) of published weights, a folder or a run.

    Queues or a teacher that the weights lack are those of a new run, which is said on stderr.

    Raises InputError if there is nothing of this name, or no heads; NetworkError if they could not
    be fetched; IntegrityError for a damaged file.
    """
    method, loaded = read_method(weights, cache_dir)
    if "anew" in loaded:
        say(f"{printable(weights)}: {loaded}")
    return method.to(torch.get_default_device())


@plain_defaults()
def read_method(
    weights: str | os.PathLike[str], cache_dir: CacheDir = None, trusted: bool = False
) -> tuple[Any, str]:
    """What `load_method` loads, on the CPU, and what was loaded in words. Raises as it does.

    The description of a ``trusted`` folder may ask for any memory.
    """
    folder = manifest.find_folder(weights)
    if folder is not None and is_run(folder):
        method = load_run(folder)
        return method, f"backbone, {in_words(method.state_dict())}"
    row, _ = manifest.find(weights)
    if row.heads_file is None:
        reason = f"holds a backbone without heads, expected {HEADS}"
        raise InputError(f"{printable(weights)}: {reason}; create_model loads the backbone")
    heads = fetch.read(row, row.heads_file, folder, cache_dir)
    backbone_state = fetch.read(row, BACKBONE, folder, cache_dir)
    with memory_limit.limit_of_method(row, None if trusted else folder):
        method = method_of_file(**row.of_method)
    return method, weights_folder.load_state(method, backbone_state, heads, weights, row.heads_file)


def load_run(run_dir: str | os.PathLike[str]) -> Any:
    """The method of a run, as its newest undamaged checkpoint has it."""
    method, _ = new_method_of_run(Path(run_dir))
    checkpoint.load_method_state(checkpoint.newest(Path(run_dir), say)[1], method)
    return method


def new_method_of_run(run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """A method as a run's config.json describes it, newly initialized, and that description."""
    run = checkpoint.read_run(run_dir)
    checkpoint.newest_first(run_dir)  # else there is no size to limit the memory by
    images = preprocessing(from_dict(TrainConfig, run["train"]))
    try:
        with MemoryLimit(run_dir, run_dir.glob("checkpoint-*")):
            return method_of_file(run["method"], run["arch"], images, run["method_config"]), run
    except InputError as error:
        raise InputError(f"{printable(run_dir / 'config.json')}: {error}") from error


def start_from(method: Any, weights: str | os.PathLike[str]) -> str:
    """Copies weights into a new method: all of them if method and shapes agree, else the backbone.

    Returns a sentence on what was taken and what was left out. The method keeps it as
    ``started_from``, for the description of what is trained and exported.

    Raises InputError if the backbone does not fit.
    """
    folder = manifest.find_folder(weights)
    name = folder or str(weights)
    reason = "the weights have none"
    source = None
    if _has_heads(weights, folder):
        source, taken = read_method(name)
        reason = f"they are {source.name}'s and not {method.name}'s"
        if source.name == method.name:
            taken = weights_folder.renew_queue(source, method, taken)
            reason = describe_mismatch(method.state_dict(), source.state_dict())
        if not reason:
            method.load_state_dict(source.state_dict())
            method.started_from = f"started from {name}: {taken}"
            return method.started_from
    if source is not None and folder is not None and is_run(folder):
        loaded = source.student.backbone
    else:  # timm resamples position embeddings to the new image size
        loaded = create_model(name, **backbone.model_args(method.student.backbone))
    state = timm_models.adapt_first_layer(loaded.state_dict(), method.student.backbone)
    try:
        weights_folder.load_strictly(method.student.backbone, state, name)
    except IntegrityError as error:
        raise InputError(str(error)) from error
    if hasattr(method, "teacher"):
        method.teacher.backbone.load_state_dict(state)
    taken, given = backbone.channels(method.student.backbone), backbone.channels(loaded)
    what = "backbone" if taken == given else f"backbone, adapted from {given} to {taken} channels"
    method.started_from = f"started from {name}: {what}; heads: left out, {reason}"
    return method.started_from


def _has_heads(weights: str | os.PathLike[str], folder: Path | None) -> bool:
    row = manifest.find_row(weights)
    if row is None:
        return folder is not None and is_run(folder)
    if row.heads_file is None:
        return False
    if folder is None:
        return fetch.location(row, row.heads_file) != "nowhere"
    return (folder / row.heads_file).is_file()
