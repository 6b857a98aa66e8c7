"""What a method has of its own, in pictures: LEWEL's maps, CGH's contexts, MNCLGLF's tiles."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..backbone import eval_mode
from ..config import TrainConfig
from ..data.eval_loader import eval_batches, eval_transform
from ..evaluate.neighbours import common_share
from ..methods.cgh import CGH
from ..methods.lewel import LEWEL, LEWELM, alignment_maps
from ..methods.mnclglf import MNCLGLF, PAIRS, tile_cosines
from .before_after import NEIGHBOURS, Learned, Row, Sample, gallery
from .contact_sheet import picture_of
from .galleries import neighbour_rows, picture_made_here, picture_of_set, pictures
from .page import library, thumbnail

Contexts = tuple[np.ndarray, np.ndarray]  # global and hypercolumn projections (n, P)

_IMAGES = 500  # whose contexts are compared
_MAPS = 6  # alignment maps that are shown
_SIDE = 112  # pixels of a picture with something drawn on it

_LEWEL = (
    "Where each of the embeddings that LEWEL compares looks. Columns are the maps that vary most "
    "over the picture; bright is the most weight of a map on that picture, dark the least."
)
_CGH = (
    "The nearest images by the global context, then by the hypercolumn. Outlined in green: found "
    "by both. Each context learns from the other one's relations."
)
_MNCLGLF = (
    "The prediction of a view is pulled to each pair of tiles of another view of the image. Under "
    "each pair is its cosine, in brackets the mean with the other images' pairs; last, the other "
    "image whose teacher projection is nearest to the view's: what the queue's nearest row, which "
    "has no picture, stands for."
)


def own_numbers(method: object, sample: Sample) -> dict[str, float]:
    """Numbers of a method's own, by what they are; none of most methods."""
    if isinstance(method, (LEWEL, LEWELM)):
        return _peaks(alignment_maps(method, _tensors(method, sample, sample.queries)))
    if isinstance(method, CGH):
        return _agreement(_contexts(method, sample))
    return {}


def own_pictures(
    method: object, sample: Sample, config: TrainConfig, views: list[Tensor], indices: np.ndarray
) -> tuple[dict[str, float], str, list[list[Row]]]:
    """The numbers, a sentence on what is shown, and groups of rows; nothing of most methods.

    ``views`` are those of the images ``indices``.
    """
    if isinstance(method, (LEWEL, LEWELM)):
        seen = _tensors(method, sample, sample.queries)
        maps = alignment_maps(method, seen)
        return _peaks(maps), _LEWEL, [_alignment_rows(maps, seen, sample, config)]
    if isinstance(method, CGH):
        contexts = _contexts(method, sample)
        return _agreement(contexts), _CGH, _context_rows(contexts, sample)
    if isinstance(method, MNCLGLF):
        return {}, _MNCLGLF, [_tile_rows(method, sample, config, views, indices)]
    return {}, "", []


def _tensors(method: Any, sample: Sample, positions: np.ndarray) -> Tensor:
    """Images (n, 3, S, S) as the evaluation transform makes them."""
    chosen = sample.indices[positions]
    transform = eval_transform(method.student.backbone)
    read = eval_batches(sample.images, chosen, transform, 64, 0, "substitute")
    return torch.cat([batch for batch, _ in read])


@torch.no_grad()
def _in_eval_mode(method: nn.Module, images: Tensor, forward: Callable[[Tensor], Any]) -> list[Any]:
    with eval_mode(method):
        return [forward(batch) for batch in images.split(64)]


def _contexts(method: CGH, sample: Sample) -> Contexts:
    """Global and hypercolumn projections (n, P) of the first images of a sample."""
    images = _tensors(method, sample, _first(sample))
    found = _in_eval_mode(method, images, lambda batch: method.student(batch, 1))
    first, second = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return first, second


def _first(sample: Sample) -> np.ndarray:
    return np.arange(min(_IMAGES, len(sample.indices)))


def _agreement(contexts: Contexts) -> dict[str, float]:
    every = np.arange(len(contexts[0]))
    near = [neighbour_rows(rows, every, NEIGHBOURS)[0] for rows in contexts]
    what = f"% of the {NEIGHBOURS} nearest among {len(every)} images that both contexts find"
    return {what: 100 * float(common_share(*near).mean())}


