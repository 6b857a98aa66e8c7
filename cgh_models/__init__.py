"""Self-supervised pretraining for timm backbones, and weights that timm knows after ``import cgh_models``.

The import is light (no torch, no timm): architectures and weights are registered when timm is imported, at once if it
already is, and the names below are loaded on first use.
"""

import sys

TYPE_CHECKING = False  # typing's own would cost an import at every start of an interpreter with `cgh autoload on`
if TYPE_CHECKING:
    from .evaluate import extract
    from .integrity import verify
    from .registry import create_model, list_models, list_pretrained, load_method, weights_info
    from .train import pretrain

__version__ = "0.1.0"

__all__ = [
    "__version__", "create_model", "extract", "list_models", "list_pretrained", "load_method", "pretrain", "verify",
    "weights_info",
]  # fmt: skip

_HOMES = {
    "create_model": "registry", "extract": "evaluate", "list_models": "registry", "list_pretrained": "registry",
    "load_method": "registry", "pretrain": "train", "verify": "integrity", "weights_info": "registry",
}  # fmt: skip


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'cgh_models' has no attribute {name!r}; it offers {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"cgh_models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register() -> None:
    """Never raises: `import timm` must not fail because of us."""
    try:
        from . import architectures, tags  # noqa: F401 - importing the first registers its architectures

        if hasattr(tags, "register"):  # else it is being imported itself, and calls back at its end
            tags.register()
    except Exception as error:
        import warnings

        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        warnings.warn(
            f"cgh_models: timm does not know its weights ({text}); cgh_models.create_model may load them all the same",
            stacklevel=2,
        )


class _WhenTimmIsImported:
    """A finder that finds nothing itself: it has `_register` called once `timm.models` has been executed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "timm.models":
            return None
        others = [finder for finder in sys.meta_path if finder is not cls and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                if cls in sys.meta_path:
                    sys.meta_path.remove(cls)
                    _register()

            spec.loader.exec_module = execute_and_register
        return spec


if "timm.models" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenTimmIsImported)
