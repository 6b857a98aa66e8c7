"""Weights: named, fetched, verified, exported, published.

`manifest` holds a `row` for each; `fetch` brings a row's files here and checks their sha256;
`registry` and `tags` make networks of them, for us and for timm; `export` and `convert` write
weights folders, `card` their README; `integrity` verifies weights; `publish` uploads them.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .integrity import verify
    from .registry import create_model, list_models, list_pretrained, load_method, weights_info

__all__ = ["create_model", "list_models", "list_pretrained", "load_method", "weights_info"]
_HOMES = dict.fromkeys(__all__, "registry") | {"verify": "integrity"}
__getattr__, __dir__ = public_names(__name__, _HOMES)
__all__ += ["verify"]
