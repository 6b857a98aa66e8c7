"""What embeddings are worth: extraction, kNN accuracy, and signs of collapse."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import eval_batches, eval_transform
from .data import ImageSet, load
from .errors import InputError

_SCORES = 2**24  # similarities held at once: 64 MiB


def extract(
    model: nn.Module,
    data: str | Path | ImageSet,
    *,
    indices: np.ndarray | None = None,
    batch_size: int = 256,
    workers: int = 2,
    device: str | torch.device = "auto",
) -> np.ndarray:
    """Pooled embeddings (N, D) float32 of a headless timm module, in the set's order.

    Images pass through timm's evaluation transform for the model. The model's training mode and device are restored.

    Args:
        data: a folder, a list of paths, or an ImageSet.
        indices: take only these images, in this order.

    Raises:
        InputError: nothing to read there, or a bad image.
    """
    images = data if isinstance(data, ImageSet) else load(data)
    indices = np.arange(len(images)) if indices is None else indices
    parts = embeddings(model, images, indices, batch_size=batch_size, workers=workers, device=device)
    return np.concatenate(list(parts))


def embeddings(
    model: nn.Module,
    images: ImageSet,
    indices: np.ndarray,
    *,
    batch_size: int = 256,
    workers: int = 2,
    device: str | torch.device = "auto",
    replace: bool = False,
) -> Iterator[np.ndarray]:
    """The rows of `extract`, batch after batch; ``replace`` takes other images for bad ones, as training does."""
    if batch_size < 1 or workers < 0:
        raise InputError(f"batch size {batch_size}, workers {workers}: expected at least 1 and at least 0")
    home, training = next(model.parameters()).device, [m.training for m in model.modules()]
    place = pick_device(device)
    model.to(place).eval()
    try:
        for batch in eval_batches(images, indices, eval_transform(model), batch_size, workers, replace):
            with torch.inference_mode():
                yield model(batch.to(place, memory_format=torch.channels_last)).float().cpu().numpy()
    finally:
        model.to(home)
        for module, mode in zip(model.modules(), training, strict=True):
            module.training = mode


def pick_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Raises InputError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error


def knn(
    memory: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Predicted classes (M,) of queries (M, D) from the memory (N, D) with labels (N,).

    Cosine similarity; each of the k nearest votes for its class with weight exp(cosine / temperature).

    Raises:
        InputError: k is not between 1 and N, or the temperature is not positive.

    Source: Wu et al., arXiv 1805.01978, section 3.4.
    """
    if not 1 <= k <= len(memory):
        raise InputError(f"k={k}: expected 1 to {len(memory)}, the number of training images; give another --k")
    if not temperature > 0:
        raise InputError(f"temperature={temperature}: it has to be positive")
    keys = F.normalize(torch.from_numpy(memory).float())
    classes = torch.from_numpy(labels.astype(np.int64))
    count = int(classes.max()) + 1
    predicted = []
    for chunk in F.normalize(torch.from_numpy(queries).float()).split(max(1, _SCORES // len(keys))):
        cosine, nearest = (chunk @ keys.t()).topk(k)  # (n, k)
        weights = ((cosine - 1) / temperature).exp()
        votes = torch.zeros(len(chunk), count).scatter_add_(1, classes[nearest], weights)  # (n, classes)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


def knn_accuracy(
    backbone: nn.Module, train: ImageSet, val: ImageSet, *, k: int = 20, temperature: float = 0.07, **extraction
) -> float:
    """Share of val images whose class kNN over the train embeddings finds, in percent."""
    assert train.labels is not None and val.labels is not None
    memory = extract(backbone, train, **extraction)
    queries = extract(backbone, val, **extraction)
    found = knn(memory, train.labels, queries, k=k, temperature=temperature)
    return 100 * float((found == val.labels).mean())


def spread(embeddings: np.ndarray) -> dict[str, float]:
    """Two signs of collapse for embeddings (N, D).

    ``feature_std``: mean over dimensions of the standard deviation of unit embeddings, times sqrt(D): 0 if all are
    equal, 1 if they fill the sphere. ``effective_rank``: exp of the entropy of the normalized singular values of the
    centred embeddings, 1 to D (Roy and Vetterli, EUSIPCO 2007).
    """
    rows: Tensor = F.normalize(torch.from_numpy(embeddings).double())
    values = torch.linalg.svdvals(rows - rows.mean(0))
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    std = rows.std(0, correction=0).mean() * rows.shape[1] ** 0.5
    return {"feature_std": float(std), "effective_rank": float(entropy.exp())}
