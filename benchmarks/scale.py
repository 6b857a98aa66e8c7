"""A million files: how soon they are indexed, what an index takes in each process, the first batch.

    pip install --no-deps lightly lightly-utils  # is left out without them
    python benchmarks/scale.py FOLDER  # makes a million JPEG files of 0.8 KB there, 4 GB of blocks
    python benchmarks/scale.py FOLDER 10000000 --links  # names of 200 files, ours alone

Each number is of a process of its own; ways take turns, the first turn brings the folders into the
system's memory and does not count. Seconds are of the clock, and of this process's CPU in brackets.
Peaks are above what the process held before, all libraries imported.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

A_FOLDER, LINKS_A_FILE, BATCH = 1000, 50_000, 256


def make(root: Path, count: int, links: bool) -> None:
    """``count`` files in class folders of a thousand: 64 contents, or names of few files."""
    if root.exists():
        return
    rng = np.random.default_rng(0)
    contents = []
    for number in range(64):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (16 + number % 8, 16, 3), np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=50)
        contents.append(file.getvalue())
    original = root
    for number in range(count):
        path = root / f"class{number // A_FOLDER:05d}" / f"image_{number:08d}.jpg"
        if number % A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        if links and number % LINKS_A_FILE:
            os.link(original, path)
        else:
            path.write_bytes(contents[number % 64])
            original = path
    settled = time.time() - 60  # an index is not kept of folders that were changed just now
    for folder in (root, *root.iterdir()):
        os.utime(folder, (settled, settled))


def torchvision_folder(root: Path) -> tuple[Any, Callable[[int], object]]:
    """The dataset, and what looks up the path of an image."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(root))
    return images, images.samples.__getitem__


def lightly_folder(root: Path) -> tuple[Any, Callable[[int], object]]:
    """The same of lightly."""
    from lightly.data import LightlyDataset

    images: Any = LightlyDataset(str(root))
    return images, images.dataset.samples.__getitem__


def ours(root: Path) -> tuple[Any, Callable[[int], object]]:
    """The same of ours, as a new run does it."""
    from cgh_models.data.image_set import load

    images = load(root)
    return images, images.path


def ours_resumed(root: Path) -> tuple[Any, Callable[[int], object]]:
    """The same with the index that a run keeps."""
    from cgh_models.data.image_set import load

    images = load(root, kept=root.with_suffix(".index"))
    assert images.walked and images.walked.digest, "the kept index was not taken"
    return images, images.path


WAYS = {
    "torchvision ImageFolder": torchvision_folder,
    "lightly LightlyDataset": lightly_folder,
    "ours": ours,
    "ours, resumed": ours_resumed,
}


def first_batch(way: str, images: Any) -> None:
    """Two views of 256 images in a random order, read by two workers."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    if way.startswith("ours"):
        from cgh_models.config import TrainConfig
        from cgh_models.data.loader import batches
        from cgh_models.view_recipes import RECIPES

        config = TrainConfig(image_size=32, batch_size=BATCH, workers=2)
        with contextlib.closing(
            batches(images, RECIPES["weak_strong"], config, 0, 9, torch.device("cpu"))
        ) as read:
            next(read)
        return
    crop = transforms.Compose([transforms.RandomResizedCrop(32), transforms.ToTensor()])
    images.transform = lambda image: (crop(image), crop(image))
    next(iter(DataLoader(images, BATCH, shuffle=True, num_workers=2)))


def mib(file: str, key: str) -> float:
    """A number of KiB that Linux says of this process, in MiB."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def worker_mib(count: int, look_up: Callable[[int], object]) -> float:
    """MiB that a forked process has for itself after it looked up each image once."""
    ours, theirs = os.pipe()
    if not os.fork():
        order = random.Random(0)
        before = mib("smaps_rollup", "Private_Dirty")
        for _ in range(count):
            look_up(order.randrange(count))
        os.write(theirs, f"{mib('smaps_rollup', 'Private_Dirty') - before}".encode())
        os._exit(0)
    os.wait()
    return float(os.read(ours, 100))


def measure(root: Path, way: str, what: str) -> dict[str, float]:
    """What one process says of one way."""
    import torchvision  # noqa: F401 - not a part of any time

    import cgh_models.data.loader  # noqa: F401

    if "lightly" in way:
        import lightly.data  # noqa: F401
    gc.collect()
    held = mib("status", "VmHWM")
    clock, cpu = time.perf_counter(), time.process_time()
    images, look_up = WAYS[way](root)
    said = {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - clock}
    if what == "batch":
        first_batch(way, images)
        return {"seconds": time.perf_counter() - clock}
    said["peak"] = mib("status", "VmHWM") - held
    said["worker"] = worker_mib(len(images), look_up)
    if way == "ours":
        from cgh_models.data.kept_index import keep

        keep(root.with_suffix(".index"), images)
    return said


def orders() -> None:
    """Prints what the order of an epoch costs."""
    from cgh_models.data.loader import order

    print("\n| images | first batch of an epoch, s | each further one, ms | peak, MiB |")
    print("|---|---|---|---|")
    for count in (1_281_167, 10_000_000, 100_000_000):
        start = time.perf_counter()
        found = order(0, 0, count)
        found[:BATCH]
        first = time.perf_counter() - start
        start = time.perf_counter()
        for step in range(1, 101):
            found[BATCH * step : BATCH * (step + 1)]
        further = 10 * (time.perf_counter() - start)
        tracemalloc.start()
        order(0, 0, count)[:BATCH]
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        print(f"| {count:,} | {first:.3g} | {further:.2g} | {peak:.3g} |")


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2)
    given = parser.parse_args()
    root = given.folder / f"files{given.count}"
    if given.measure:
        print(json.dumps(measure(root, *given.measure)))
        return
    make(root, given.count, given.links)
    ways = [way for way in WAYS if way.startswith("ours") or not given.links]
    try:
        import lightly  # noqa: F401
    except ImportError:
        ways = [way for way in ways if "lightly" not in way]

    def median(what: str) -> dict[str, dict[str, float]]:
        said: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for turn in range(given.rounds + 1):
            for way in ways:
                command = [sys.executable, __file__, str(given.folder), str(given.count)]
                out = subprocess.check_output([*command, "--measure", way, what], text=True)
                if turn:
                    said[way].append(json.loads(out.splitlines()[-1]))
        return {
            way: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for way, rows in said.items()
        }

    print(f"\n| index of {given.count:,} files | s | files/s | peak, MiB | a worker, MiB |")
    print("|---|---|---|---|---|")
    for way, row in median("index").items():
        speed = f"{row['seconds']:.3g} ({row['cpu']:.3g}) | {given.count / row['seconds']:,.0f}"
        print(f"| {way} | {speed} | {row['peak']:.3g} | {row['worker']:.2g} |")
    print(f"\n| from the start to the first batch of {BATCH} | s |\n|---|---|")
    for way, row in median("batch").items():
        print(f"| {way} | {row['seconds']:.3g} |")
    if not given.links:
        orders()


if __name__ == "__main__":
    main()
