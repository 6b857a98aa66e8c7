"""From a name to a network: WEIGHTS is a timm name, a weights folder, or a run folder."""

import os
import sys
from pathlib import Path
from typing import Any

import timm
from torch import nn

from . import backbone, checkpoint
from .config import TrainConfig, from_dict
from .errors import InputError, IntegrityError, NetworkError, printable
from .methods import METHODS

_PRETRAIN_KEYS = {"cgh_models", "method", "method_config", "arch", "model_args", "preprocessing", "epochs", "steps"}


def create_model(weights: str | os.PathLike[str], pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """A plain timm module, headless unless ``num_classes`` is given.

    Args:
        weights: a timm name (also ``hf-hub:``), a weights folder written by ``cgh export``, or a run folder.
        pretrained: False takes a timm name's architecture with random weights.
        kwargs: timm's own (``num_classes``, ``in_chans``, ``features_only``, ...); a run folder takes none.

    Raises:
        InputError: nothing of this name, or timm has no weights for it.
        NetworkError: its weights could not be fetched.
        IntegrityError: a damaged file.
    """
    name = str(weights).removeprefix("local-dir:")
    path = Path(name)
    if path.is_dir():
        if is_run(path):
            if kwargs:
                raise InputError(
                    f"{path}: a run folder takes no model arguments; `cgh export {path}` makes weights that do"
                )
            return load_run(path).student.backbone
        if not is_weights(path):
            raise InputError(f"{printable(path)}: holds no weights (config.json, model.safetensors) and no run")
        checkpoint.read_json(path / "config.json", "timm's config.json")  # timm's own messages for a damaged file
        checkpoint.read_tensors(path / "model.safetensors")  # name nothing
        return timm.create_model(f"local-dir:{path}", pretrained=True, **{"num_classes": 0, **kwargs})
    arch = name.partition(".")[0]
    remote = name.startswith("hf-hub:")
    if not remote and ("/" in name or str(weights).startswith("local-dir:")):
        raise InputError(
            f"{printable(name)}: there is no such folder; give a weights folder, a run folder or a timm name"
        )
    if not remote and not timm.is_model(arch):
        backbone.create(arch)  # raises, with names that are close
    if not remote and pretrained and not timm.is_model_pretrained(name):
        raise InputError(
            f"{printable(name)}: timm has no weights of this name and there is no such folder; "
            f"timm.list_pretrained('{arch}*') lists them, --random takes untrained weights"
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **kwargs})
    except Exception as error:  # timm and huggingface_hub raise some twenty kinds here
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:120]
        raise NetworkError(
            f"{name}: its weights could not be fetched ({reason}); try later, or give a folder"
        ) from error


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


def load_method(weights: str | os.PathLike[str]) -> Any:
    """The whole method (backbone, heads, teacher, queues) of a run or of a weights folder that has its heads.

    Raises:
        InputError: no such folder, or one without heads.
        IntegrityError: a damaged file.
    """
    path = Path(weights)
    if is_run(path):
        return load_run(path)
    config_file = path / "pretrain.json"
    info = checkpoint.read_json(config_file, "the pretrain.json that cgh export writes beside the heads")
    if info.keys() != _PRETRAIN_KEYS:
        odd = ", ".join(sorted(map(printable, info.keys() ^ _PRETRAIN_KEYS)))
        raise InputError(f"{printable(config_file)}: unknown or missing keys ({odd[:120]}); export the run again")
    kinds = {"method": str, "arch": str, "method_config": dict, "model_args": dict, "preprocessing": dict}
    if odd := [key for key, kind in kinds.items() if not isinstance(info[key], kind)]:
        raise InputError(f"{printable(config_file)}: {odd[0]} is not what cgh export writes; export the run again")
    method = build_method(
        info["method"], info["arch"], info["preprocessing"], info["method_config"], **info["model_args"]
    )
    state = {f"student.backbone.{k}": v for k, v in checkpoint.read_tensors(path / "model.safetensors").items()}
    state |= checkpoint.read_tensors(path / "pretrain.safetensors")
    _load_strictly(method, state, path)
    return method


def load_run(run_dir: str | os.PathLike[str]) -> Any:
    """The method of a run, as its newest undamaged checkpoint has it."""
    path = Path(run_dir)
    method, _ = new_method_of_run(path)
    _, file = checkpoint.newest(path, lambda text: print(text, file=sys.stderr))
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
        a sentence that says what was taken and what was left out.

    Raises:
        InputError: the backbone does not fit.
    """
    path, network = Path(str(weights).removeprefix("local-dir:")), method.student.backbone
    source: Any = None
    why = "heads: left out, the weights have none"
    if is_run(path) or (path / "pretrain.safetensors").is_file():
        source = load_method(path)
        if source.name != method.name:
            why = f"heads: left out, they are {source.name}'s and not {method.name}'s"
        else:
            theirs, ours = source.state_dict(), method.state_dict()
            odd = [k for k in ours if k not in theirs or theirs[k].shape != ours[k].shape]
            if not odd:
                method.load_state_dict(theirs)
                return f"started from {path}: backbone, heads, teacher and queues"
            why = f"heads: left out, {odd[0]} and {len(odd) - 1} more have other shapes"
    # A folder is read again through timm, which resamples position embeddings to the new image size.
    donor = source.student.backbone if is_run(path) else create_model(weights, **backbone.model_args(network))
    for branch in (method.student, *([method.teacher] if hasattr(method, "teacher") else [])):
        try:
            _load_strictly(branch.backbone, donor.state_dict(), path)
        except IntegrityError as error:
            raise InputError(str(error)) from error
    return f"started from {path}: backbone; {why}"


def _load_strictly(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    ours = module.state_dict()
    odd = sorted(
        k for k in ours.keys() | state.keys() if k not in ours or k not in state or ours[k].shape != state[k].shape
    )
    if odd:
        raise IntegrityError(
            f"{printable(path)}: does not fit the model: {len(odd)} of {len(ours)} tensors are missing, unknown or of "
            f"another shape, the first are {', '.join(odd[:3])}; give weights of the same architecture"
        )
    module.load_state_dict(state)
