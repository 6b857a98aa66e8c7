"""Self-supervised pretraining for timm backbones: ``import cgh_models`` makes its architectures known to timm.

The import is light (no torch, no timm): architectures are registered when timm is imported, at once if it already is,
and the names below are loaded on first use.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluate import extract
    from .registry import create_model, load_method
    from .train import pretrain

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "extract", "load_method", "pretrain"]

_HOMES = {"create_model": "registry", "extract": "evaluate", "load_method": "registry", "pretrain": "train"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'cgh_models' has no attribute {name!r}; it offers {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"cgh_models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register(_timm: object) -> None:
    from . import architectures  # noqa: F401 - importing it registers them


if "timm.models" in sys.modules:
    _register(None)
else:
    from wrapt import register_post_import_hook

    register_post_import_hook(_register, "timm.models")
