"""What embeddings are worth.

`extraction` makes embeddings and `cache` keeps them on disk. `neighbours` (kNN), `linear`, `probes`
and `finetune` evaluate them, with the settings in `protocols` and the labels in `splits`.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .collapse import spread
    from .devices import pick_device, pick_precision
    from .extraction import embeddings, extract
    from .measurement import knn_accuracy
    from .neighbours import knn

__all__ = ["embeddings", "extract", "knn", "knn_accuracy"]
__all__ += ["pick_device", "pick_precision", "spread"]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "embeddings": "extraction",
        "extract": "extraction",
        "knn": "neighbours",
        "knn_accuracy": "measurement",
        "pick_device": "devices",
        "pick_precision": "devices",
        "spread": "collapse",
    },
)
