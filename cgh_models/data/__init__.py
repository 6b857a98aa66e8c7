"""From files to batches of views.

`image_set` is the frozen index of a folder, list or archive; `decode` reads one image; `views`
makes one view of one image exactly as torchvision does, `batched_views` those of a batch on the
device; `loader` gives batches of views in a resumable order, `eval_loader` of plain images; their
`workers` read the files.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .image_set import ImageSet, load, load_splits

__all__ = ["ImageSet", "load", "load_splits"]
__getattr__, __dir__ = public_names(__name__, dict.fromkeys(__all__, "image_set"))
