"""Batches of views for training, in a resumable order.

The order is a function of (seed, epoch), views of (seed, epoch, image index): any worker can make
the batch of any step at any time.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import TrainConfig
from ..errors import InputError, out_of_memory
from ..view_recipes import View
from .batched_views import crop, fast_views
from .image_set import ImageSet
from .views import COLUMNS, boxes, exact_view, uniform
from .workers import Batch, Key, Sample, read_batches

# Streams keep the random numbers of different uses apart; view i takes _VIEW_STREAM + i.
_VIEW_STREAM = 0
_ORDER_STREAM = 1000
# Pixels a side: to crop larger images by matrices on a CPU costs more than to cut them in workers.
_WHOLE_ON_CPU = 128


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of ``count`` images in an epoch."""
    return uniform(seed, epoch, np.arange(count), 1, _ORDER_STREAM)[:, 0].argsort(kind="stable")


@dataclass(frozen=True)
class ResumableBatchSampler:
    """The (epoch, index) pairs of each step from ``start`` to ``stop``."""

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[Key]]:
        current = -1
        permutation = np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            epoch, batch = divmod(step, self.count // self.batch_size)
            if epoch != current:
                current = epoch
                permutation = order(self.seed, epoch, self.count)
            first = batch * self.batch_size
            indices = permutation[first : first + self.batch_size].tolist()
            yield [(epoch, index) for index in indices]


class ViewDataset(Dataset[Sample]):
    """(epoch, index) -> uint8 for each view: it (S, S, 3), or in the fast mode a crop (3, S, S)."""

    def __init__(self, images: ImageSet, recipe: tuple[View, ...], config: TrainConfig):
        self.images = images
        self.recipe = recipe
        self.size = config.image_size
        self.seed = config.seed
        self.exact = config.views == "exact"
        # Large photos are decoded smaller, but never so that a crop is smaller than its view.
        sides = [v.side(self.size) * (v.ratio[1] / v.scale[0]) ** 0.5 for v in recipe]
        self.min_side = 0 if self.exact else max(sides)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image, bad_files = self.images.load_or_substitute(index, self.min_side)
        pixels = None if self.exact else torch.from_numpy(np.array(image))
        views = []
        for number, view in enumerate(self.recipe):
            u = uniform(self.seed, epoch, np.array([index]), COLUMNS, _VIEW_STREAM + number)
            side = view.side(self.size)
            if pixels is None:
                made = torch.from_numpy(np.array(exact_view(view, image, u, side)))
            else:
                made = crop(pixels, boxes(view, u, image.height, image.width)[0], side)
            views.append(made)
        return Sample(index, views, bad_files)


def batches(
    images: ImageSet,
    recipe: tuple[View, ...],
    config: TrainConfig,
    start: int,
    stop: int,
    device: torch.device,
) -> Generator[tuple[list[Tensor], np.ndarray], None, None]:
    """For each step: the views [(N, 3, S, S)] on the device, and the image indices (N,).

    In the fast mode equally large small images in memory are moved to the device and never leave
    it. Closing the generator kills the processes that read. ``stop`` is the step after the last.
    Raises InputError for too many bad images, a worker that died, or no memory on the device.
    """
    sampler = ResumableBatchSampler(len(images), config.batch_size, config.seed, start, stop)
    mean = torch.tensor(config.mean, device=device)
    std = torch.tensor(config.std, device=device)
    with _explain_full_memory(config, device):
        whole = _whole_images(images, config, device)
        if whole is None:
            dataset = ViewDataset(images, recipe, config)
            pin_memory = device.type == "cuda"
            read = read_batches(dataset, sampler, images.path, config.workers, pin_memory)
        else:
            read = _batches_in_memory(whole, images.places, len(recipe), sampler)
        with contextlib.closing(read):
            for step, batch in enumerate(read, start):
                images.record_bad_files(batch.bad_files)
                parts = [part.to(device, non_blocking=True) for part in batch.tensors]
                views = []
                for number, (view, part) in enumerate(zip(recipe, parts, strict=True)):
                    if config.views == "exact":
                        views.append(normalized(part, mean, std))
                        continue
                    epoch = step // (len(images) // config.batch_size)
                    stream = _VIEW_STREAM + number
                    # A worker that cut the crop drew these same numbers for its box.
                    u = uniform(config.seed, epoch, batch.indices, COLUMNS, stream)
                    box = None if whole is None else boxes(view, u, *part.shape[1:3])
                    side = view.side(config.image_size)
                    views.append(fast_views(view, part, u, side, mean, std, box))
                yield views, batch.indices


@contextlib.contextmanager
def _explain_full_memory(config: TrainConfig, device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(
            f"the views of {config.batch_size} images do not fit in the memory of {device}; give a "
            "smaller --batch-size, or --memory-gib 0, which keeps no images there"
        ) from None


def _whole_images(images: ImageSet, config: TrainConfig, device: torch.device) -> Tensor | None:
    """All images on the device, if views are best made there; of larger ones workers cut crops."""
    pixels = images.pixels
    if config.views == "exact" or not isinstance(pixels, Tensor):
        return None
    limit = 2 * config.image_size
    if device.type == "cpu":
        limit = min(limit, _WHOLE_ON_CPU)
    return pixels.to(device) if max(pixels.shape[1:3]) <= limit else None


def _batches_in_memory(
    pixels: Tensor, places: np.ndarray | None, views: int, sampler: ResumableBatchSampler
) -> Generator[Batch, None, None]:
    for keys in sampler:
        indices = np.array([index for _, index in keys])
        chosen = torch.from_numpy(indices if places is None else places[indices])
        chosen = chosen.to(pixels.device, non_blocking=True)
        yield Batch(indices, [pixels[chosen]] * views, [])


def exact_views(
    images: ImageSet, recipe: tuple[View, ...], config: TrainConfig, epoch: int, indices: np.ndarray
) -> list[Tensor]:
    """The exact views [(N, S, S, 3)], uint8, of a few images in an epoch, made by this process."""
    dataset = ViewDataset(images, recipe, dataclasses.replace(config, views="exact"))
    samples = [dataset[epoch, index].tensors for index in indices.tolist()]
    return [torch.stack(views) for views in zip(*samples, strict=True)]


def normalized(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 views (N, S, S, 3) -> float32 (N, 3, S, S), normalized."""
    pixels = views.permute(0, 3, 1, 2).float() / 255
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None])
