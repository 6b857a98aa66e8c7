"""From a checkpoint of a method's authors to a weights folder: each tensor in its place, or nothing is written."""

import dataclasses
import math
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import timm
import torch

from .. import backbone, files
from ..errors import InputError, IntegrityError, printable
from ..recipes import RECIPES, train_config
from ..small_resnets import default_cfgs
from ..tensors import write_tensors
from ..version import __version__
from . import author_checkpoints, manifest
from .export import write_description
from .integrity import fingerprint, verify
from .registry import preprocessing
from .tags import timm_config

# torchvision's ResNets, which are timm's: blocks of each stage, and whether they are bottlenecks
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18", ((3, 4, 6, 3), False): "resnet34", ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101", ((3, 8, 36, 3), True): "resnet152",
}  # fmt: skip
_ROOM = 130  # characters of keys of one kind in a refusal
_NO_TERMS = "The terms of the images it was trained on were not stated."


def convert(
    file: str | Path, out: str | Path, method: str, *, arch: str = "", recipe: str = "imagenet",
    image_size: int | None = None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
    tag: str = "", license: str = "", data_name: str = "", data_license: str = "", epochs: float | None = None,
) -> manifest.Row:  # fmt: skip
    """The row of the weights folder that it writes and reads back, the bare backbone of an authors' checkpoint in it.

    No code in the file is run. What a file does not say stays null unless it is stated here.

    Args:
        file: what torch.save wrote, or a safetensors file.
        out: a new or empty folder.
        method: whose layout the file has and whose release it is from: cgh, ressl, lewel, moco_v2, byol or mnclglf.
        arch: a timm architecture; left out, what the tensors say.
        recipe: images as in a recipe of `recipes.RECIPES`; ``image_size``, ``mean`` and ``std`` given beside it win.
        tag: what follows the dot in the weights' name; left out, ``<method>_converted``.
        license: of the weights; left out, what the method's authors state of their release.
        data_name: of the training images.
        data_license: the terms of the training images, in one sentence.
        epochs: it was trained for.

    Raises:
        InputError: another layout, an architecture that does not fit, a flag that cannot be, ``out`` is not empty.
        IntegrityError: a damaged file, one with code in it, or one that does not fill the backbone to the last tensor.
        DiskError: no room.
    """
    file, out = Path(file), Path(out).resolve()
    given = {"image_size": image_size, "mean": mean, "std": std}
    images = _images(recipe, {key: value for key, value in given.items() if value is not None})
    told = {"tag": tag or f"{method}_converted", "license": license, "epochs": epochs}
    told |= {"data_name": data_name, "data_license": data_license}
    _check_told(told)
    original = author_checkpoints.read(file, method)
    told["command"] = _command(original, method, arch, recipe, given, told | {"tag": tag})
    model = _filled(original, arch, images, printable(file))
    files.make_folder(out)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        files.make_folder(draft)
        write_tensors(draft / manifest.BACKBONE, model.state_dict())
        row = _row(draft, model, method, original, told)
        write_description(draft, row)
        files.write_json(draft / "config.json", timm_config(row))
        _check(model, draft)
        out.rmdir()
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return row


def _images(recipe: str, given: dict[str, Any]) -> dict[str, Any]:
    """What timm needs to know of the images."""
    if recipe not in RECIPES:
        raise InputError(f"--recipe {printable(recipe)[:60]}: expected one of {', '.join(RECIPES)}")
    config = dataclasses.replace(train_config(recipe), **given)
    if config.image_size > 4096 or not all(map(math.isfinite, config.mean)):
        raise InputError(f"image_size={config.image_size}, mean={config.mean}: at most 4096, and numbers, are needed")
    return preprocessing(config)


def _check_told(told: dict[str, Any]) -> None:
    if not re.fullmatch(r"[a-z0-9_]+", told["tag"]):
        raise InputError(f"--tag {told['tag']!r}: expected lower-case letters, digits and _, e.g. ressl_imagenet")
    if told["epochs"] is not None and not 0 <= told["epochs"] < 1e9:
        raise InputError(f"--epochs {told['epochs']}: expected how many there were, or leave it out")


def _command(original: Any, method: str, arch: str, recipe: str, given: dict[str, Any], told: dict[str, Any]) -> str:
    """The command line that does the same, without the folders of this machine."""
    words = ["cgh", "convert", original.source["file"], "--method", method, "--out", "FOLDER"]
    flags = {"arch": arch, "recipe": recipe if recipe != "imagenet" else "", **given, **told}
    for flag, value in flags.items():
        if value not in ("", None):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def _filled(original: Any, arch: str, images: dict[str, Any], file: str) -> Any:
    """The backbone with all tensors of the file in it. Raises InputError, or IntegrityError if one is left over."""
    tensors, seen = original.tensors, _seen(original.tensors)
    if not arch and not seen:
        raise InputError(f"{file}: its blocks are of none of {', '.join(_RESNETS.values())}; say which with --arch")
    if not arch and _small(tensors):
        raise InputError(f"{file}: {_which_small(tensors)}")
    model = backbone.create(arch or seen, images).eval()
    if odd := _misfit(model, tensors):
        if arch and _another(model.state_dict(), tensors):
            raise InputError(f"{file}: --arch {arch} does not fit: {odd}; {_instead(tensors, seen)}")
        where = f"{original.source['prefix']}*"
        raise IntegrityError(f"{file}: {where} does not fill {arch or seen}: {odd}; give a file with just its tensors")
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise IntegrityError(f"{file}: {printable(key)[:80]} holds values that are not finite; get it again")
    model.load_state_dict(_counters(model) | tensors)
    return model


