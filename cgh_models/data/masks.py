"""Images whose pixels have classes, in files of their own: the masks."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import BadImage, InputError, printable
from .decode import orientation
from .image_set import ImageSet, load
from .listing import find_split

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
IGNORED = 255  # of pixels that have no class
_LAYOUT = "expected train/ and val/ with images/NAME.jpg (or another format) and masks/NAME.png"


class MaskedImages(NamedTuple):
    """Images and the files of their masks."""

    images: ImageSet
    masks: list[Path]

    def mask(self, index: int, width: int, height: int) -> np.ndarray:
        """Class ids (H, W) of an image of this size, 0 to 254 or `IGNORED`. Raises InputError."""
        self._check_not_turned(index)
        path = self.masks[index]
        try:
            with Image.open(path) as file:
                bands = file.getbands()
                ids = np.array(file)
        except _UNREADABLE as error:
            raise InputError(f"{printable(path)}: no mask ({error}); mend or remove it") from error
        if len(bands) > 1 or not (ids.dtype.kind in "bui" and 0 <= ids.min() <= ids.max() <= 255):
            given = f"bands {''.join(bands)}, {ids.dtype} from {ids.min()} to {ids.max()}"
            expected = f"expected one band of class ids 0 to 254, {IGNORED} where there is none"
            raise InputError(f"{printable(path)}: {given}; {expected}")
        if ids.shape != (height, width):
            sizes = f"{ids.shape[1]} x {ids.shape[0]}, its image {width} x {height}"
            raise InputError(f"{printable(path)}: the mask is {sizes}; give a mask of that size")
        return ids.astype(np.uint8)

    def _check_not_turned(self, index: int) -> None:
        """Whether a mask lies as the file or as the turned image does, nothing says."""
        turned = 1
        with contextlib.suppress(BadImage), self.images.open(index) as file:
            turned = orientation(file)
        if turned in range(2, 9):
            what = f"is turned by its EXIF orientation {turned}, its mask may not be"
            hint = "save the image turned (PIL: ImageOps.exif_transpose), with a mask that fits it"
            raise InputError(f"{printable(self.images.path(index))}: {what}; {hint}")


def load_masked(root: str, split: str, follow_links: bool = False, **how: Any) -> MaskedImages:
    """The images of ``root``/train/images, or of val, read ``how`` `load` does, with their masks.

    Raises InputError.
    """
    folder = find_split(Path(root), split)
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise InputError(f"{printable(folder)}: has no {part}/ folder; {_LAYOUT}")
    images = load(folder / "images", follow_links, **how)
    images.report_skipped()
    masks = [(folder / "masks" / name).with_suffix(".png") for name in images.names]
    for name, mask in zip(images.names, masks, strict=True):
        if not mask.is_file():
            what = f"{printable(folder / 'images' / name)}: has no mask"
            raise InputError(f"{what}; expected {printable(mask)}: add it, or remove the image")
    return MaskedImages(images, masks)
