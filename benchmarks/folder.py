"""Two strong views at 224 pixels of JPEG files of 512 x 384, one core: torchvision per view, ours.

    pip install simplejpeg
    python benchmarks/folder.py

Files are mosaics of CIFAR-10's photographs. Of ours, what workers do (decode once, cut two crops)
and what is left for the device are timed apart: on a GPU only the first is the CPU's.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from side_by_side import milliseconds, table
from views import MEAN, STD, moco_v2, photographs

from cgh_models.data import decode as reading
from cgh_models.data.batched_views import ViewRequest, crop, fast_views
from cgh_models.data.draws import COLUMNS, boxes, uniform
from cgh_models.view_recipes import STRONG

COUNT, SIDE = 32, 224


def write(folder: Path) -> list[Path]:
    """Mosaics of 16 x 12 photographs, quality 90."""
    tiles = photographs(2000).numpy()
    paths = [folder / f"{number}.jpg" for number in range(COUNT)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        chosen = tiles[rng.choice(len(tiles), (12, 16))]  # (12, 16, 32, 32, 3)
        Image.fromarray(chosen.transpose(0, 2, 1, 3, 4).reshape(384, 512, 3)).save(path, quality=90)
    return paths


if __name__ == "__main__":
    torch.set_num_threads(1)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    decoder = reading.simplejpeg
    with tempfile.TemporaryDirectory() as scratch:
        paths = write(Path(scratch))
        transform = moco_v2(SIDE)

        def usual():
            images = [Image.open(path).convert("RGB") for path in paths]
            return [torch.stack([transform(image) for image in images]) for _ in range(2)]

        def crops(extra):
            reading.simplejpeg = extra
            made = [[], []]
            for index, path in enumerate(paths):
                with reading.open_file(path) as file:
                    pixels = torch.from_numpy(np.array(reading.decode_rgb(file)))
                for number, view in enumerate(made):
                    u = uniform(0, 0, np.array([index]), COLUMNS, number)
                    box = boxes(STRONG, u, *pixels.shape[:2])[0]
                    view.append(crop(pixels, box, SIDE))
            return [torch.stack(view) for view in made]

        cut, u = crops(None), uniform(0, 0, np.arange(COUNT), COLUMNS)
        ways = {
            "torchvision on PIL images": usual,
            "ours, workers' part, Pillow": lambda: crops(None),
        }
        if decoder:
            ways["ours, workers' part, simplejpeg"] = lambda: crops(decoder)
        ways["ours, the device's part, on this core"] = lambda: fast_views(
            [ViewRequest(STRONG, x, u, SIDE) for x in cut], mean, std
        )
        table("two strong views of a file", milliseconds(ways, 5), COUNT, "ms an image")
