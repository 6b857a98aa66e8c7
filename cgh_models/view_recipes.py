"""View recipes: which views a method asks for, and how strongly each is augmented. No torch.

The views themselves are made in `data/` (`views` for one image, `batched_views` for a batch).
"""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """One view's augmentation. Probabilities in [0, 1]; jitter is (brightness, contrast, saturation, hue)."""

    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, in pixels
    solarize_p: float = 0.0
    size: float = 1.0  # side, as a share of the image size

    def side(self, image_size: int) -> int:
        """Of the square view, in pixels."""
        return max(1, round(self.size * image_size))


# Source: MoCo v2's augmentation (arXiv 2003.04297) as the strong view, crop and flip as the weak one (ReSSL, CGH).
WEAK = View()
STRONG = View(jitter_p=0.8, grey_p=0.2, blur_p=0.5)
# Source: CGH's and ReSSL's released code, 192, 160, 128 and 96 pixels beside 224.
SMALL = tuple(
    dataclasses.replace(STRONG, size=size / 224, scale=scale)
    for size, scale in ((192, (0.172, 0.86)), (160, (0.143, 0.715)), (128, (0.114, 0.571)), (96, (0.086, 0.429)))
)
# Source: BYOL (arXiv 2006.07733) appendix B, the crops of LEWEL's code; without blur as solo-learn has it on CIFAR.
FIRST = View(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=1.0)
SECOND = dataclasses.replace(FIRST, blur_p=0.1, solarize_p=0.2)
RECIPES = {
    "weak_strong": (WEAK, STRONG),
    "multi_crop": (WEAK, STRONG, *SMALL),
    "two_strong": (STRONG, STRONG),
    "three_strong": (STRONG, STRONG, STRONG),
    "asymmetric": (FIRST, SECOND),
    "asymmetric_sharp": (dataclasses.replace(FIRST, blur_p=0.0), dataclasses.replace(SECOND, blur_p=0.0)),
}
