"""View recipes: which views a method asks for, and how strongly each is augmented. No torch.

The views themselves are made in `data/`: `views` for one image, `batched_views` for a batch.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class View:
    """One view's augmentation; every ``_p`` is a probability in [0, 1]."""

    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop, as a share of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    flip: float = 0.5  # probability
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, in pixels
    solarize_p: float = 0.0
    size: float = 1.0  # side, as a share of the image size

    def side(self, image_size: int) -> int:
        """Side of the square view, in pixels."""
        return max(1, round(self.size * image_size))


# Source: MoCo v2's augmentation (arXiv 2003.04297) as the strong view; crop and flip as the weak
# one (ReSSL, CGH).
WEAK = View()
STRONG = View(jitter_p=0.8, grey_p=0.2, blur_p=0.5)
# Source: CGH's and ReSSL's released code, 192, 160, 128 and 96 pixels beside 224.
SMALL = (
    replace(STRONG, size=192 / 224, scale=(0.172, 0.86)),
    replace(STRONG, size=160 / 224, scale=(0.143, 0.715)),
    replace(STRONG, size=128 / 224, scale=(0.114, 0.571)),
    replace(STRONG, size=96 / 224, scale=(0.086, 0.429)),
)
# Source: BYOL (arXiv 2006.07733) appendix B, with crops of 0.2 to 1 in LEWEL's code; without blur
# as solo-learn has it on CIFAR.
FIRST = View(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=1.0)
SECOND = replace(FIRST, blur_p=0.1, solarize_p=0.2)
WIDE = (0.08, 1.0)  # BYOL's crops, and those of MoCo's CIFAR demo
RECIPES = {
    "weak_strong": (WEAK, STRONG),
    "multi_crop": (WEAK, STRONG, *SMALL),
    "two_strong": (STRONG, STRONG),
    "three_strong": (STRONG, STRONG, STRONG),
    "asymmetric": (FIRST, SECOND),
    "byol": (replace(FIRST, scale=WIDE), replace(SECOND, scale=WIDE)),
    "two_wide": (replace(STRONG, scale=WIDE), replace(STRONG, scale=WIDE)),
}
for _name in ("asymmetric", "byol", "two_strong", "two_wide"):
    RECIPES[f"{_name}_sharp"] = tuple(replace(view, blur_p=0.0) for view in RECIPES[_name])
