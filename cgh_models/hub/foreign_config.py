"""What is taken of the config.json of a folder that timm wrote, which has no row of ours.

timm passes ``model_args`` on as they are, among them paths of files to load. Here only sizes,
switches and words for parts of a network are.
"""

import re
from pathlib import Path
from typing import Any, get_type_hints

import timm
from timm.models import PretrainedCfg

from .. import backbone
from ..errors import InputError, printable
from ..files import read_json
from ..tensors import read_shapes, refuse_mismatch
from .row import BACKBONE, Preprocessing
from .strict_json import parse

_ARGS = {"img_size", "patch_size", "in_chans", "global_pool", "embed_dim", "embed_dims", "depth"}
_ARGS |= {"depths", "num_heads", "mlp_ratio", "window_size", "qkv_bias", "init_values"}
_ARGS |= {"class_token", "no_embed_class", "reg_tokens", "pre_norm", "fc_norm"}
_ARGS |= {"dynamic_img_size", "strict_img_size", "drop_rate", "drop_path_rate", "output_stride"}
_ARGS |= {"layers", "channels", "dims", "kernel_sizes", "cardinality", "base_width", "stem_width"}
_ARGS |= {"stem_type", "act_layer", "norm_layer", "pos_embed"}
_LARGEST = 10_000  # of any number
_DEEPEST = 100  # of a number of blocks: each costs time and memory before it has a size
# Fields of a pretrained_cfg: of images, of the classifier, and how it is named.
_CFG = {"input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "num_classes"}
_CFG |= {"pool_size", "first_conv", "classifier", "fixed_input_size", "test_input_size"}
_CFG |= {"test_crop_pct", "min_input_size", "tag", "license"}


def read(folder: Path) -> tuple[str, PretrainedCfg, dict[str, Any]]:
    """The architecture, timm's description with the folder's tensor file, and model arguments.

    Raises:
        InputError: an unknown architecture, or an argument that is not one of those above.
        IntegrityError: the tensors are not those of this network.
    """
    path = folder / "config.json"
    config = read_json(path, "timm's config.json")
    args = config.get("model_args") or {}
    given = config.get("pretrained_cfg") or {}
    name = printable(path)
    if not isinstance(args, dict) or not isinstance(given, dict):
        raise InputError(f"{name}: model_args, pretrained_cfg: expected objects; save it anew")
    arch = str(config.get("architecture")).partition(".")[0]
    if not timm.is_model(arch):
        raise InputError(f"{name}: timm has no architecture {printable(arch)[:60]!r}")
    args = {key: value for key, value in args.items() if key != "num_classes"}
    for key, value in args.items():
        most = _DEEPEST if key in ("depth", "depths", "layers") else _LARGEST
        if key not in _ARGS or not _is_plain(value, most):
            shown = printable(f"{key}={value!r}")[:100]
            hint = f"timm.create_model('local-dir:{printable(folder)}') does, if you trust it"
            raise InputError(f"{name}: model_args: {shown} is not passed on; {hint}")
    fields = {}
    for key in sorted(_CFG & given.keys()):
        if _is_plain(given[key]):
            fields[key] = tuple(given[key]) if isinstance(given[key], list) else given[key]
    for key, kind in get_type_hints(Preprocessing, include_extras=True).items():
        try:
            parse(kind | None, given.get(key), f"pretrained_cfg.{key}")
        except ValueError as error:
            raise InputError(f"{name}: {printable(error)}; save it anew") from error
    classes = fields.get("num_classes", config.get("num_classes", 0))
    file = folder / BACKBONE
    cfg = PretrainedCfg(file=str(file), architecture=arch, **fields | {"num_classes": classes})
    try:
        model = backbone.skeleton(arch, pretrained_cfg=cfg, **args | {"num_classes": classes})
        backbone.input_size(model)
    except (TypeError, AssertionError, ValueError, RuntimeError, LookupError) as error:
        reason = printable(" ".join(str(error).split())[:100])
        raise InputError(f"{name}: timm cannot build {arch} from it ({reason})") from error
    # timm loads without complaint, whatever is missing, as soon as the classifier is dropped
    refuse_mismatch(model.state_dict(), read_shapes(file), file, "save it anew", arch)
    return arch, cfg, args


def _is_plain(value: object, most: float = _LARGEST) -> bool:
    """Whether it is a number to ``most``, a word, or a list of those: no path and no address."""
    if isinstance(value, list):
        return len(value) < 100 and all(_is_plain(item, most) for item in value)
    if isinstance(value, str):
        return len(value) < 100 and re.fullmatch(r"[A-Za-z0-9_.\-]+", value) is not None
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) <= most)
