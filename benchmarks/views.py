"""Two strong views of 32-pixel images, one core: torchvision per image, kornia and ours in batches.

pip install kornia
python benchmarks/views.py
"""

import importlib.util
import itertools
import zipfile
from importlib import resources

import numpy as np
import torch
from PIL import Image, ImageFilter
from side_by_side import milliseconds, table
from torch import Tensor
from torchvision import transforms as T

from cgh_models.data.batched_views import ViewRequest, fast_views
from cgh_models.data.draws import COLUMNS, boxes, uniform
from cgh_models.data.views import exact_view
from cgh_models.view_recipes import STRONG

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
COUNT = 256


def photographs(count: int) -> Tensor:
    """Of CIFAR-10, from the package: uint8 (N, 32, 32, 3)."""
    home = resources.files("cgh_models") / "sample" / "cifar10.zip"
    with resources.as_file(home) as path, zipfile.ZipFile(path) as sample:
        names = sorted(name for name in sample.namelist() if name.endswith(".jpg"))
        names = names[:: len(names) // count][:count]  # of all classes
        return torch.from_numpy(
            np.stack([np.array(Image.open(sample.open(n)).convert("RGB")) for n in names])
        )


def moco_v2(side: int) -> T.Compose:
    """MoCo v2's transform of PIL images."""

    def blur(image):
        return image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2.0)))

    return T.Compose(
        [
            T.RandomResizedCrop(side, (0.2, 1.0)),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([blur], 0.5),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def with_torchvision(pixels: Tensor):
    """The usual way."""
    transform = moco_v2(32)
    images = [Image.fromarray(picture.numpy()) for picture in pixels]
    return lambda: [torch.stack([transform(image) for image in images]) for _ in range(2)]


def with_kornia(pixels: Tensor):
    """The same recipe from kornia's containers."""
    import kornia.augmentation as K

    transform = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((9, 9), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(),
        K.Normalize(MEAN, STD),
    )
    return lambda: [transform(pixels.permute(0, 3, 1, 2).float() / 255) for _ in range(2)]


def numbers(epoch: int) -> np.ndarray:
    """What the views of an epoch are drawn by."""
    return uniform(0, epoch, np.arange(COUNT), COLUMNS)


def with_ours(pixels: Tensor):
    """Both views of all images in one call, as a training on a CPU makes them."""
    epochs, mean, std = itertools.count(), torch.tensor(MEAN), torch.tensor(STD)

    def fast():
        asked = []
        for _ in range(2):
            u = numbers(next(epochs))
            asked.append(ViewRequest(STRONG, pixels, u, 32, boxes(STRONG, u, 32, 32)))
        fast_views(asked, mean, std)

    return fast


def with_ours_exact(pixels: Tensor):
    """Pillow's operations, image by image."""
    epochs, mean = itertools.count(), torch.tensor(MEAN)
    images = [Image.fromarray(picture.numpy()) for picture in pixels]

    def exact():
        for _ in range(2):
            u = numbers(next(epochs))
            made = [
                np.array(exact_view(STRONG, image, u[i : i + 1], 32))
                for i, image in enumerate(images)
            ]
            (torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255).sub_(
                mean[:, None, None]
            )

    return exact


if __name__ == "__main__":
    torch.set_num_threads(1)
    pixels = photographs(COUNT)
    ways = {"torchvision on PIL images": with_torchvision(pixels)}
    if importlib.util.find_spec("kornia"):
        ways["kornia"] = with_kornia(pixels)
    ways |= {"ours, exact": with_ours_exact(pixels), "ours, fast": with_ours(pixels)}
    taken = milliseconds(ways, 9)
    table("two strong views of an image", taken, COUNT, "ms an image")
    print(f"\nfast over kornia: {taken.get('kornia', float('nan')) / taken['ours, fast']:.2f}")
