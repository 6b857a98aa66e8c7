"""From a name to a network: WEIGHTS is a published name, a timm name, a weights folder, or a run folder."""

import contextlib
import fnmatch
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from torch import nn

from .. import backbone, files, small_resnets
from ..config import TrainConfig, from_dict
from ..errors import InputError, IntegrityError, NetworkError, printable, say
from ..methods import METHODS
from ..tensors import misfit, read_shapes, read_tensors
from ..train import checkpoint
from . import fetch, manifest, tags


def create_model(
    weights: str | os.PathLike[str],
    pretrained: bool = True,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A plain timm module in float32, headless unless ``num_classes`` is given.

    Args:
        weights: a published name (`list_pretrained`), a timm name (also ``hf-hub:``), a weights folder written by
            ``cgh export``, or a run folder. A folder that is called like a published name is ``./NAME``.
        pretrained: False takes the architecture with random weights.
        cache_dir: where downloads go and are looked for; None: where huggingface_hub has its own.
        kwargs: timm's own (``num_classes``, ``in_chans``, ``features_only``, ...); a run folder takes none.

    Raises:
        InputError: nothing of this name, or timm has no weights for it.
        NetworkError: its weights could not be fetched.
        IntegrityError: a damaged file.
        DiskError: the cache cannot be written.
    """
    name = str(weights).removeprefix("local-dir:")
    path = Path(name)
    if name in manifest.rows():
        return _published(manifest.rows()[name], pretrained, cache_dir, kwargs)
    if path.is_dir():
        return _from_folder(path, pretrained, kwargs)
    if str(weights).startswith("local-dir:") or ("/" in name and not name.startswith("hf-hub:")):
        raise InputError(
            f"{printable(name)}: there is no such folder; give a weights folder, a run folder or a timm name"
        )
    return _from_timm(name, pretrained, kwargs | ({"cache_dir": cache_dir} if cache_dir else {}))


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """What timm itself has under a name, or the Hub for timm."""
    arch = name.partition(".")[0]
    remote = name.startswith("hf-hub:")
    if not remote and not timm.is_model(arch):
        backbone.create(arch)  # raises, with names that are close
    if not remote and (pretrained or "." in name) and not timm.is_model_pretrained(name):
        raise InputError(
            f"{printable(name)}: no weights of this name and no such folder; `cgh list` and "
            f"timm.list_pretrained('{arch}*') show those there are, {arch} with --random takes untrained ones"
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **kwargs})
    except TypeError as error:
        raise InputError(f"{printable(name)}: timm cannot build it with {kwargs} ({error}); change those") from error
    except Exception as error:  # timm and huggingface_hub raise some twenty kinds here
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:120]
        raise NetworkError(
            f"{name}: its weights could not be fetched ({reason}); try later, or give a folder"
        ) from error


def _published(row: manifest.Row, pretrained: bool, cache_dir: Any, kwargs: dict[str, Any]) -> nn.Module:
    """A row's model: filled without initializing it first if it is the bare backbone, else by way of timm."""
    cfg = tags.pretrained_cfg(row, tags.VerifiedFile(row, cache_dir))
    if pretrained and kwargs in ({}, {"num_classes": 0}):
        return _filled(row, fetch.read(row, manifest.BACKBONE, cache_dir), cfg)
    tags.skeleton(row)  # says it if this timm cannot build it
    with _one_sentence(row["name"], kwargs):
        args = {"num_classes": 0, **row["model_args"], **kwargs}
        return timm.create_model(row["name"], pretrained=pretrained, pretrained_cfg=cfg, **args)


def _filled(row: manifest.Row, tensors: dict[str, Any], cfg: Any) -> nn.Module:
    """The bare backbone of a row, its tensors its parameters. Raises IntegrityError if they do not fit."""
    model = tags.skeleton(row, pretrained_cfg=cfg)
    if odd := misfit(model.state_dict(), tensors):
        raise IntegrityError(f"{row['name']}: does not fit {row['architecture']} of timm {timm.__version__}: {odd}")
    if not backbone.fill(model, tensors):  # buffers that only the constructor can make
        model = timm.create_model(row["architecture"], pretrained_cfg=cfg, num_classes=0, **row["model_args"])
        model.load_state_dict(tensors)
    return model


def _from_folder(path: Path, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The model of a run or of a weights folder, checked against the folder's description if it has one."""
    if not pretrained:
        raise InputError(f"{printable(path)}: holds trained weights; give the architecture's name for untrained ones")
    if is_run(path):
        if kwargs:
            raise InputError(
                f"{path}: a run folder takes no model arguments; `cgh export {path}` makes weights that do"
            )
        return load_run(path).student.backbone
    if not is_weights(path):
        raise InputError(f"{printable(path)}: holds no weights (config.json, model.safetensors) and no run")
    file = path / manifest.BACKBONE
    files.read_json(path / "config.json", "timm's config.json")  # timm's own message for a damaged file names nothing
    if (path / manifest.ROW_FILE).is_file():
        row = manifest.read_row(path)
        tensors = read_tensors(file, row["files"][manifest.BACKBONE]["sha256"])
        if kwargs in ({}, {"num_classes": 0}):
            return _filled(row, tensors, tags.pretrained_cfg(row, str(file)))
        tags.check_fit(row, file)
    else:
        read_shapes(file)
    with _one_sentence(path, kwargs):
        return timm.create_model(f"local-dir:{path}", pretrained=True, **{"num_classes": 0, **kwargs})


@contextlib.contextmanager
def _one_sentence(what: object, kwargs: dict[str, Any]) -> Iterator[None]:
    """What timm's constructors and loaders raise becomes an InputError."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split())[:120])
        raise InputError(f"{printable(what)}: timm cannot build it with {kwargs} ({reason}); change those") from error


def list_models(filter: str = "") -> list[str]:
    """Names of the architectures that have published weights or that this package adds to timm, by shell pattern."""
    ours = {row["architecture"] for row in manifest.rows().values()} | small_resnets.default_cfgs.keys()
    return sorted(fnmatch.filter(ours, filter or "*"))


def list_pretrained(filter: str = "") -> list[str]:
    """Names of the published weights, ``architecture.tag``, by shell pattern."""
    return manifest.names(filter)


def weights_info(name: str) -> manifest.Row:
    """The manifest's row of published weights: what they are, how they were made, hashes, measured numbers.

    Raises:
        InputError: there are none of this name.
    """
    return manifest.row(name)


def is_run(path: Path) -> bool:
    """Whether a folder was written by the trainer."""
    return (path / "checkpoints.json").is_file()


def is_weights(path: Path) -> bool:
    """Whether a folder holds exported weights."""
    return (path / "model.safetensors").is_file() and (path / "config.json").is_file()


def build_method(name: str, arch: str, preprocessing: dict[str, Any], config: Any, **model_args: Any) -> Any:
    """A registered method on a new timm backbone. Raises InputError for an unknown name."""
    if name not in METHODS:
        raise InputError(f"method {printable(name)!r}: there is no such method; the methods are {', '.join(METHODS)}")
    method = METHODS[name]
    if isinstance(config, dict):
        config = from_dict(method.Config, config)
    return method(backbone.create(arch, preprocessing, **model_args), config)


def preprocessing(train: Any) -> dict[str, Any]:
    """timm's pretrained_cfg fields for images as a TrainConfig has them."""
    size = (3, train.image_size, train.image_size)
    return {
        "input_size": size,
        "mean": tuple(train.mean),
        "std": tuple(train.std),
        "crop_pct": train.crop_pct,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "test_input_size": None,
        "test_crop_pct": None,
    }


def load_method(weights: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> Any:
    """The whole method (backbone, heads, teacher, queues) of published weights, of a weights folder, or of a run.

    Raises:
        InputError: nothing of this name, or its heads are not there.
        NetworkError: they could not be fetched.
        IntegrityError: a damaged file.
    """
    path = Path(weights)
    if str(weights) in manifest.rows():
        row = manifest.rows()[str(weights)]
        read = functools.partial(fetch.read, row, cache_dir=cache_dir)
    elif is_run(path):
        return load_run(path)
    elif path.is_dir():
        row = manifest.read_row(path)
        read = functools.partial(_read_from_folder, path, row)
    else:
        manifest.row(str(weights))
        raise AssertionError("unreachable")
    heads = read(manifest.HEADS)  # where there are none, the method need not be one of ours
    images = {k: tuple(v) if isinstance(v, list) else v for k, v in row["preprocessing"].items()}
    config = row["method_config"]
    if row["method"] in METHODS:  # a field that came after the weights has the default that means what they meant
        config = from_dict(METHODS[row["method"]].Config, config, complete=False)
    method = build_method(row["method"], row["architecture"], images, config, **row["model_args"])
    _load_strictly(method, heads | {f"student.backbone.{k}": v for k, v in read(manifest.BACKBONE).items()}, path)
    return method


def _read_from_folder(path: Path, row: manifest.Row, file: str) -> dict[str, Any]:
    if file not in row["files"]:
        raise InputError(
            f"{printable(path)}: holds a backbone without heads, expected {file}; create_model loads the backbone"
        )
    return read_tensors(path / file, row["files"][file]["sha256"])


def load_run(run_dir: str | os.PathLike[str]) -> Any:
    """The method of a run, as its newest undamaged checkpoint has it."""
    path = Path(run_dir)
    method, _ = new_method_of_run(path)
    _, file = checkpoint.newest(path, say)
    checkpoint.load_method_state(file, method)
    return method


def new_method_of_run(run_dir: Path) -> tuple[Any, dict[str, Any]]:
    """A method as a run's config.json describes it, newly initialized, and that description."""
    run = checkpoint.read_run(run_dir)
    train = from_dict(TrainConfig, run["train"])
    return build_method(run["method"], run["arch"], preprocessing(train), run["method_config"]), run


def start_from(method: Any, weights: str | os.PathLike[str]) -> str:
    """Copies weights into a new method, in place: all of it if method and shapes agree, else the backbone.

    Returns:
        a sentence that says what was taken and what was left out; the method keeps it as ``started_from``, and what is
        trained and exported tells it.

    Raises:
        InputError: the backbone does not fit.
    """
    path, network = Path(str(weights).removeprefix("local-dir:")), method.student.backbone
    source: Any = None
    why = "heads: left out, the weights have none"
    if is_run(path) or _has_heads(str(weights), path):
        source = load_method(weights if str(weights) in manifest.rows() else path)
        if source.name != method.name:
            why = f"heads: left out, they are {source.name}'s and not {method.name}'s"
        else:
            theirs, ours = source.state_dict(), method.state_dict()
            odd = [k for k in ours if k not in theirs or theirs[k].shape != ours[k].shape]
            odd += [k for k in theirs if k not in ours]  # of a deeper network
            if not odd:
                method.load_state_dict(theirs)
                method.started_from = f"started from {path}: backbone, heads, teacher and queues"
                return method.started_from
            more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
            why = f"heads: left out, the shape of {odd[0]}{more} is another"
    # A folder is read again through timm, which resamples position embeddings to the new image size.
    donor = source.student.backbone if is_run(path) else create_model(weights, **backbone.model_args(network))
    for branch in (method.student, *([method.teacher] if hasattr(method, "teacher") else [])):
        try:
            _load_strictly(branch.backbone, donor.state_dict(), path)
        except IntegrityError as error:
            raise InputError(str(error)) from error
    method.started_from = f"started from {path}: backbone; {why}"
    return method.started_from


def _has_heads(name: str, path: Path) -> bool:
    if name in manifest.rows():
        return fetch.where(manifest.rows()[name], manifest.HEADS) != "nowhere"
    return (path / manifest.HEADS).is_file()


def _load_strictly(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    if odd := misfit(module.state_dict(), state):
        raise IntegrityError(f"{printable(path)}: does not fit the model: {odd}; give weights of the same architecture")
    module.load_state_dict(state)
