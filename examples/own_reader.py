"""A format that no library here reads: a function from a path to an array, and bands of any number.

python examples/own_reader.py

The same from the command line, in the folder of this file:
cgh pretrain --data scans/ --out run --reader own_reader:read --in-chans 2 --pixel-range 0,4095
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from cgh_models import extract, pretrain
from cgh_models.config import TrainConfig
from cgh_models.evaluate import spread
from cgh_models.methods import build_method, preprocessing

SHAPE = (48, 40, 2)  # rows, columns, bands


def read(path: Path) -> np.ndarray:
    """The values (H, W, bands) of a scan: four letters, then 16-bit numbers, the upper byte first.

    Whatever is raised here names the file, which counts as one that cannot be read.
    """
    content = path.read_bytes()
    if content[:4] != b"SCAN":
        raise ValueError("does not begin with SCAN")
    return np.frombuffer(content[4:], ">u2").reshape(SHAPE)


def write(folder: Path, count: int) -> None:
    """Waves of other directions, beside which one band has noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
        wave = np.sin(rows * rng.uniform(0, 0.5) + columns * rng.uniform(0, 0.5))
        values = np.stack([wave, rng.normal(wave, 0.2)], 2) * 800 + 2000
        content = b"SCAN" + values.clip(0, 4095).astype(">u2").tobytes()
        (folder / f"{number:03}.scan").write_bytes(content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        scans.mkdir()
        write(scans, 64)
        reading = {"reader": "own_reader:read", "in_chans": 2, "pixel_range": "0,4095"}
        bands = {"mean": (0.5, 0.5), "std": (0.14, 0.15)}  # `cgh check` measures them
        config = TrainConfig(image_size=32, epochs=2, batch_size=16, **reading, **bands)
        torch.manual_seed(config.seed)
        method = build_method("moco_v2", "resnet18_cifar_w16", preprocessing(config), None)
        pretrain(method, scans, config, Path(folder, "run"))
        network = method.student.backbone
        rows = extract(network, scans, reader="own_reader:read", pixel_range="0,4095")
        print("spread of the embeddings:", spread(rows))
