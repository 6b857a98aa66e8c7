"""Self-supervised pretraining for timm backbones, and weights that timm knows after ``import cgh_models``.

The import is light (no torch, no timm): architectures and weights are registered when timm is imported, at once if it
already is, and the names below are loaded on first use.
"""

import sys

from .public_names import public_names
from .version import __version__

TYPE_CHECKING = False  # typing's own would cost an import at every start of an interpreter with `cgh autoload on`
if TYPE_CHECKING:
    from .evaluate.extraction import extract
    from .hub.integrity import verify
    from .hub.registry import create_model, list_models, list_pretrained, load_method, weights_info
    from .train.loop import pretrain

__all__ = [
    "__version__", "create_model", "extract", "list_models", "list_pretrained", "load_method", "pretrain", "verify",
    "weights_info",
]  # fmt: skip

__getattr__, __dir__ = public_names(
    __name__,
    {
        "create_model": "hub.registry",
        "extract": "evaluate.extraction",
        "list_models": "hub.registry",
        "list_pretrained": "hub.registry",
        "load_method": "hub.registry",
        "pretrain": "train.loop",
        "verify": "hub.integrity",
        "weights_info": "hub.registry",
    },
)

# After each of these is executed, what it lacked for the others is there: registering is tried again.
_OCCASIONS = {"timm.models", "cgh_models.small_resnets", "cgh_models.hub.tags"}


def _register() -> None:
    """Makes timm know our architectures and weights. Never raises: `import timm` must not fail because of us."""
    try:
        from . import small_resnets  # noqa: F401 - importing it registers its architectures
        from .hub import tags

        if hasattr(tags, "register"):  # else it is being imported right now
            tags.register()
    except Exception as error:
        import warnings

        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        warnings.warn(
            f"cgh_models: timm does not know its weights ({text}); cgh_models.create_model may load them all the same",
            stacklevel=2,
        )


class _RegisterAfterImport:
    """A finder that finds nothing itself: it has `_register` called after each of `_OCCASIONS` has been executed."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in _OCCASIONS:
            return None
        others = [finder for finder in sys.meta_path if finder is not cls and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                if "timm.models" in sys.modules:
                    _register()

            spec.loader.exec_module = execute_and_register
        return spec


sys.meta_path.insert(0, _RegisterAfterImport)
if "timm.models" in sys.modules:
    _register()
