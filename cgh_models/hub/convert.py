"""From a checkpoint of a method's authors to a weights folder, or nothing is written."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

from .. import backbone
from ..backbone import TimmModel
from ..errors import InputError, IntegrityError, printable
from ..methods import METHODS, preprocessing
from ..recipes import RECIPES, train_config
from ..small_resnets import default_cfgs
from ..tensors import Tensors, describe_mismatch, write_tensors
from ..version import __version__
from . import weights_folder
from .author_checkpoints import RELEASES, Original, read
from .integrity import verify
from .row import BACKBONE, CodeVersion, Row, TrainingImages

# timm's and torchvision's ResNets: blocks of the four stages, and whether they are bottlenecks
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_NO_TERMS = "The terms of the images it was trained on were not stated."


def convert(
    file: str | Path,
    out: str | Path,
    method: str,
    *,
    arch: str = "",
    recipe: str = "imagenet",
    tag: str = "",
    license: str = "",
    data_name: str = "",
    data_license: str = "",
    epochs: float | None = None,
    **images: object,
) -> Row:
    """Writes a weights folder of the bare backbone in an authors' checkpoint, and reads it back.

    No code in the file is run. What a file does not say stays null unless it is stated here.

    Args:
        file: what torch.save wrote, or a safetensors file.
        out: a new or empty folder.
        method: whose layout the file has and whose release it is from, a key of `RELEASES`.
        images: ``image_size``, ``mean`` and ``std``, where they are not the recipe's.
        The others are the flags of ``cgh convert``.

    Raises:
        InputError: another layout or architecture, a flag that cannot be, or ``out`` is not empty.
        IntegrityError: a damaged file, code in it, or a tensor too few, too many or not finite.
        DiskError: no room.
    """
    full_tag = tag or f"{method}_converted"
    weights_folder.check_tag(full_tag)
    if epochs is not None and not 0 <= epochs < 1e9:
        raise InputError(f"--epochs {epochs}: expected how many there were, or leave it out")
    cfg = _preprocessing(recipe, images)
    original = read(Path(file), method)
    cfg["interpolation"] = METHODS[method].Config().eval_interpolation
    model = _build(original, arch, cfg, printable(file))
    flags = {"arch": arch, "recipe": recipe, **images, "tag": tag, "license": license}
    flags |= {"epochs": epochs, "data_name": data_name, "data_license": data_license}
    with weights_folder.new_folder(Path(out)) as draft:
        write_tensors(draft / BACKBONE, model.state_dict())
        made = _how_it_was_made(original, method, flags)
        row = weights_folder.describe(draft, model, full_tag, **made)
        weights_folder.check_backbone(draft, model)
        verify(draft)
    return row


def _preprocessing(recipe: str, images: dict[str, object]) -> dict[str, object]:
    if recipe not in RECIPES:
        raise InputError(f"--recipe {printable(recipe)[:60]}: expected one of {', '.join(RECIPES)}")
    stated = {key: value for key, value in images.items() if value is not None}
    config = dataclasses.replace(train_config(recipe), **stated)
    if config.image_size > 4096:
        raise InputError(f"image_size={config.image_size}: expected at most 4096")
    return preprocessing(config)


def _build(original: Original, arch: str, cfg: dict[str, object], file: str) -> TimmModel:
    """The backbone with all tensors of the file in it."""
    tensors = original.tensors
    stock = _RESNETS.get(_layout(tensors))
    blocks = f"its blocks are those of {stock or 'none of ' + ', '.join(_RESNETS.values())}"
    if not arch and stock is None:
        raise InputError(f"{file}: {blocks}; give --arch")
    if not arch and "conv1.weight" in tensors and tensors["conv1.weight"].shape[2:] == (3, 3):
        what = "its first convolution is 3x3, and tensors do not say whether a max-pool follows it"
        hint = f"give --arch {' or '.join(default_cfgs)} (max-pool: those with _small)"
        raise InputError(f"{file}: {what}; {hint}")
    model = backbone.create(arch or stock or "", cfg).eval()
    expected = model.state_dict()
    # What files of PyTorch before 0.4.1 do not hold and no feature depends on stays zero.
    state = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")} | tensors
    mismatch = describe_mismatch(expected, state)
    if not mismatch:
        model.load_state_dict(state)
        return model
    stems = {s["conv1.weight"].shape for s in (expected, tensors) if "conv1.weight" in s}
    if len(stems) > 1 or _layout(expected) != _layout(tensors):
        hint = f"{blocks}, give the --arch of the file"
        raise InputError(f"{file}: --arch {arch} does not fit: {mismatch}; {hint}")
    what = f"{original.source.prefix}* does not fill {backbone.architecture(model)}: {mismatch}"
    raise IntegrityError(f"{file}: {what}; give a file with exactly its tensors")


def _layout(tensors: Tensors) -> tuple[tuple[int, ...], bool]:
    """The number of blocks in each stage of a ResNet, and whether they are bottlenecks."""
    blocks = []
    for stage in ("layer1.", "layer2.", "layer3.", "layer4."):
        blocks.append(len({key.split(".")[1] for key in tensors if key.startswith(stage)}))
    bottleneck = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", key) for key in tensors)
    return tuple(blocks), bottleneck


def _how_it_was_made(original: Original, method: str, flags: dict[str, Any]) -> dict[str, object]:
    release = RELEASES[method]
    words = ["cgh", "convert", original.source.file, "--method", method, "--out", "FOLDER"]
    for flag, value in flags.items():
        if value not in ("", None, "imagenet"):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag.replace('_', '-')}", *map(str, values)]
    notes = [release.terms]
    if flags["license"]:
        stated = f"The licence {flags['license']} was stated by whoever converted the file."
        notes = [f"{stated} {release.terms}"]
    if original.layout != method:
        also = f"The file's layout is also that of {original.layout}"
        notes.append(f"{also}; that it is {method}'s was stated by its converter.")
    name = printable(flags["data_name"]) or None
    return {
        "method": method,
        "data": TrainingImages(name, license_note=flags["data_license"] or _NO_TERMS),
        "epochs": flags["epochs"],
        "code": CodeVersion(__version__),
        "command": printable(shlex.join(words)),
        "converted_from": original.source,
        "license": flags["license"] or release.license,
        "paper_ids": [release.paper],
        "notes": notes,
    }
