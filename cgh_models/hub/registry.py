"""From WEIGHTS to a network: a published name, a timm name, a weights folder, or a run folder."""

import fnmatch
import os
from pathlib import Path
from typing import Any

import timm
from torch import nn

from .. import backbone, files, small_resnets
from ..config import TrainConfig, from_dict
from ..errors import InputError, IntegrityError, NetworkError, printable, say
from ..methods import build_method, config_of_run, preprocessing
from ..tensors import describe_mismatch, read_shapes
from ..train import checkpoint
from ..train.checkpoint import is_run
from . import fetch, manifest, tags, timm_models, weights_folder
from .fetch import CacheDir
from .row import BACKBONE, HEADS, Row

# What timm's constructors and loaders raise for arguments or a config.json that cannot be.
_TIMMS = (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)


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
        kwargs: timm's own (``num_classes``, ``in_chans``, ``features_only``, ...); a run folder
            takes none.

    Raises:
        InputError: nothing of this name, or timm has no weights for it.
        NetworkError: its weights could not be fetched.
        IntegrityError: a damaged file.
        DiskError: the cache cannot be written.
    """
    folder = find_folder(weights)
    if folder is not None:
        return _from_folder(folder, pretrained, kwargs)
    name = str(weights)
    if name in manifest.rows():
        return _published(manifest.rows()[name], pretrained, cache_dir, kwargs)
    return _from_timm(name, pretrained, kwargs | ({"cache_dir": cache_dir} if cache_dir else {}))


def find_folder(weights: str | os.PathLike[str]) -> Path | None:
    """The folder that ``weights`` stands for; None if it is a name. Raises InputError."""
    if isinstance(weights, str):
        arch, _, tag = weights.partition(".")
        if weights in manifest.rows() or weights.startswith("hf-hub:"):
            return None
        if timm.is_model(arch) and (not tag or timm.is_model_pretrained(weights)):
            return None
    folder = Path(str(weights).removeprefix("local-dir:"))
    if folder.is_dir():
        return folder
    if "/" in str(weights) or str(weights).startswith("local-dir:"):
        hint = "give a weights folder, a run folder or a timm name"
        raise InputError(f"{printable(folder)}: there is no such folder; {hint}")
    return None


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    if not name.startswith("hf-hub:"):
        arch, _, tag = name.partition(".")
        if not timm.is_model(arch):
            backbone.create(arch)  # raises, with names that are close
        if (pretrained or tag) and not timm.is_model_pretrained(name):
            raise InputError(
                f"{printable(name)}: no weights of this name and no such folder; `cgh list` and "
                f"timm.list_pretrained('{arch}*') show weights, --random takes untrained ones"
            )
    try:
        return timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **kwargs})
    except TypeError as error:
        raise _cannot_build(name, kwargs, error) from error
    except Exception as error:  # timm and huggingface_hub raise some twenty kinds here
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:120]
        raise NetworkError(
            f"{name}: its weights could not be fetched ({reason}); try later, or give a folder"
        ) from error


def _published(row: Row, pretrained: bool, cache_dir: CacheDir, kwargs: dict[str, Any]) -> Any:
    """A row's model: filled without initializing it first if it is headless, else built by timm."""
    file = tags.VerifiedFile(row, cache_dir)
    if pretrained and kwargs in ({}, {"num_classes": 0}):
        tensors = fetch.read(row, BACKBONE, None, cache_dir)
        return timm_models.filled(row, tensors, file)
    timm_models.skeleton(row)  # raises if this timm cannot build it
    cfg = timm_models.pretrained_cfg(row, file)
    args = {"num_classes": 0, **row.model_args, **kwargs}
    try:
        return timm.create_model(row.name, pretrained=pretrained, pretrained_cfg=cfg, **args)
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
            raise InputError(
                f"{name}: a run folder takes no model arguments; `cgh export` it first"
            )
        return load_run(path).student.backbone
    if not weights_folder.is_weights(path):
        raise InputError(f"{name}: holds no weights (config.json, model.safetensors) and no run")
    file = path / BACKBONE
    files.read_json(path / "config.json", "timm's config.json")  # timm's message names no file
    if (path / manifest.ROW_FILE).is_file():
        row = manifest.read_row(path)
        tensors = fetch.read(row, BACKBONE, path)
        if kwargs in ({}, {"num_classes": 0}):
            return timm_models.filled(row, tensors, file)
        timm_models.check_fit(row, file)
    else:
        read_shapes(file)
    args = {"num_classes": 0, **kwargs}
    try:
        return timm.create_model(f"local-dir:{path}", pretrained=True, **args)
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


