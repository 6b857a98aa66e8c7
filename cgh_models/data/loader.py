"""Batches of views in a resumable order, and of plain images for evaluation.

The order is a function of (seed, epoch), views of (seed, epoch, image index): batch `step` of a run can be made by any
worker, at any time, again.
"""

import contextlib
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, get_worker_info

from ..errors import InputError, out_of_memory, printable
from ..view_recipes import View
from .batched_views import crop, fast_views
from .decode import BadImage
from .image_set import ImageSet
from .views import COLUMNS, boxes, exact_view, uniform

_ORDER_STREAM, _VIEW_STREAM = 1000, 0  # keep the random numbers of different uses apart; view i adds i
_WHOLE_ON_CPU = 128  # pixels a side: the matrices that crop larger ones cost more than crops that workers cut


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of ``count`` images in an epoch."""
    return uniform(seed, epoch, np.arange(count), 1, _ORDER_STREAM)[:, 0].argsort(kind="stable")


class _Steps:
    """Batch sampler: the (epoch, index) pairs of each step from ``start`` to ``stop``."""

    def __init__(self, count: int, batch_size: int, seed: int, start: int, stop: int):
        self.count, self.batch_size, self.seed, self.start, self.stop = count, batch_size, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.count // self.batch_size
        current, permutation = -1, np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, per_epoch)
            if epoch != current:
                current, permutation = epoch, order(self.seed, epoch, self.count)
            indices = permutation[place * self.batch_size : (place + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in indices]


class _Decoded:
    """(epoch, index) -> its index, something uint8 per view, and the bad images met on the way.

    Which is the whole view (S, S, 3) in the exact mode, its crop (3, S, S) in the fast one.
    """

    def __init__(self, images: ImageSet, recipe: tuple[View, ...], config):
        self.images, self.recipe = images, recipe
        self.size, self.seed, self.exact = config.image_size, config.seed, config.views == "exact"
        # A crop is never smaller than its view because a large photo was decoded smaller.
        least = (view.side(self.size) * (view.ratio[1] / view.scale[0]) ** 0.5 for view in recipe)
        self.least = 0 if self.exact else max(least)
        self.places = _places()

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, list[Tensor], list[tuple[int, str]]]:
        epoch, index = key
        self.places.note(self.images.root / self.images.names[index])
        image, met = self.images.usable(index, self.least)
        made, pixels = [], None if self.exact else torch.from_numpy(np.array(image))
        for number, view in enumerate(self.recipe):
            u = uniform(self.seed, epoch, np.array([index]), COLUMNS, _VIEW_STREAM + number)
            side = view.side(self.size)
            if pixels is None:
                made.append(torch.from_numpy(np.array(exact_view(view, image, u, side))))
            else:
                made.append(crop(pixels, boxes(view, u, image.height, image.width)[0], side))
        return index, made, met


def batches(
    images: ImageSet, recipe: tuple[View, ...], config, start: int, stop: int, device: torch.device
) -> Iterator[tuple[list[Tensor], np.ndarray]]:
    """For each step from ``start`` to ``stop``: the views [(N, 3, S, S)] on the device, and the image indices (N,).

    In the fast mode equally large small images in memory are moved to the device and never leave it.

    Args:
        config: a TrainConfig; its seed, batch_size, image_size, mean, std, views and workers are used.

    Raises:
        InputError: too many bad images, a reader that was killed, or no memory on the device.
    """
    try:
        yield from _batches(images, recipe, config, start, stop, device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(
            f"the views of {config.batch_size} images do not fit in the memory of {device}; give a smaller "
            f"--batch-size, or --memory-gib 0, which keeps no images there"
        ) from None


def _batches(images: ImageSet, recipe, config, start: int, stop: int, device: torch.device) -> Iterator:
    mean, std = (torch.tensor(values, device=device) for values in (config.mean, config.std))
    steps = _Steps(len(images), config.batch_size, config.seed, start, stop)
    exact, resident = config.views == "exact", _resident(images, config, device)
    if resident is None:
        made = _from_workers(images, recipe, config, steps, device)
    else:
        made = _from_memory(resident, len(recipe), steps)
    for epoch, indices, parts in made:
        if exact:
            yield [_normalized(part, mean, std) for part in parts], indices
            continue
        views = []
        for number, (view, part) in enumerate(zip(recipe, parts, strict=True)):
            u = uniform(config.seed, epoch, indices, COLUMNS, _VIEW_STREAM + number)
            box = None if resident is None else boxes(view, u, *part.shape[1:3])
            views.append(fast_views(view, part, u, view.side(config.image_size), mean, std, box))
        yield views, indices


def _resident(images: ImageSet, config, device: torch.device) -> Tensor | None:
    """Decoded images on the device, if views are best made of whole ones there: of larger ones workers cut crops."""
    pixels = images.pixels
    if config.views == "exact" or not isinstance(pixels, Tensor):
        return None
    most = 2 * config.image_size
    if device.type == "cpu":
        most = min(most, _WHOLE_ON_CPU)
    return pixels.to(device) if max(pixels.shape[1:3]) <= most else None


def _normalized(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (N, S, S, 3) -> float32 (N, 3, S, S)."""
    return (views.permute(0, 3, 1, 2).float() / 255).sub_(mean[:, None, None]).div_(std[:, None, None])


