"""From files to batches of views.

`image_set` is the frozen index of a folder, list or archive; `decode` reads one image; `views` makes one view of one
image exactly as torchvision does, `batched_views` makes those of a batch on the device; `loader` puts them into an
order that any worker can resume.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .image_set import ImageSet, load, load_splits

__all__ = ["ImageSet", "load", "load_splits"]
__getattr__, __dir__ = public_names(
    __name__, {"ImageSet": "image_set", "load": "image_set", "load_splits": "image_set"}
)
