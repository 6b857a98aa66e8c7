"""A made set of images with masks: photographs of CIFAR-10, pasted on noise, of known class."""

import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96
ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}  # class 1; vehicles are 2, noise is 0


def make_masked_images(root: Path, train: int = 80, val: int = 30) -> Path:
    """ROOT/{train,val}/images/NAME.png and masks/NAME.png, from the packaged photographs.

    Between a photograph and the noise there is a line of pixels without a class, 255.
    """
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        file = zipfile.ZipFile(sample)
        for split, count in (("train", train), ("val", val)):
            rng = np.random.default_rng(count)
            names = [name for name in file.namelist() if name.startswith(f"{split}/")]
            names = sorted(name for name in names if name.endswith(".jpg"))
            for part in ("images", "masks"):
                (root / split / part).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(rng.uniform(60, 190, 3), 40, (SIDE, SIDE, 3))
                pixels = pixels.clip(0, 255).astype(np.uint8)
                ids = np.zeros((SIDE, SIDE), np.uint8)
                for name in rng.choice(names, 3):
                    side = int(rng.integers(32, 49))
                    top, left = rng.integers(0, SIDE - side, 2)
                    with file.open(name) as opened:
                        photograph = Image.open(opened).resize((side, side))
                    pixels[top : top + side, left : left + side] = np.asarray(photograph)
                    ids[top : top + side, left : left + side] = 255
                    inside = 1 if name.split("/")[1] in ANIMALS else 2
                    ids[top + 1 : top + side - 1, left + 1 : left + side - 1] = inside
                Image.fromarray(pixels).save(root / split / "images" / f"{number:03d}.png")
                Image.fromarray(ids).save(root / split / "masks" / f"{number:03d}.png")
    return root