def _counters(model: Any) -> dict[str, Any]:
    """What a file from before PyTorch 0.4.1 does not hold and no feature depends on: zeros."""
    return {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}


def _misfit(model: Any, tensors: dict[str, Any]) -> str:
    """What keeps the tensors from filling the model, each kind with its keys; "" if nothing does."""
    ours, given = model.state_dict(), _counters(model) | tensors
    kinds = {
        "missing": [k for k in ours if k not in given],
        "of another shape": [k for k in ours if k in given and ours[k].shape != given[k].shape],
        "unknown": [k for k in given if k not in ours],
    }
    said = [f"{len(keys)} of {len(ours)} tensors are {kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys]
    return "; ".join(said)


def _listed(keys: list[str]) -> str:
    """As many keys as a line has room for, and how many more there are."""
    shown = keys[:1]
    while len(shown) < len(keys) and sum(map(len, shown)) + len(keys[len(shown)]) < _ROOM:
        shown = keys[: len(shown) + 1]
    rest = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
    return ", ".join(printable(key)[:80] for key in shown) + rest


def _seen(tensors: dict[str, Any]) -> str:
    """The stock architecture that the tensors' names tell; "" if it is none of torchvision's."""
    one, two, three, four = ({k.split(".")[1] for k in tensors if k.startswith(f"layer{n}.")} for n in range(1, 5))
    bottleneck = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", key) for key in tensors)
    return _RESNETS.get(((len(one), len(two), len(three), len(four)), bottleneck), "")


def _another(ours: dict[str, Any], tensors: dict[str, Any]) -> bool:
    """Whether blocks or stem are another architecture's; a tensor that is absent tells nothing."""
    stems = {state["conv1.weight"].shape for state in (ours, tensors) if "conv1.weight" in state}
    return _seen(ours) != _seen(tensors) or len(stems) > 1


def _small(tensors: dict[str, Any]) -> bool:
    """Whether the first convolution is 3 x 3, for small images."""
    return "conv1.weight" in tensors and tensors["conv1.weight"].shape[2:] == (3, 3)


def _which_small(tensors: dict[str, Any]) -> str:
    """What to type for a ResNet whose stem does not tell all about it; the end of a sentence."""
    fit = [name for name in default_cfgs if not _misfit(backbone.skeleton(name), tensors)]
    named = [f"--arch {name} ({'max-pool' if name.endswith('_small') else 'none'})" for name in fit]
    choice = f"give {' or '.join(named)}" if fit else "none of this package's fits, give the --arch of one that does"
    return f"its first convolution is 3x3, and tensors do not say whether a max-pool follows it; {choice}"


def _instead(tensors: dict[str, Any], seen: str) -> str:
    if _small(tensors):
        return _which_small(tensors)
    return f"its tensors are those of {seen}, leave --arch out" if seen else "give another --arch"


@torch.no_grad()
def _row(draft: Path, model: Any, method: str, original: Any, told: dict[str, Any]) -> manifest.Row:
    """The description of what was written to ``draft``; its keys are those of weights_manifest.schema.json."""
    release, cfg = author_checkpoints.RELEASES[method], model.pretrained_cfg
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    shown = {k: list(cfg[k]) if isinstance(cfg[k], tuple) else cfg[k] for k in keys}
    blank = torch.zeros(1, *shown["input_size"])
    file = draft / manifest.BACKBONE
    return {
        "name": f"{backbone.architecture(model)}.{told['tag']}",
        "architecture": backbone.architecture(model),
        "model_args": backbone.model_args(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_features": model.num_features,
        "pool_size": list(backbone.embed(model, blank, taps=1)[1][0].shape[-2:]),
        "method": method,
        "method_config": None,
        "train_config": None,
        "branch": "student",
        "data": {"name": told["data_name"] or None, "images": None, "digest": None,
                 "license_note": told["data_license"] or _NO_TERMS},
        "epochs": told["epochs"],
        "steps": None,
        "seed": None,
        "code": {"version": __version__, "commit": None},
        "command": told["command"],
        "converted_from": original.source,
        "files": {manifest.BACKBONE: {"bytes": file.stat().st_size, "sha256": files.sha256(file), "urls": None}},
        "hub": None,
        "preprocessing": shown,
        "license": told["license"] or release.license,
        "paper_ids": [release.paper],
        "metrics": {"knn": None, "linear": None},
        "fingerprint": fingerprint(model, shown["input_size"]),
        "notes": _notes(method, original, told),
    }  # fmt: skip


def _notes(method: str, original: Any, told: dict[str, Any]) -> list[str]:
    """What a reader has to know: where the licence is from."""
    release = author_checkpoints.RELEASES[method]
    notes = [release.terms]
    if told["license"]:
        notes = [f"The licence {told['license']} was stated by whoever converted the file. {release.terms}"]
    if original.like != method:
        notes.append(
            f"The file's layout is also that of {original.like}; that it is {method}'s was stated by its converter."
        )
    return notes


@torch.no_grad()
def _check(model: Any, draft: Path) -> None:
    """Reads the folder back, through plain timm to the bit, and as `verify` does."""
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    read = timm.create_model(f"local-dir:{draft}", pretrained=True).eval()
    if not torch.equal(model(images), read(images)):
        raise IntegrityError(f"{draft}: timm reads other features from it than the file holds; do not use it")
    verify(draft)
