"""From WEIGHTS to a network: a published name, a timm name, a weights folder, or a run folder."""

import contextlib
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from torch import nn

from .. import backbone, files, small_resnets
from ..config import TrainConfig, from_dict
from ..errors import InputError, NetworkError, printable, say
from ..methods import build_method, preprocessing
from ..tensors import read_shapes
from ..train import checkpoint
from ..train.checkpoint import is_run
from . import manifest, tags, timm_models, weights_folder
from .row import BACKBONE, HEADS, Row

_TIMMS_ERRORS = (
    AssertionError,
    AttributeError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def create_model(
    weights: str | os.PathLike[str],
    pretrained: bool = True,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
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
    """The folder that ``weights`` stands for; None if it is a name.

    Raises:
        InputError: there is no such folder.
    """
    if isinstance(weights, str) and _is_name(weights):
        return None
    folder = Path(str(weights).removeprefix("local-dir:"))
    if folder.is_dir():
        return folder
    if "/" in str(weights) or str(weights).startswith("local-dir:"):
        raise InputError(
            f"{printable(folder)}: there is no such folder; give a weights folder, a run folder or "
            "a timm name"
        )
    return None


def _is_name(weights: str) -> bool:
    """Whether these are published weights, weights or an architecture of timm, or the Hub's."""
    arch, _, tag = weights.partition(".")
    if weights in manifest.rows() or weights.startswith("hf-hub:"):
        return True
    return timm.is_model(arch) and (not tag or timm.is_model_pretrained(weights))


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """What timm itself has under a name, or the Hub for timm."""
    if not name.startswith("hf-hub:"):
        arch, _, tag = name.partition(".")
        if not timm.is_model(arch):
            backbone.create(arch)  # raises, with names that are close
        if (pretrained or tag) and not timm.is_model_pretrained(name):
            raise InputError(
                f"{printable(name)}: no weights of this name and no such folder; `cgh list` and "
                f"timm.list_pretrained('{arch}*') show those there are, "
                f"{arch} with --random takes untrained ones"
            )
    try:
        return timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **kwargs})
    except TypeError as error:
        raise InputError(
            f"{printable(name)}: timm cannot build it with {kwargs} ({error}); change those"
        ) from error
    except Exception as error:  # timm and huggingface_hub raise some twenty kinds here
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:120]
        raise NetworkError(
            f"{name}: its weights could not be fetched ({reason}); try later, or give a folder"
        ) from error


def _published(
    row: Row, pretrained: bool, cache_dir: str | os.PathLike[str] | None, kwargs: dict[str, Any]
) -> nn.Module:
    """A row's model: filled without initializing it first if it is headless, else built by timm."""
    file = tags.VerifiedFile(row, cache_dir)
    if pretrained and kwargs in ({}, {"num_classes": 0}):
        tensors = weights_folder.read(row, BACKBONE, None, cache_dir)
        return timm_models.filled(row, tensors, file)
    timm_models.skeleton(row)  # raises if this timm cannot build it
    cfg = timm_models.pretrained_cfg(row, file)
    with _timms_errors(row.name, kwargs):
        args = {"num_classes": 0, **row.model_args, **kwargs}
        return timm.create_model(row.name, pretrained=pretrained, pretrained_cfg=cfg, **args)


def _from_folder(path: Path, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a run or of a weights folder, checked against the folder's row if it has one."""
    if not pretrained:
        raise InputError(
            f"{printable(path)}: holds trained weights; give the architecture's name for untrained "
            "ones"
        )
    if is_run(path):
        if kwargs:
            raise InputError(
                f"{path}: a run folder takes no model arguments; `cgh export {path}` makes weights "
                "that do"
            )
        return load_run(path).student.backbone
    if not weights_folder.is_weights(path):
        raise InputError(
            f"{printable(path)}: holds no weights (config.json, model.safetensors) and no run"
        )
    file = path / BACKBONE
    files.read_json(path / "config.json", "timm's config.json")  # timm's message names no file
    if (path / manifest.ROW_FILE).is_file():
        row = manifest.read_row(path)
        tensors = weights_folder.read(row, BACKBONE, path)
        if kwargs in ({}, {"num_classes": 0}):
            return timm_models.filled(row, tensors, file)
        timm_models.check_fit(row, file)
    else:
        read_shapes(file)
    with _timms_errors(path, kwargs):
        args = {"num_classes": 0, **kwargs}
        return timm.create_model(f"local-dir:{path}", pretrained=True, **args)


@contextlib.contextmanager
def _timms_errors(what: object, kwargs: dict[str, Any]) -> Iterator[None]:
    """What timm's constructors and loaders raise becomes an InputError."""
    try:
        yield
    except _TIMMS_ERRORS as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split())[:120])
        raise InputError(
            f"{printable(what)}: timm cannot build it with {kwargs} ({reason}); change those"
        ) from error


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


def load_method(
    weights: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
) -> Any:
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
        raise InputError(
            f"{printable(weights)}: holds a backbone without heads, expected {HEADS}; "
            "create_model loads the backbone"
        )
    heads = weights_folder.read(row, row.heads_file, folder, cache_dir)
    backbone_state = weights_folder.read(row, BACKBONE, folder, cache_dir)
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
    return build_method(run["method"], run["arch"], preprocessing(train), run["method_config"]), run
