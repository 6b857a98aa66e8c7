"""Linear classifiers on fixed embeddings, protocols of their own: logistic regression by L-BFGS, ridge regression."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.image_set import ImageSet
from ..errors import InputError
from .classifier import accuracy, steps
from .extraction import extract, pick_device
from .splits import held_out

# Strengths of the L2 penalty to choose from, strong to weak: the stronger of two that are equally good wins.
LBFGS_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
RIDGE_STRENGTHS = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_MAX_STEPS, _GRADIENT = 2000, 1e-6  # L-BFGS ends where no component of the gradient it sees is larger

Fit = tuple[Tensor, Tensor, dict[str, Any]]  # weight (classes, D), bias (classes,), how the fit went


def probe(
    protocol: str, model: nn.Module, train: ImageSet, val: ImageSet, *,
    seed: int = 0, say: Callable[[str], None] = lambda text: None, **extraction: Any,
) -> dict[str, Any]:  # fmt: skip
    """Percent of val images that the classifier finds (``value``), and the numbers behind it.

    Embeddings of the evaluation transform, each dimension standardized with the mean and deviation of the training
    images that are fitted. The penalty is chosen on held-out training images; then all training images are fitted. The
    arithmetic is float64; embeddings that are held take 8 N D bytes.

    Args:
        protocol: "lbfgs" or "ridge".
        say: gets a line of progress now and then.
        extraction: batch_size, workers, device and cache_dir of `extract`.

    Raises:
        InputError: unusable images, or embeddings that are not finite.
    """
    assert train.labels is not None and val.labels is not None
    steps(train, 1, 2)  # says it if there is one class
    rest, held = held_out(train.labels, seed)
    fits, grid = {"lbfgs": (lbfgs_path, LBFGS_STRENGTHS), "ridge": (ridge_path, RIDGE_STRENGTHS)}[protocol]
    place = pick_device(extraction.get("device", "auto"))
    place = torch.device("cpu") if place.type == "mps" else place  # it has no float64
    rows, queries = (extract(model, images, **extraction) for images in (train, val))
    if not (np.isfinite(rows).all() and np.isfinite(queries).all()):
        raise InputError("the embeddings are not finite; give other weights, these diverged in training")
    classes = len(train.classes)
    found = []
    scaled, tested = standardized(rows[rest], rows[held])
    for strength, (weight, bias, _) in zip(grid, fits(scaled, train.labels[rest], classes, grid, place), strict=True):
        found.append(accuracy(weight, bias, tested, train.labels[held]))
        say(f"L2 {strength:g}: {found[-1]:.2f} % of {len(held)} held-out training images")
    best = grid[found.index(max(found))]
    scaled, tested = standardized(rows, queries)
    ((weight, bias, went),) = fits(scaled, train.labels, classes, (best,), place)
    choice = {"grid": list(grid), "held_out_images": len(held),
              "held_out_accuracy": [round(value, 3) for value in found], "chosen": best}  # fmt: skip
    value = accuracy(weight, bias, tested, val.labels)
    return {"value": value, "l2": best, "embeddings": "standardized", **went, "seed": seed, "choice": choice}


def standardized(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, minus the mean of ``rows`` (N, D) and over its deviation; constant dimensions become 0."""
    rows = rows.astype(np.float64)
    mean, deviation = rows.mean(0), rows.std(0)
    scale = np.where(deviation > 1e-12 + 1e-7 * np.abs(mean), deviation, np.inf)  # float32 noise is no signal
    return (rows - mean) / scale, (others - mean) / scale


def lbfgs_path(
    rows: np.ndarray, labels: np.ndarray, classes: int, strengths: tuple[float, ...], device: torch.device
) -> Iterator[Fit]:
    """For each strength the weight and bias that minimize mean cross-entropy + strength / 2 * |weight|^2.

    Full batches, strong Wolfe line search; each strength starts from the solution of the one before. The weight is
    sought in coordinates in which the penalized loss is about equally curved in all directions: random backbones'
    embeddings, nearly all in one direction, take a tenth of the steps.
    """
    x, y = torch.from_numpy(rows).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)
    values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=device)
    bias = torch.zeros(classes, dtype=x.dtype, device=device, requires_grad=True)
    for strength in strengths:
        # cross-entropy's curvature along an embedding is p (1 - p) of its square, at a uniform p at first
        curvature = values.clamp(min=0) * (classes - 1) / classes**2 + strength
        coordinates = vectors * curvature.rsqrt()  # (D, D): weight = free @ coordinates^T
        free = (weight @ vectors * curvature.sqrt()).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [free, bias], max_iter=_MAX_STEPS, max_eval=2 * _MAX_STEPS, history_size=20, tolerance_grad=_GRADIENT,
            tolerance_change=0.0, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss(optimizer=optimizer, strength=strength, free=free, coordinates=coordinates) -> Tensor:
            optimizer.zero_grad()
            value = _penalized(x, y, free @ coordinates.t(), bias, strength)
            value.backward()
            return value

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        weight = (free.detach() @ coordinates.t()).requires_grad_()
        gradients = torch.autograd.grad(_penalized(x, y, weight, bias, strength), (weight, bias))
        weight = weight.detach()
        count = optimizer.state[free]["n_iter"]
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        yield weight, bias.detach().clone(), {"steps": count, "largest_gradient": largest}


def _penalized(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), y) + strength / 2 * weight.square().sum()


def ridge_path(
    rows: np.ndarray, labels: np.ndarray, classes: int, strengths: tuple[float, ...], device: torch.device
) -> Iterator[Fit]:
    """For each strength the weight and bias that minimize mean squared error to one-hot + strength * |weight|^2.

    The closed form; one eigendecomposition of the covariance serves every strength.
    """
    x = torch.from_numpy(rows).to(device)
    y = F.one_hot(torch.from_numpy(labels.astype(np.int64)), classes).to(device, x.dtype)  # (N, classes)
    centre, share = x.mean(0), y.mean(0)
    x = x - centre
    values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
    target = vectors.t() @ (x.t() @ (y - share)) / len(x)  # (D, classes)
    for strength in strengths:
        weight = (vectors @ (target / (values.clamp(min=0) + strength)[:, None])).t()
        yield weight, share - weight @ centre, {}
