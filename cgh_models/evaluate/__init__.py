"""What embeddings are worth.

`extraction` opens images and embeds them by an `embedder`; `cache` keeps embeddings on disk.
`neighbours` (kNN), `linear`, `probes` and `finetune` evaluate them, with the settings in
`protocols` and the labels in `splits`.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .collapse import spread
    from .devices import pick_device, pick_precision
    from .embedder import embeddings
    from .extraction import extract
    from .measurement import knn_accuracy
    from .neighbours import knn

__all__ = ["embeddings", "extract", "knn", "knn_accuracy"]
__all__ += ["pick_device", "pick_precision", "spread"]
_HOMES = {"embeddings": "embedder", "extract": "extraction", "knn": "neighbours"}
_HOMES |= {"knn_accuracy": "measurement", "pick_device": "devices", "pick_precision": "devices"}
__getattr__, __dir__ = public_names(__name__, _HOMES | {"spread": "collapse"})
