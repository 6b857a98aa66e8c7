"""What networks make of the same images, before and after training: neighbours and maps; views."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import channels
from ..config import TrainConfig
from ..data.eval_loader import eval_size
from ..data.image_set import ImageSet
from ..data.loader import order
from ..errors import printable
from ..evaluate.embedder import embed_function, embeddings, eval_mode_on
from ..evaluate.protocols import EvalSettings
from ..view_recipes import View
from .contact_sheet import picture_of
from .galleries import (
    map_points,
    neighbour_rows,
    picture_made_here,
    picture_of_set,
    pictures,
    project,
)
from .page import thumbnail

NEIGHBOURS = 7  # of an image, in a gallery
QUERIES = 6  # images whose neighbours, views or maps are shown
IMAGES = 2000  # of a sample
_SECONDS = 24  # to embed images with all networks, as one batch of them foretells
_FEWEST = 100  # images, however long it takes
_TIMED = 16  # images in a batch

Row = dict[str, Any]  # a title and pictures


@dataclass(frozen=True)
class Sample:
    """The images that all networks of a page are shown."""

    images: ImageSet
    indices: np.ndarray  # (n,) of those, in a random order
    queries: np.ndarray  # positions in ``indices``


@dataclass(frozen=True)
class Learned:
    """A network's embeddings of a sample."""

    title: str
    rows: np.ndarray  # (n, D)


def sample_of(images: ImageSet, networks: list[nn.Module], count: int = 0) -> Sample:
    """``count`` images, or 0: IMAGES, fewer where networks are slow; queries of several classes."""
    if not count:
        seconds = sum(map(_seconds, networks))  # an image
        count = min(IMAGES, max(_FEWEST, int(_SECONDS / seconds)))
    indices = order(0, 0, len(images))[:count]
    return Sample(images, indices, _queries(images, indices))


def _seconds(network: nn.Module) -> float:
    """What an image takes on the CPU: its own time, the best of some batches; others work there."""
    cpu = torch.device("cpu")
    batch = torch.zeros(_TIMED, channels(network), *eval_size(network))
    times = []
    with eval_mode_on(network, cpu):
        embed = embed_function(network, cpu, False)
        for _ in range(4):
            start = time.process_time()  # of all threads
            embed(batch)
            times.append(time.process_time() - start)
    return max(min(times), 1e-9) / _TIMED / torch.get_num_threads()


def _queries(images: ImageSet, indices: np.ndarray) -> np.ndarray:
    """Positions of the first images, one of a class as long as there are further classes."""
    if images.labels is None:
        return np.arange(min(QUERIES, len(indices)))
    _, firsts = np.unique(images.labels[indices], return_index=True)
    others = np.setdiff1d(np.arange(len(indices)), firsts)
    return np.concatenate([np.sort(firsts), others])[:QUERIES]


def embed_sample(title: str, model: nn.Module, sample: Sample, settings: EvalSettings) -> Learned:
    """The embeddings of a sample by one network."""
    rows, _ = embeddings(model, sample.images, sample.indices, settings, "substitute")
    return Learned(title, rows)


def gallery(networks: list[Learned], sample: Sample) -> list[list[Row]]:
    """For each query, a row by each network: the query with its nearest images."""
    found = [neighbour_rows(network.rows, sample.queries, NEIGHBOURS) for network in networks]
    named = [sample.queries, *(near.ravel() for near, _ in found)]
    addresses = pictures(sample.images, sample.indices[np.concatenate(named)].tolist())
    groups = []
    for number, query in enumerate(sample.indices[sample.queries].tolist()):
        group = []
        for network, (near, cosines) in zip(networks, found, strict=True):
            row = [picture_of_set(sample.images, query, addresses)]
            for index, cosine in zip(sample.indices[near[number]], cosines[number], strict=True):
                row.append(
                    picture_of_set(sample.images, int(index), addresses, f"{cosine:.3f}", query)
                )
            group.append({"title": network.title, "pictures": row})
        groups.append(group)
    return groups


def same_class(networks: list[Learned], sample: Sample) -> list[tuple[str, float]]:
    """Percent of the nearest images that are of the image's class, by title; none if unknown."""
    if sample.images.labels is None:
        return []
    labels = sample.images.labels[sample.indices]
    every = np.arange(len(labels))
    found = [neighbour_rows(network.rows, every, NEIGHBOURS)[0] for network in networks]
    shares = [100 * float((labels[near] == labels[:, None]).mean()) for near in found]
    return [(network.title, share) for network, share in zip(networks, shares, strict=True)]


def images_of(sample: Sample) -> str:
    """Which images these are, in a sentence."""
    count = f"{len(sample.indices):,} of {len(sample.images):,} images"
    return f"{count} of {printable(sample.images.source)}, drawn at random."


def maps(networks: list[Learned], sample: Sample) -> dict[str, object]:
    """A map of the sample by each network, side by side."""
    points = {network.title: project(network.rows) for network in networks}
    return map_points(sample.images, sample.indices, points)


def contact_sheet(
    config: TrainConfig,
    images: ImageSet,
    recipe: tuple[View, ...],
    views: list[Tensor],
    indices: np.ndarray,
) -> list[Row]:
    """A row for each image: itself, then its views."""
    addresses = pictures(images, indices.tolist(), 96)
    rows = []
    for place, index in enumerate(indices.tolist()):
        row = [picture_of_set(images, index, addresses, "image")]
        for number, (view, batch) in enumerate(zip(recipe, views, strict=True), 1):
            address = thumbnail(picture_of(batch[place], config), 96)
            row.append(picture_made_here(address, what_is_drawn(view), f"view {number}"))
        rows.append({"title": "", "pictures": row})
    return rows


def what_is_drawn(view: View) -> str:
    """What the random numbers of a view decide, in words."""
    parts = {"colours": view.jitter_p, "grey": view.grey_p, "blur": view.blur_p}
    parts |= {"solarize": view.solarize_p}
    return ", ".join(["crop", "flip", *(name for name, chance in parts.items() if chance)])
