"""What embeddings are worth.

`extraction` makes them, `cache` keeps them; `neighbours` (kNN), `linear`, `probes` and `finetune` are the protocols,
`protocols` their settings, `splits` the labels they use; `collapse` tells whether embeddings have become all alike.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .collapse import spread
    from .extraction import embeddings, extract, pick_device, pick_precision
    from .neighbours import knn, knn_accuracy

__all__ = ["embeddings", "extract", "knn", "knn_accuracy", "pick_device", "pick_precision", "spread"]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "embeddings": "extraction",
        "extract": "extraction",
        "knn": "neighbours",
        "knn_accuracy": "neighbours",
        "pick_device": "extraction",
        "pick_precision": "extraction",
        "spread": "collapse",
    },
)
