"""From files to batches of views.

`image_set` is the index of a folder (`listing`), list (`path_list`) or archive (`archives`);
`decode` reads one image; `views` draws and makes one view, `batched_views` those of a batch;
`loader` and `eval_loader` give batches.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .image_set import ImageSet, load, load_splits

__all__ = ["ImageSet", "load", "load_splits"]
__getattr__, __dir__ = public_names(__name__, dict.fromkeys(__all__, "image_set"))
