"""What embeddings are worth.

`extraction` makes embeddings and `cache` keeps them on disk. `neighbours` (kNN), `linear`, `probes`
and `finetune` evaluate them; `protocols` has their settings, `splits` the labels they use, and
`measurement` measures again. `collapse` tells whether all embeddings have become alike.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .collapse import spread
    from .devices import pick_device, pick_precision
    from .extraction import embeddings, extract
    from .measurement import knn_accuracy
    from .neighbours import knn

_HOMES = {
    "embeddings": "extraction",
    "extract": "extraction",
    "knn": "neighbours",
    "knn_accuracy": "measurement",
    "pick_device": "devices",
    "pick_precision": "devices",
    "spread": "collapse",
}
__all__ = [
    "embeddings",
    "extract",
    "knn",
    "knn_accuracy",
    "pick_device",
    "pick_precision",
    "spread",
]
__getattr__, __dir__ = public_names(__name__, _HOMES)
