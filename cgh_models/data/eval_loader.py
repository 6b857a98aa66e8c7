"""Batches of single images as timm's evaluation transform makes them."""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import Normalize

from ..errors import BadImage, InputError, printable, say
from .decode import MAX_BYTES, BadFile
from .pixels import Pixels, as_tensor, unit
from .workers import Batch, Key, Sample, read_batches

if TYPE_CHECKING:
    from .image_set import ImageSet

Transform = Callable[[Pixels], Tensor]  # of a picture, or of an array (H, W, bands)
OnBad = Literal["raise", "skip", "substitute"]
_MOST_ASPECT = 50
_MOST_SIDE = 8192
_MOST_NAMED = 3  # bad files that get a line on stderr


@dataclass(frozen=True, eq=False)
class EvalDataset(Dataset[Sample]):
    """(0, index) -> the transformed image; a bad one is replaced, or has no tensor.

    With ``describe`` also int64 (3,), its width, height and bytes, and its sha256, uint8 (32,).
    """

    images: "ImageSet"
    transform: Transform
    substitute: bool
    describe: bool = False

    def __getitem__(self, key: Key) -> Sample:
        index = key[1]
        if self.substitute:
            image, bad_files = self.images.load_or_substitute(index)
            return Sample(index, [self.transform(image)], bad_files)
        try:
            if self.describe:
                return Sample(index, self._described(index), [])
            return Sample(index, [self.transform(self.images.image(index))], [])
        except BadImage as reason:
            return Sample(index, [], [BadFile(index, str(reason))])

    def _described(self, index: int) -> list[Tensor]:
        try:
            with self.images.open(index) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                content = file.read(min(size, MAX_BYTES + 1))  # as many bytes are set aside
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error
        image = self.images.decode(index, io.BytesIO(content))
        width, height = image.size if self.images.in_chans == 3 else image.shape[1::-1]
        sha256 = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
        return [self.transform(image), torch.tensor([width, height, len(content)]), sha256]


def _not_too_long(image: Pixels) -> Image.Image | Tensor:
    """Without the ends of a strip, which no centre crop shows and which would grow immensely.

    Bands become a tensor (bands, H, W) in [0, 1], which timm's transforms take, too.
    """
    is_picture = isinstance(image, Image.Image)
    size = image.size if is_picture else image.shape[1::-1]
    width, height = (min(side, _MOST_ASPECT * min(size)) for side in size)
    left = (size[0] - width) // 2
    top = (size[1] - height) // 2
    if is_picture:
        return image.crop((left, top, left + width, top + height))
    return as_tensor(image[top : top + height, left : left + width])


def eval_transform(backbone: nn.Module) -> Transform:
    """timm's evaluation transform for this backbone: image -> normalized (C, S, S).

    Raises InputError if it would resize images to more than 8,192 pixels a side.
    """
    config = resolve_model_data_config(backbone)
    side = max(config["input_size"][1:]) / config["crop_pct"]
    if side > _MOST_SIDE:
        what = f"images would be resized to {side:.0f} pixels before the crop"
        raise InputError(f"{what}; give a model with a smaller input_size or a larger crop_pct")
    transform: Any = create_transform(**config, is_training=False)  # pyright: ignore
    transform.transforms.insert(0, _not_too_long)
    return transform


def eval_size(backbone: nn.Module) -> tuple[int, int]:
    """Height and width of what `eval_transform` makes for this backbone."""
    return resolve_model_data_config(backbone)["input_size"][1:]


def eval_batches(
    images: "ImageSet",
    indices: np.ndarray,
    transform: Transform,
    batch_size: int,
    workers: int,
    on_bad: OnBad = "raise",
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Normalized images (N, C, S, S) in the order of ``indices``, and their indices (N,).

    An image that cannot be read ends them ("raise"), is left out and named on stderr ("skip"), or
    is replaced by another one as in training ("substitute"). Images in memory that the transform
    does not resize are normalized many at a time, to the same bits.
    """
    if transformed := _at_once(images, transform):
        for start in range(0, len(indices), batch_size):
            chosen = np.asarray(indices[start : start + batch_size])
            yield transformed(images.pixels[images.places_of(chosen)]), chosen  # pyright: ignore
        return
    dataset = EvalDataset(images, transform, on_bad == "substitute")
    for batch in eval_samples(dataset, indices, batch_size, workers, on_bad):
        yield batch.tensors[0], batch.indices


def _at_once(images: "ImageSet", transform: Transform) -> Callable[[Tensor], Tensor] | None:
    """The transform of many images (N, H, W, 3) in memory, if it does no more than normalize."""
    pixels, last = images.pixels, getattr(transform, "transforms", [None])[-1]
    if not isinstance(pixels, Tensor) or images.in_chans != 3 or not isinstance(last, Normalize):
        return None
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape[1:], np.uint8)
    made = last(unit(torch.from_numpy(noise).permute(2, 0, 1)))
    alike = torch.equal(transform(Image.fromarray(noise)), made)
    return (lambda chosen: last(unit(chosen.permute(0, 3, 1, 2)))) if alike else None


def eval_samples(
    dataset: EvalDataset, indices: np.ndarray, batch_size: int, workers: int, on_bad: OnBad
) -> Generator[Batch, None, None]:
    """Batches of what the dataset makes of these images, as `eval_batches` has them."""
    images = dataset.images
    keys = [(0, int(index)) for index in indices]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    num_workers = workers if images.pixels is None and sys.platform == "linux" else 0
    left_out = 0
    with contextlib.closing(read_batches(dataset, batches, images.where, num_workers)) as read:
        for batch in read:
            if on_bad == "raise" and batch.bad_files:
                bad = batch.bad_files[0]
                what = f"{printable(images.where(bad.index))}: {bad.reason}"
                raise InputError(f"{what}; mend or remove it")
            new = images.record_bad_files(batch.bad_files)
            if on_bad == "skip":
                for bad in new[: max(0, _MOST_NAMED - left_out)]:
                    say(f"{printable(images.where(bad.index))}: {bad.reason}; left out")
                left_out += len(new)
            if batch.tensors:
                yield batch
    if left_out > _MOST_NAMED:
        say(f"{printable(images.place)}: {left_out} images in all cannot be read and are left out")
