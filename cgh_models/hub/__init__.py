"""Weights: named, fetched, verified, exported, published.

`manifest` holds the rows that describe them; `fetch` brings a row's files here and checks their sha256; `registry` and
`tags` make networks of them, for us and for timm; `export` and `convert` write weights folders, `card` their README;
`integrity` checks weights all the way; `publish` uploads them.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .integrity import verify
    from .registry import create_model, list_models, list_pretrained, load_method, weights_info

__all__ = ["create_model", "list_models", "list_pretrained", "load_method", "verify", "weights_info"]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "create_model": "registry",
        "list_models": "registry",
        "list_pretrained": "registry",
        "load_method": "registry",
        "verify": "integrity",
        "weights_info": "registry",
    },
)