def weights_info(name: str) -> dict[str, Any]:
    """What published weights are, how they were made, hashes, measured numbers: their row as JSON.

    Raises:
        InputError: there are none of this name.
    """
    return manifest.row(name).to_json()


def load_method(weights: str | os.PathLike[str], *, cache_dir: CacheDir = None) -> Any:
    """The whole method (backbone, heads, teacher, queues) of published weights, a folder or a run.

    Raises:
        InputError: nothing of this name, or its heads are not there.
        NetworkError: they could not be fetched.
        IntegrityError: a damaged file.
    """
    if not manifest.is_published(weights) and is_run(Path(weights)):
        return load_run(weights)
    row, folder = manifest.find(weights)
    if row.heads_file is None:
        reason = f"holds a backbone without heads, expected {HEADS}"
        raise InputError(f"{printable(weights)}: {reason}; create_model loads the backbone")
    heads = fetch.read(row, row.heads_file, folder, cache_dir)
    backbone_state = fetch.read(row, BACKBONE, folder, cache_dir)
    images = row.preprocessing.to_timm()
    method = build_method(row.method, row.architecture, images, row.method_config, **row.model_args)
    weights_folder.load_state(method, backbone_state, heads, weights)
    return method


def load_run(run_dir: str | os.PathLike[str]) -> Any:
    """The method of a run, as its newest undamaged checkpoint has it."""
    method, _ = new_method_of_run(Path(run_dir))
    _, file = checkpoint.newest(Path(run_dir), say)
    checkpoint.load_method_state(file, method)
    return method


def new_method_of_run(run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """A method as a run's config.json describes it, newly initialized, and that description."""
    run = checkpoint.read_run(run_dir)
    train = from_dict(TrainConfig, run["train"])
    config = config_of_run(run["method"], run["method_config"])
    return build_method(run["method"], run["arch"], preprocessing(train), config), run


def start_from(method: Any, weights: str | os.PathLike[str]) -> str:
    """Copies weights into a new method: all of them if method and shapes agree, else the backbone.

    Returns:
        a sentence that says what was taken and what was left out. The method keeps it as
        ``started_from``; it goes into the description of what is trained and exported.

    Raises:
        InputError: the backbone does not fit.
    """
    folder = find_folder(weights)
    name = folder or str(weights)
    reason = "the weights have none"
    source = None
    if _has_heads(weights, folder):
        source = load_method(name)
        reason = f"they are {source.name}'s and not {method.name}'s"
        if source.name == method.name:
            reason = describe_mismatch(method.state_dict(), source.state_dict())
    if source is not None and not reason:
        method.load_state_dict(source.state_dict())
        method.started_from = f"started from {name}: backbone, heads, teacher and queues"
        return method.started_from
    if source is not None and folder is not None and is_run(folder):
        loaded = source.student.backbone
    else:  # timm resamples position embeddings to the new image size
        loaded = create_model(name, **backbone.model_args(method.student.backbone))
    try:
        weights_folder.load_strictly(method.student.backbone, loaded.state_dict(), name)
    except IntegrityError as error:
        raise InputError(str(error)) from error
    if hasattr(method, "teacher"):
        method.teacher.backbone.load_state_dict(loaded.state_dict())
    method.started_from = f"started from {name}: backbone; heads: left out, {reason}"
    return method.started_from


def _has_heads(weights: str | os.PathLike[str], folder: Path | None) -> bool:
    if folder is None:
        row = manifest.rows().get(str(weights))
        return bool(row and row.heads_file and fetch.location(row, row.heads_file) != "nowhere")
    if (folder / manifest.ROW_FILE).is_file():
        heads = manifest.read_row(folder).heads_file
        return heads is not None and (folder / heads).is_file()
    return is_run(folder)