def _from_memory(pixels: Tensor, views: int, steps: _Steps) -> Iterator[tuple[int, np.ndarray, list[Tensor]]]:
    """Epoch, image indices and, once for every view, the whole images of each step."""
    for keys in steps:
        indices = np.array([index for _, index in keys])
        yield keys[0][0], indices, [pixels[torch.from_numpy(indices).to(pixels.device, non_blocking=True)]] * views


def _from_workers(images: ImageSet, recipe, config, steps: _Steps, device) -> Iterator:
    loader = DataLoader(
        _Decoded(images, recipe, config),  # pyright: ignore[reportArgumentType]
        batch_sampler=steps,  # pyright: ignore[reportArgumentType]
        num_workers=_workers(config.workers),
        collate_fn=_stack,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator(),  # a private one: the run's own random state does not move
        pin_memory=device.type == "cuda",
    )
    per_epoch = steps.count // steps.batch_size
    with naming_dead_readers():
        for step, (indices, parts, met) in enumerate(loader, steps.start):
            images.note_bad(met)
            yield step // per_epoch, indices, [part.to(device, non_blocking=True) for part in parts]


def _workers(wanted: int) -> int:
    """No more workers than processors this process may use; how many there are changes no result."""
    return min(wanted, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _stack(items: list) -> tuple[np.ndarray, list[Tensor], list[tuple[int, str]]]:
    crops = [torch.stack(parts) for parts in zip(*[crops for _, crops, _ in items], strict=True)]
    return np.array([index for index, _, _ in items]), crops, [bad for _, _, met in items for bad in met]


def _quiet_worker(_worker: int) -> None:
    """Workers leave signals to the trainer, which saves and then ends them."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


def eval_transform(backbone: nn.Module) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform for this backbone: RGB image -> normalized (3, S, S)."""
    return create_transform(**resolve_model_data_config(backbone), is_training=False)  # pyright: ignore


class _Transformed:
    """place -> (transformed image, bad images met); without ``replace`` a bad image gives (None, the reason)."""

    def __init__(self, images: ImageSet, indices: np.ndarray, transform, replace: bool):
        self.images, self.indices, self.transform, self.replace = images, indices, transform, replace
        self.places = _places()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor | None, list[tuple[int, str]]]:
        index = int(self.indices[place])
        self.places.note(self.images.root / self.images.names[index])
        try:
            image, met = self.images.usable(index) if self.replace else (self.images.image(index), [])
            return self.transform(image), met
        except BadImage as reason:
            return None, [(index, str(reason))]


def eval_batches(
    images: ImageSet, indices: np.ndarray, transform, batch_size: int, workers: int, replace: bool = False
) -> Iterator[Tensor]:
    """Normalized images (N, 3, S, S) in the order of ``indices``.

    Raises:
        InputError: at the first bad image, or with ``replace`` when more than 1 % are bad.
    """
    loader = DataLoader(
        _Transformed(images, indices, transform, replace),  # pyright: ignore[reportArgumentType]
        batch_size,
        num_workers=0 if images.pixels is not None or sys.platform != "linux" else _workers(workers),
        collate_fn=_stack_transformed,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator(),
    )
    with naming_dead_readers():
        for batch, met in loader:
            if met and not replace:
                raise InputError(f"{printable(images.root / images.names[met[0][0]])}: {met[0][1]}; mend or remove it")
            images.note_bad(met)
            yield batch


def _stack_transformed(items: list) -> tuple[Tensor | None, list[tuple[int, str]]]:
    """One tensor a batch: each that a worker sends takes a file descriptor."""
    found = [image for image, _ in items if image is not None]
    return torch.stack(found) if len(found) == len(items) else None, [bad for _, met in items for bad in met]


class _Places:
    """The file that each reading process is on, in memory that all share: a killed one cannot tell any more."""

    def __init__(self):
        self.rows = torch.zeros(256, 1024, dtype=torch.uint8).share_memory_()  # process, length, name

    def note(self, path: Path) -> None:
        """Called where an image is about to be read; only readers take notes."""
        if get_worker_info():
            row, name = self.rows[os.getpid() % 256].numpy(), os.fsencode(path)[:1000]
            row[:16].view(np.int64)[:] = os.getpid(), len(name)
            row[16 : 16 + len(name)] = np.frombuffer(name, np.uint8)

    def of(self, processes: set[int]) -> list[str]:
        """Files that these processes were reading."""
        heads = self.rows.numpy()[:, :16].copy().view(np.int64)  # (rows, 2)
        found = [(row, length) for row, (process, length) in enumerate(heads) if process in processes]
        return [printable(os.fsdecode(self.rows[row, 16 : 16 + length].numpy().tobytes())) for row, length in found]


@functools.cache
def _places() -> _Places:
    return _Places()


@contextlib.contextmanager
def naming_dead_readers() -> Iterator[None]:
    """A reader that ended is one sentence, how and on which file, wherever its end surfaces: torch raises at once."""
    try:
        yield
    except RuntimeError as error:
        said = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*?)\.? *$", re.MULTILINE)
        found = said.search(str(error.__cause__)) or said.search(str(error))
        if not found:
            raise
        processes = {int(process) for process in found[1].split(",")}
        files = ", ".join(_places().of(processes)) or "its start"
        raise InputError(
            f"a process that reads images {found[2]}, at {files}; often memory was short: "
            "try again with --workers 0, or without that file"
        ) from error
