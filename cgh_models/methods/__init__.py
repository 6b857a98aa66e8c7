"""The methods: each is one file that can be read beside its paper.

`method` says what a method is; `heads`, `losses`, `feature_queue` and `momentum_teacher` are what
they share; `compatibility` tries which timm models a method can pretrain. `METHODS` maps the name
that ``--method`` takes to its class, and `build_method` makes one on a new backbone.
"""

from typing import Any

from ..backbone import create, start_norms_at_one
from ..config import TrainConfig
from ..dataclass_json import from_dict, from_older
from ..errors import InputError, printable
from .byol import BYOL
from .cgh import CGH
from .lewel import LEWEL, LEWELM
from .method import Method
from .mnclglf import MNCLGLF
from .moco_v2 import MoCoV2
from .nnclr import NNCLR
from .ressl import ReSSL
from .sce import SCE

__all__ = ["BYOL", "CGH", "LEWEL", "LEWELM", "METHODS", "MNCLGLF", "NNCLR", "Method", "MoCoV2"]
__all__ += ["SCE", "ReSSL", "build_method", "method_of_file", "preprocessing"]

_CLASSES = (CGH, LEWEL, LEWELM, MNCLGLF, ReSSL, MoCoV2, BYOL, NNCLR, SCE)
METHODS = {method.name: method for method in _CLASSES}


def build_method(
    name: str, arch: str, preprocessing: dict[str, object], config: Any, **model_args: object
) -> Any:
    """Builds a method on a new timm backbone with random weights.

    ``zero_init_last`` acts here alone: a class that is called with a backbone leaves it as it is.

    Args:
        preprocessing, model_args: see `backbone.create`.
        config: the method's Config, a dict of its fields, or None for its defaults.

    Raises:
        InputError: there is no such method or architecture, or a field does not exist.
    """
    method = _class(name)
    if isinstance(config, dict):
        config = from_dict(method.Config, config, complete=False)
    config = config or method.Config()
    preprocessing = {"interpolation": config.eval_interpolation} | preprocessing
    backbone = create(arch, preprocessing, **model_args)
    if not config.zero_init_last:
        start_norms_at_one(backbone)
    return method(backbone, config)


def method_of_file(
    name: str, arch: str, preprocessing: dict[str, Any], values: dict[str, Any], **model_args: Any
) -> Any:
    """`build_method` of a Config as a file has it; younger fields mean what they did then."""
    config = from_older(_class(name).Config, values)
    return build_method(name, arch, preprocessing, config, **model_args)


def _class(name: str) -> Any:
    if name not in METHODS:
        reason = f"there is no such method; the methods are {', '.join(METHODS)}"
        raise InputError(f"method {printable(name)!r}: {reason}")
    return METHODS[name]


def preprocessing(train: TrainConfig) -> dict[str, object]:
    """timm's pretrained_cfg fields for a TrainConfig's images; `build_method` adds the resizing."""
    return {
        "input_size": (train.in_chans, train.image_size, train.image_size),
        "mean": tuple(train.mean),
        "std": tuple(train.std),
        "crop_pct": train.crop_pct,
        "crop_mode": "center",
        "test_input_size": None,
        "test_crop_pct": None,
    }
