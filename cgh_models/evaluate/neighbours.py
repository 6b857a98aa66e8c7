"""kNN: the classes of embeddings by the votes of their nearest neighbours."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..progress import watched
from ..tensors import plain_defaults
from .devices import pick_device, pick_precision

_MAX_SCORES = 2**23  # similarities held at once: 32 MiB in float32
_MAX_KEYS = 2**23  # numbers of the keys that are compared at once: 16 MiB in bfloat16
_MAX_ROWS = 2**16  # keys that are compared at once where they lie
_MAX_FOUND = 2**20  # neighbours that are remembered at once, 12 bytes each, twice
_MIN_CHUNK = 64  # queries at a time, whatever they take
_MOST_CLASSES = 2**20  # each takes a vote of every query


@plain_defaults()
def knn(
    memory: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Predicted classes (M,) of queries (M, D) from the memory (N, D) with labels (N,).

    Cosine similarity; each of the k nearest votes for its class with weight
    exp(cosine / temperature). Source: Wu et al., arXiv 1805.01978, section 3.4.

    Beside the two arrays, which are not copied if they are float32, it takes some 64 MiB, on the
    host and on the ``device`` that compares.

    Raises:
        InputError: k is not between 1 and N, the temperature is not positive, the labels are not N
            classes from 0, or the embeddings are not two arrays of one width.
    """
    memory, labels, queries = map(np.asarray, (memory, labels, queries))
    _check_arrays(memory, labels, queries)
    _check_votes(k, temperature, len(memory))
    targets = torch.from_numpy(labels.astype(np.int64))
    classes = int(targets.max()) + 1
    predicted = []
    block = max(_MIN_CHUNK, _MAX_FOUND // max(_candidates(k), classes))
    found = _search(memory, queries, k, block, pick_device(device))
    for cosine, nearest in watched(found, "kNN", -(-len(queries) // block), "block"):
        # Relative to the nearest one, which has weight 1, so that they cannot all underflow.
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = torch.zeros(len(cosine), classes)  # (n, classes)
        votes.scatter_add_(1, targets[nearest], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


@plain_defaults()
def mean_of_nearest(
    memory: np.ndarray,
    targets: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """The mean (M, T) of the targets (N, T) of the k rows of memory (N, D) nearest to queries.

    Weighted by exp(cosine / temperature), as the votes of `knn`. Raises InputError for a k or a
    temperature that `knn` refuses.
    """
    _check_votes(k, temperature, len(memory))
    values = torch.from_numpy(targets)
    block = max(1, _MAX_FOUND // max(_candidates(k), k * targets.shape[1]))
    means = []
    for cosine, places in _search(memory, queries, k, block, pick_device(device)):
        weights = (cosine / temperature).softmax(1).to(values.dtype)  # (n, k)
        means.append(torch.einsum("nk,nkt->nt", weights, values[places]))
    return torch.cat(means).numpy()


@plain_defaults()
def nearest(
    memory: np.ndarray, queries: np.ndarray, k: int, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M, k) and cosines (M, k) of the rows of memory (N, D) nearest to queries (M, D).

    The nearest first; all of them are compared, in float32. A k above N is N.
    """
    k = min(k, len(memory))
    block = max(_MIN_CHUNK, _MAX_FOUND // _candidates(k))
    found = list(_search(memory, queries, k, block, pick_device(device)))
    cosine, indices = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return indices, cosine


def groups(embeddings: np.ndarray, least: float) -> list[np.ndarray]:
    """Indices of images that chains of pairs with a cosine of at least ``least`` connect.

    All pairs of embeddings (N, D) are compared. The largest group first; single images are in none.
    """
    unit = F.normalize(torch.from_numpy(embeddings).float())
    group = np.arange(len(unit))  # (N,) the first image of each one's group
    rows = max(1, _MAX_SCORES // max(1, len(unit)))
    for start in range(0, len(unit), rows):
        similar = (unit[start : start + rows] @ unit.t() >= least).numpy()
        for index, of_index in enumerate(similar, start):
            of_index[index] = True  # its own product may be rounded to less than 1
            joined = group[of_index]
            if (joined != group[index]).any():
                group[np.isin(group, joined)] = joined.min()
    firsts, sizes = np.unique(group, return_counts=True)
    largest = firsts[np.argsort(-sizes, kind="stable")]
    return [np.flatnonzero(group == first) for first in largest[: int((sizes > 1).sum())]]


def _search(
    memory: np.ndarray, queries: np.ndarray, k: int, block: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines and indices (n, k) of the nearest, in order, for ``block`` queries at a time."""
    keys = torch.from_numpy(memory).float()
    norms = torch.cat([part.norm(dim=1) for part in keys.split(4096)]).clamp_(min=1e-12)
    search = _nearest
    if device.type == "cpu" and pick_precision("auto", device) is torch.bfloat16:
        search = _nearest_by_candidates
    for part in torch.from_numpy(queries).float().split(block):
        cosine, indices = search(keys, norms, part, k, device)
        yield cosine.cpu(), indices.cpu()


def _check_votes(k: int, temperature: float, count: int) -> None:
    if not 1 <= k <= count:
        what = f"k={k}: expected 1 to {count}, the number of training images"
        raise InputError(f"{what}; give another --k")
    if not temperature > 0:
        raise InputError(f"temperature={temperature}: it has to be positive")


def _check_arrays(memory: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> None:
    kinds = memory.dtype.kind + queries.dtype.kind
    widths = {memory.shape[1:], queries.shape[1:]}
    if not set(kinds) <= set("biuf") or memory.ndim != 2 or len(widths) > 1 or (0,) in widths:
        given = f"memory {memory.shape}, queries {queries.shape}"
        raise InputError(f"{given}: expected embeddings of one width, (N, D) and (M, D)")
    given = f"{labels.dtype} of shape {labels.shape}"
    are_classes = labels.shape == (len(memory),) and labels.dtype.kind in "biu"
    if labels.dtype.kind in "iu" and labels.size:
        given += f", values from {labels.min()} to {labels.max()}"
        are_classes = are_classes and labels.min() >= 0 and labels.max() < _MOST_CLASSES
    if not are_classes:
        wanted = f"{len(memory)} whole numbers from 0 to {_MOST_CLASSES - 1}"
        raise InputError(f"labels: {given}; expected {wanted}, the class of each training image")


def common_share(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share (M,) of the indices (M, k) in a row that are in both arrays."""
    pairs = zip(first, second, strict=True)
    return np.array([len(np.intersect1d(*pair)) for pair in pairs]) / first.shape[1]


def _nearest(
    keys: Tensor, norms: Tensor, queries: Tensor, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and indices (n, k) of the k keys (N, D) nearest to queries (n, D), in order."""
    rows = _MAX_ROWS if device.type == "cpu" else _rows(2 * keys.shape[1])  # they are copied
    pairs = zip(keys.split(rows), norms.split(rows), strict=True)
    parts = ((part.to(device), lengths.to(device)) for part, lengths in pairs)
    return _top_scores(parts, queries, k, torch.float32, device)


def _rows(width: int) -> int:
    """How many keys of some bfloat16 numbers are compared at once, with `_MIN_CHUNK` queries."""
    return max(1, min(_MAX_KEYS // width, _MAX_SCORES // _MIN_CHUNK))


def _top_scores(
    parts: Iterable[tuple[Tensor, Tensor | None]],
    queries: Tensor,
    count: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Scores and indices (n, count) of the keys with the highest scores, in order.

    ``parts`` are keys (rows, D) with the numbers (rows,) that scores are divided by, or None.
    """
    scores = torch.empty(len(queries), 0, dtype=dtype, device=device)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    start = 0
    for part, lengths in parts:
        chunk = max(_MIN_CHUNK, _MAX_SCORES // len(part))
        best = min(count, scores.shape[1] + len(part))
        new_scores = torch.empty(len(queries), best, dtype=dtype, device=device)
        new_indices = torch.empty(len(queries), best, dtype=torch.int64, device=device)
        for first in range(0, len(queries), chunk):
            rows = slice(first, first + chunk)
            found = F.normalize(queries[rows].to(device)).to(dtype) @ part.t()
            if lengths is not None:
                found.div_(lengths)
            top, places = found.topk(min(count, len(part)))
            del found  # before the next are made
            places += start
            if start:
                top = torch.cat([scores[rows], top], 1)
                places = torch.cat([indices[rows], places], 1)
                top, order = top.topk(best)
                places = places.gather(1, order)
            new_scores[rows] = top
            new_indices[rows] = places
        scores, indices = new_scores, new_indices
        start += len(part)
    return scores, indices


def _candidates(k: int) -> int:
    return k + max(k, 32)


def _nearest_by_candidates(
    keys: Tensor, norms: Tensor, queries: Tensor, k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`_nearest` by candidates that are found in bfloat16, and compared in float32.

    Rounding two unit vectors changes their product by at most the sum of the lengths of the two
    rounding errors, and the product itself is rounded once more. Where, within this bound, a key
    outside of the candidates could be nearer than the k-th of them, all keys are compared in
    float32. 1.7 to 2 times as fast on a CPU with bfloat16 instructions.
    """
    candidates = _candidates(k)
    if candidates >= len(keys):
        return _nearest(keys, norms, queries, k, device)
    errors: list[Tensor] = []
    parts = _unit_keys_in_bfloat16(keys, norms, errors)
    scores, indices = _top_scores(parts, queries, candidates, torch.bfloat16, device)
    cosine = torch.empty(len(queries), k)
    nearest = torch.empty(len(queries), k, dtype=torch.int64)
    rows = max(1, _MAX_SCORES // (2 * candidates * keys.shape[1]))
    query_error = torch.empty(len(queries))
    for part in torch.arange(len(queries)).split(rows):
        unit = F.normalize(queries[part])
        query_error[part] = _rounding_error(unit, unit.bfloat16())
        products = torch.bmm(keys[indices[part]], unit[:, :, None])[..., 0]  # (rows, candidates)
        cosine[part], best = products.div_(norms[indices[part]]).topk(k)
        nearest[part] = indices[part].gather(1, best)
    lowest = scores[:, -1].float()
    # (n,) what a key outside of the candidates can reach
    bound = lowest + lowest.abs() / 256 + torch.stack(errors).max() + query_error + 1e-4
    unsure = (bound >= cosine[:, -1]).nonzero()[:, 0]
    for part in unsure.split(4096):
        cosine[part], nearest[part] = _nearest(keys, norms, queries[part], k, device)
    return cosine, nearest


def _unit_keys_in_bfloat16(
    keys: Tensor, norms: Tensor, errors: list[Tensor]
) -> Iterator[tuple[Tensor, None]]:
    """Unit keys in bfloat16, in parts; the largest rounding errors are added to ``errors``."""
    rows = _rows(keys.shape[1])
    for part, lengths in zip(keys.split(rows), norms.split(rows), strict=True):
        rounded = torch.empty_like(part, dtype=torch.bfloat16)
        for start in range(0, len(part), 256):  # as many rows as fit in the CPU's cache
            few = slice(start, start + 256)
            unit = part[few] / lengths[few, None]
            rounded[few] = unit
            errors.append(_rounding_error(unit, rounded[few]).max())
        yield rounded, None


def _rounding_error(vectors: Tensor, rounded: Tensor) -> Tensor:
    """(N,) upper bounds of the lengths of the differences that rounding made."""
    return 1.01 * (vectors - rounded.float()).norm(dim=1)
