"""Self-supervised pretraining for timm backbones, and weights that timm knows.

The import is light (no torch, no timm): the names below are loaded on first use, and architectures
and weights are registered when timm is imported, or at once if it already is.
"""

import sys

from .public_names import public_names
from .version import __version__

TYPE_CHECKING = False  # importing typing would slow every interpreter with `cgh autoload on`
if TYPE_CHECKING:
    from .evaluate.extraction import extract
    from .hub.integrity import verify
    from .hub.registry import create_model, list_models, list_pretrained, load_method, weights_info
    from .train.loop import pretrain

__all__ = [
    "__version__",
    "create_model",
    "extract",
    "list_models",
    "list_pretrained",
    "load_method",
    "pretrain",
    "verify",
    "weights_info",
]

_HOMES = {"extract": "evaluate.extraction", "pretrain": "train.loop", "verify": "hub.integrity"}
__getattr__, __dir__ = public_names(__name__, dict.fromkeys(__all__, "hub.registry") | _HOMES)


def _register() -> None:
    """Tells timm our architectures and weights; errors are warnings: `import timm` must work."""
    try:
        from . import small_resnets  # noqa: F401 - importing it registers its architectures
        from .hub import tags

        tags.register()
    except Exception as error:
        import warnings

        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        what = f"cgh_models: timm does not know its weights ({reason})"
        warnings.warn(f"{what}; cgh_models.create_model may load them all the same", stacklevel=2)


class _RegisterAfterImport:
    """Import hook that calls `_register` once timm is imported and none of our modules halfway.

    One of our own modules may be what imports timm; it is not ready yet when timm is.
    """

    depth = 0  # how many of the modules it looks after are being executed

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "timm.models" and not name.startswith("cgh_models."):
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                cls.depth += 1
                try:
                    execute(module)
                finally:
                    cls.depth -= 1
                if cls.depth == 0 and cls in sys.meta_path and "timm.models" in sys.modules:
                    sys.meta_path.remove(cls)
                    _register()

            spec.loader.exec_module = execute_and_register
        return spec


if "timm.models" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterImport)
