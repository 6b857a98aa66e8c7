"""Batches of views for training, in a resumable order.

The order is a function of (seed, epoch), views of (seed, epoch, image index): any worker can make
the batch of any step at any time.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import TrainConfig
from ..errors import InputError, out_of_memory
from ..one_process import ALONE, OneProcess
from ..view_recipes import OwnView, Recipe, View
from .batched_views import ViewRequest, crop, fast_views, to_device
from .draws import COLUMNS, boxes, uniform
from .own_views import own_view, say_unless_normalized
from .pixels import as_tensor, unit
from .views import exact_view, exact_view_of_bands
from .workers import Batch, Key, Sample, read_batches

if TYPE_CHECKING:
    from .image_set import ImageSet

# Streams keep the random numbers of different uses apart; view i takes _VIEW_STREAM + i.
_VIEW_STREAM = 0
_ORDER_STREAM = 1000
_BIG_ORDER_STREAM = 1010  # of the first round
_ROUNDS = 6  # four make it hard to tell from chance (Luby and Rackoff), two are spare
_MOST_SORTED = 2**24  # images: runs on fewer keep the order that they have always had
_AT_ONCE = 2**20
# Pixels a side: to crop larger images by matrices on a CPU costs more than to cut them in workers.
_WHOLE_ON_CPU = 128


@dataclass(frozen=True)
class BigOrder:
    """A permutation of ``count`` images; a slice of it is an array of their indices.

    A Feistel network on pairs below the root of ``count``, rounded up. What falls outside goes
    through it again until it is one of the images.

    Source: Luby and Rackoff, SIAM J. Comput. 17 (1988), why rounds of it are a random permutation;
    Black and Rogaway, CT-RSA 2002, the generalized Feistel cipher and cycle walking. Its random
    function is `uniform`.
    """

    seed: int
    epoch: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self._once(np.arange(*part.indices(self.count)))
        while (outside := found >= self.count).any():
            found[outside] = self._once(found[outside])
        return found

    def _once(self, places: np.ndarray) -> np.ndarray:
        side = math.isqrt(self.count - 1) + 1
        left, right = np.divmod(places, side)
        for number in range(_ROUNDS):
            u = uniform(self.seed, self.epoch, right, 1, _BIG_ORDER_STREAM + number)[:, 0]
            left, right = right, (left + (u * side).astype(np.int64)) % side
        return left * side + right


def order(seed: int, epoch: int, count: int) -> np.ndarray | BigOrder:
    """The permutation of ``count`` images in an epoch: (count,), or of more than 2**24 its parts.

    Those are sorted by random numbers, 16 bytes each; a larger one is never whole in memory.
    """
    if count > _MOST_SORTED:
        return BigOrder(seed, epoch, count)
    numbers = np.empty(count)
    for first in range(0, count, _AT_ONCE):
        part = numbers[first : first + _AT_ONCE]
        part[:] = uniform(seed, epoch, first + np.arange(len(part)), 1, _ORDER_STREAM)[:, 0]
    return numbers.argsort(kind="stable")


def batch_indices(config: TrainConfig, count: int, step: int) -> np.ndarray:
    """The images of the batch of a step, counted from 0, of all processes."""
    epoch, batch = divmod(step, count // config.batch_size)
    first = batch * config.batch_size
    return order(config.seed, epoch, count)[first : first + config.batch_size]


@dataclass(frozen=True)
class ResumableBatchSampler:
    """The (epoch, index) pairs of each step from ``start`` to ``stop``.

    Of ``processes`` that share each batch, that of ``rank`` takes each ``processes``-th row.
    """

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int
    rank: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[list[Key]]:
        current = -1
        permutation = np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            epoch, batch = divmod(step, self.count // self.batch_size)
            if epoch != current:
                current = epoch
                permutation = order(self.seed, epoch, self.count)
            first = batch * self.batch_size
            indices = permutation[first : first + self.batch_size]
            yield [(epoch, index) for index in indices[self.rank :: self.processes].tolist()]


class ViewDataset(Dataset[Sample]):
    """(epoch, index) -> for each view: it (S, S, C), or in the fast mode a crop (C, S, S).

    uint8 of 8-bit images; else float32 in [0, 1], as are all exact views of bands. Of a view of the
    caller's own also float32 (C, S, S).
    """

    def __init__(self, images: "ImageSet", recipe: Recipe, config: TrainConfig):
        self.images = images
        self.recipe = recipe
        self.config = config
        self.exact = config.views == "exact"

    def min_side(self, size: int) -> float:
        """Large photos are decoded smaller, but never so that a crop is smaller than its view."""
        if self.exact:
            return 0.0
        drawn = [view for view in self.recipe if isinstance(view, View)]
        return max(view.side(size) * (view.ratio[1] / view.scale[0]) ** 0.5 for view in drawn)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        size = self.config.size_in(epoch)
        image, bad_files = self.images.load_or_substitute(index, self.min_side(size))
        pixels = torch.empty(0) if self.exact else torch.from_numpy(np.array(image))
        views = []
        for number, view in enumerate(self.recipe):
            u = uniform(self.config.seed, epoch, np.array([index]), COLUMNS, _VIEW_STREAM + number)
            side = view.side(size)
            if isinstance(view, OwnView):
                made = own_view(view, image, u, side, self.images.names[index])
            elif not self.exact:
                made = crop(pixels, boxes(view, u, *pixels.shape[:2])[0], side)
            elif self.images.in_chans == 3:
                made = torch.from_numpy(np.array(exact_view(view, image, u, side)))
            else:
                made = exact_view_of_bands(view, as_tensor(image), u, side).permute(1, 2, 0)
            views.append(made)
        return Sample(index, views, bad_files)


def batches(
    images: "ImageSet",
    recipe: Recipe,
    config: TrainConfig,
    start: int,
    stop: int,
    device: torch.device,
    processes: OneProcess = ALONE,
    make: Callable[..., list[Tensor]] | None = None,
) -> Generator[tuple[list[Tensor], np.ndarray], None, None]:
    """For each step: the views [(N, C, S, S)] on the device, and the image indices (N,).

    Of several ``processes``, those of this one. In the fast mode equally large small images in
    memory are moved to the device and never leave it. Closing the generator kills the processes
    that read. ``stop`` is the step after the last; ``make`` is called in place of `fast_views`.

    Raises InputError for too many bad images, a worker that died, or no memory on the device.
    """
    steps = (config.batch_size, config.seed, start, stop)
    sampler = ResumableBatchSampler(len(images), *steps, processes.rank, processes.count)
    mean, std = (torch.tensor(value, device=device) for value in (config.mean, config.std))
    with _explain_full_memory(config, device):
        whole = _whole_images(images, config, device)
        if whole is None:
            dataset = ViewDataset(images, recipe, config)
            pin = device.type == "cuda" and not config.cuda_graphs  # a recording would break
            read = read_batches(dataset, sampler, images.where, config.workers, pin)
        else:
            read = _batches_in_memory(whole, images, len(recipe), sampler)
        with contextlib.closing(read):
            for step, batch in enumerate(read, start):
                images.record_bad_files(batch.bad_files)
                if step == start:
                    say_unless_normalized(recipe, batch.tensors)
                parts = [part.to(device, non_blocking=True) for part in batch.tensors]
                epoch = step // (len(images) // config.batch_size)
                size = config.size_in(epoch)
                views, requests = {}, {}
                for number, (view, part) in enumerate(zip(recipe, parts, strict=True)):
                    if config.views == "exact" or isinstance(view, OwnView):
                        views[number] = normalized(view, part, mean, std)
                        continue
                    # A worker that cut the crop drew these same numbers for its box.
                    u = uniform(config.seed, epoch, batch.indices, COLUMNS, _VIEW_STREAM + number)
                    box = None if whole is None else boxes(view, u, *part.shape[1:3])
                    requests[number] = ViewRequest(view, part, u, view.side(size), box)
                if requests:
                    made = (make or fast_views)(list(requests.values()), mean, std)
                    views |= dict(zip(requests, made, strict=True))
                yield [views[number] for number in range(len(parts))], batch.indices


@contextlib.contextmanager
def _explain_full_memory(config: TrainConfig, device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        what = f"the views of {config.batch_size} images do not fit in the memory of {device}"
        hint = "give a smaller --batch-size, or --memory-gib 0, which keeps no images there"
        raise InputError(f"{what}; {hint}") from None


def _whole_images(images: "ImageSet", config: TrainConfig, device: torch.device) -> Tensor | None:
    """All images on the device, if views are best made there; of larger ones workers cut crops."""
    pixels = images.pixels
    if config.views == "exact" or not isinstance(pixels, Tensor):
        return None
    limit = 2 * config.image_size
    if device.type == "cpu":
        limit = min(limit, _WHOLE_ON_CPU)
    return pixels.to(device) if max(pixels.shape[1:3]) <= limit else None


def _batches_in_memory(
    pixels: Tensor, images: "ImageSet", views: int, sampler: ResumableBatchSampler
) -> Generator[Batch, None, None]:
    for keys in sampler:
        indices = np.array([index for _, index in keys])
        (chosen,) = to_device([images.places_of(indices)], pixels.device)
        if pixels.dtype == torch.uint16:  # for which torch has few operations
            taken = pixels.view(torch.int16)[chosen].view(torch.uint16)
        else:
            taken = pixels[chosen]
        yield Batch(indices, [taken] * views, [])


def exact_views(
    images: "ImageSet", recipe: Recipe, config: TrainConfig, epoch: int, indices: np.ndarray
) -> list[Tensor]:
    """The exact views [(N, S, S, C)] of a few images in an epoch, made by this process.

    Of a view of the caller's own also float32 (N, C, S, S), as it made it.
    """
    dataset = ViewDataset(images, recipe, dataclasses.replace(config, views="exact"))
    samples = [dataset[epoch, index].tensors for index in indices.tolist()]
    return [torch.stack(views) for views in zip(*samples, strict=True)]


def normalized(view: View | OwnView, views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """What ``view`` made of N images, (N, S, S, C) -> float32 (N, C, S, S), normalized.

    It fills its type. Floats of a function of the user's, (N, C, S, S), stay as they are.
    """
    if isinstance(view, OwnView) and views.is_floating_point():
        return views
    return unit(views.permute(0, 3, 1, 2)).sub_(mean[:, None, None]).div_(std[:, None, None])
