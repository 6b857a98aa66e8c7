"""Linear classifiers of fixed embeddings: logistic regression by L-BFGS, ridge regression."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.image_set import ImageSet
from .classifier import accuracy, best_of_grid, check_classes, predictions
from .devices import pick_device
from .embedder import extract_labelled
from .protocols import EvalSettings, Measurement
from .splits import held_out

Score = Callable[[np.ndarray], np.ndarray]  # of rows (n, D), those of targets (n, T)
# L2 penalties to choose from, strong to weak: the stronger of two that are equally good wins.
LBFGS_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
RIDGE_STRENGTHS = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Fit:
    """A fitted layer: weight (classes, D), bias (classes,), and numbers about the fit."""

    weight: Tensor
    bias: Tensor
    numbers: dict[str, float] = field(default_factory=dict)


def probe(
    protocol: str, model: nn.Module, train: ImageSet, val: ImageSet, settings: EvalSettings
) -> Measurement:
    """Accuracy of a classifier fitted to embeddings of the evaluation transform; see `classified`.

    ``protocol`` is "lbfgs" or "ridge".
    """
    assert train.labels is not None
    check_classes(train)
    held_out(train.labels, settings.seed)  # refuses too few images before the work
    rows, labels = extract_labelled(model, train, settings)
    queries, query_labels = extract_labelled(model, val, settings)
    predicted, parameters = classified(protocol, rows, labels, queries, settings)
    name = "multinomial logistic regression (L-BFGS)"
    if protocol == "ridge":
        name = "one-vs-all ridge regression (closed form)"
    name += " on standardized embeddings of plain train/, top-1 of val/"
    value = 100 * float((predicted == query_labels).mean())
    return Measurement(name, parameters | settings.recorded, value, len(queries))


def classified(
    protocol: str, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, settings: EvalSettings
) -> tuple[np.ndarray, dict[str, object]]:
    """Classes (M,) of queries (M, D) by a layer fitted to rows (N, D), and how it was fitted.

    Each dimension is standardized with the mean and deviation of the training images that are
    fitted. The penalty is chosen on held-out training images; then all training images are fitted.
    The arithmetic is float64; the embeddings take 8 N D bytes.
    """
    path = ridge_path if protocol == "ridge" else lbfgs_path
    grid = RIDGE_STRENGTHS if protocol == "ridge" else LBFGS_STRENGTHS
    device = _device(settings)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    classes = int(labels.max()) + 1
    rest, held = held_out(labels, settings.seed)
    known, asked = standardized(rows[rest], rows[held])
    accuracies = []
    fits = path(torch.from_numpy(known).to(device), y[rest], classes, grid)
    for strength, fit in zip(grid, fits, strict=True):
        value = accuracy(fit.weight, fit.bias, asked, labels[held])
        settings.log(f"L2 {strength:g}: {value:.2f} % of {len(held)} held-out training images")
        accuracies.append(value)
    strength, choice = best_of_grid(grid, accuracies, len(held))
    known, asked = standardized(rows, queries)
    (fit,) = path(torch.from_numpy(known).to(device), y, classes, (strength,))
    parameters = {"protocol": protocol, "l2": strength, "embeddings": "standardized", **fit.numbers}
    parameters |= {"seed": settings.seed, "choice": choice, "train": len(rows)}
    return predictions(fit.weight, fit.bias, asked), parameters


def best_layer(
    path: Callable[[Tensor, Tensor, Sequence[float]], Iterator[Fit]],
    grid: tuple[float, ...],
    known: tuple[np.ndarray, np.ndarray],
    held: np.ndarray,
    measure: tuple[str, Callable[[np.ndarray, np.ndarray], float]],
    settings: EvalSettings,
) -> tuple[Score, dict[str, Any]]:
    """A function from rows (n, D) to scores (n, T) by a fitted layer, and how it was chosen.

    Args:
        path: fits layers of penalties, strong to weak.
        known: rows (N, D) and their targets (N, T).
        held: mask (N,) of those to choose the penalty on.
        measure: its name, and itself, of expected (n, T) and found (n, T): the larger the better.
    """
    device = _device(settings)

    def layers(mask: np.ndarray, strengths: tuple[float, ...]) -> Iterator[Score]:
        mean, scale = moments(known[0][mask])
        x = torch.from_numpy((known[0][mask] - mean) / scale).to(device)
        for fit in path(x, torch.from_numpy(known[1][mask]).to(device), strengths):
            weight, bias = fit.weight.cpu().numpy(), fit.bias.cpu().numpy()
            yield lambda rows, w=weight, b=bias: (rows - mean) / scale @ w.T + b

    rows, expected = known[0][held], known[1][held]
    values = [measure[1](expected, score(rows)) for score in layers(~held, grid)]
    strength, choice = best_of_grid(grid, values, int(held.sum()), measure[0])
    (score,) = layers(np.ones(len(held), bool), (strength,))
    return score, {"l2": strength, "seed": settings.seed, "choice": choice}


def _device(settings: EvalSettings) -> torch.device:
    device = pick_device(settings.device)
    return torch.device("cpu") if device.type == "mps" else device  # it has no float64


def standardized(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both minus the mean of ``rows`` (N, D), over its deviation, in float64; 0 where that is 0."""
    mean, scale = moments(rows)
    return (rows - mean) / scale, (others - mean) / scale


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,) of rows (N, D), and the deviation, infinite where it is 0, in float64."""
    rows = rows.astype(np.float64)
    mean = rows.mean(0)
    deviation = rows.std(0)
    varies = deviation > 1e-12 + 1e-7 * np.abs(mean)  # more than float32's noise
    return mean, np.where(varies, deviation, np.inf)


def lbfgs_path(x: Tensor, y: Tensor, classes: int, strengths: Sequence[float]) -> Iterator[Fit]:
    """For each strength the layer of least mean cross-entropy + strength / 2 * |weight|^2.

    x (N, D) are the embeddings, y (N,) their classes, or (N, classes) the shares of these. Each
    strength starts from the solution of the one before. The weight is sought in coordinates where
    the loss is about equally curved in all directions: random backbones' embeddings, nearly all in
    one direction, take a tenth as long.
    """
    values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    for strength in strengths:
        # Cross-entropy's curvature along an embedding is p (1 - p) of its square; p starts uniform.
        curvature = values.clamp(min=0) * (classes - 1) / classes**2 + strength
        coordinates = vectors * curvature.rsqrt()  # (D, D): weight = free @ coordinates^T
        free = (weight @ vectors * curvature.sqrt()).requires_grad_()
        steps = _minimize(x, y, free, coordinates, bias, strength)
        weight = (free.detach() @ coordinates.t()).requires_grad_()
        gradients = torch.autograd.grad(_penalized(x, y, weight, bias, strength), (weight, bias))
        weight = weight.detach()
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        yield Fit(weight, bias.detach().clone(), {"steps": steps, "largest_gradient": largest})


def _minimize(
    x: Tensor, y: Tensor, free: Tensor, coordinates: Tensor, bias: Tensor, strength: float
) -> int:
    """Moves ``free`` and ``bias`` to the least `_penalized`; returns the number of steps."""
    optimizer = torch.optim.LBFGS(
        [free, bias],
        max_iter=2000,
        max_eval=4000,
        history_size=20,
        tolerance_grad=1e-6,  # it ends where no component of the gradient it sees is larger
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = _penalized(x, y, free @ coordinates.t(), bias, strength)
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return optimizer.state[free]["n_iter"]


def _penalized(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), y) + strength / 2 * weight.square().sum()


def ridge_path(x: Tensor, y: Tensor, classes: int, strengths: Sequence[float]) -> Iterator[Fit]:
    """`ridge_to` the one-hot of classes (N,)."""
    yield from ridge_to(x, F.one_hot(y, classes).to(x.dtype), strengths)


def ridge_to(x: Tensor, targets: Tensor, strengths: Sequence[float]) -> Iterator[Fit]:
    """For each strength the layer of least mean squared error to targets + strength * |weight|^2.

    x is (N, D), targets (N, T). In closed form: one eigendecomposition serves every strength.
    """
    centre = x.mean(0)
    share = targets.mean(0)
    x = x - centre
    values, vectors = torch.linalg.eigh(x.t() @ x / len(x))
    projected = vectors.t() @ (x.t() @ (targets - share)) / len(x)  # (D, T)
    for strength in strengths:
        weight = (vectors @ (projected / (values.clamp(min=0) + strength)[:, None])).t()
        yield Fit(weight, share - weight @ centre)
