"""From files to batches of views.

`image_set` is the index of images, `sources` knows what holds them: a folder (`walk`), a list
(`path_list`), `archives`, `parquet`, `hf_datasets` or `python_images`, here or in the `file_cache`;
`reading` makes pixels of a file, RGB by `decode`, other channels by `bands`; `draws` decides what
is random, `views` makes one view, `batched_views` those of a batch; `loader` and `eval_loader` give
batches. An index of files and what decodes them import neither torch nor timm, which take seconds.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .image_set import ImageSet, load, load_splits

__all__ = ["ImageSet", "load", "load_splits"]
__getattr__, __dir__ = public_names(__name__, dict.fromkeys(__all__, "image_set"))