def _context_rows(contexts: Contexts, sample: Sample) -> list[list[Row]]:
    count = len(contexts[0])
    first = Sample(sample.images, sample.indices[:count], sample.queries[sample.queries < count])
    titles = ("global", "hypercolumn")
    networks = [Learned(title, rows) for title, rows in zip(titles, contexts, strict=True)]
    groups = gallery(networks, first)
    for group in groups:
        found = [{picture["index"] for picture in row["pictures"][1:]} for row in group]
        common = found[0] & found[1]
        for row in group:
            for picture in row["pictures"][1:]:
                both = picture["index"] in common
                picture.update(note="both" if both else "", differs=not both)
    return groups


def _peaks(maps: Tensor) -> dict[str, float]:
    peaks = maps.flatten(3).amax(3) * maps[0, 0, 0].numel()
    return {"weight of a map's brightest pixel, over its mean": float(peaks.mean())}


def _alignment_rows(maps: Tensor, seen: Tensor, sample: Sample, config: TrainConfig) -> list[Row]:
    per_head = maps.shape[2]
    maps = maps.flatten(1, 2)  # (n, heads * M, h, w)
    varied = maps.flatten(2).std(2).mean(0).argsort(descending=True)[:_MAPS].tolist()
    addresses = pictures(sample.images, sample.indices[sample.queries].tolist(), _SIDE)
    rows = []
    for place, query in enumerate(sample.queries):
        index = int(sample.indices[query])
        row = [picture_of_set(sample.images, index, addresses)]
        image = picture_of(seen[place], config).resize((_SIDE, _SIDE))
        for number in varied:
            head, of_head = divmod(number, per_head)
            name = f"head {head + 1}, map {of_head + 1}"
            address = thumbnail(_overlaid(image, maps[place, number]), _SIDE)
            row.append(picture_made_here(address, name))
        rows.append({"title": "", "pictures": row})
    return rows


def _overlaid(image: Image.Image, weights: Tensor) -> Image.Image:
    """The image in grey under the colours of a map (h, w), from its least to its most weight."""
    spread = (weights - weights.min()) / (weights.max() - weights.min()).clamp(min=1e-12)
    heat = F.interpolate(spread[None, None], (_SIDE, _SIDE), mode="bicubic")[0, 0].clamp(0, 1)
    colours = library("matplotlib").colormaps["inferno"](heat.numpy())[:, :, :3]
    grey = np.array(image.convert("L"), float)[:, :, None] / 255
    mixed = 0.45 * grey + 0.55 * colours
    return Image.fromarray((255 * mixed.clip(0, 1)).astype(np.uint8))


def _tile_rows(
    method: MNCLGLF, sample: Sample, config: TrainConfig, views: list[Tensor], indices: np.ndarray
) -> list[Row]:
    cosines = tile_cosines(method, views[0], views[1])  # (6, N, N)
    others = (cosines.sum(2) - cosines.diagonal(dim1=1, dim2=2)) / max(1, len(views[0]) - 1)
    of_sample = _tensors(method, sample, _first(sample))
    known, asked = (
        F.normalize(torch.cat(_in_eval_mode(method, batch, method.teacher)).float())
        for batch in (of_sample, views[0])
    )
    itself = sample.indices[_first(sample)] == indices[:, None]  # (N, n)
    best, nearest = (asked @ known.T).masked_fill(torch.from_numpy(itself), -1).max(1)
    chosen = sample.indices[nearest.numpy()]
    addresses = pictures(sample.images, chosen.tolist(), _SIDE)
    rows = []
    for place in range(len(views[0])):
        first = picture_of(views[0][place], config).resize((_SIDE, _SIDE))
        row = [picture_made_here(thumbnail(first, _SIDE), "a view", "view 1")]
        for number, pair in enumerate(PAIRS):
            note = f"{cosines[number, place, place]:.2f} ({others[number, place]:.2f})"
            tiles = _two_tiles(picture_of(views[1][place], config), pair)
            name = f"tiles {pair[0] + 1}, {pair[1] + 1}"
            row.append(picture_made_here(thumbnail(tiles, _SIDE), name, note))
        row.append(
            picture_of_set(
                sample.images, int(chosen[place]), addresses, f"nearest {best[place]:.2f}"
            )
        )
        rows.append({"title": "", "pictures": row})
    return rows


def _two_tiles(view: Image.Image, pair: tuple[int, int]) -> Image.Image:
    """The view with two of its 2 x 2 tiles; the others are clear."""
    half = _SIDE // 2
    shown_tiles = Image.new("RGBA", (_SIDE, _SIDE))
    large = view.resize((_SIDE, _SIDE))
    for tile in pair:
        left, top = half * (tile % 2), half * (tile // 2)
        shown_tiles.paste(large.crop((left, top, left + half, top + half)), (left, top))
    return shown_tiles
