"""The papers' formulas in NumPy, float64: heads, losses, nearest neighbour.

They share nothing with the package.

Arrays are (N, ...) as everywhere; a head's state is {name in the module: array}.
"""

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, np.ndarray]


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def state(module: nn.Module) -> State:
    """Parameters and buffers of a module, as they are now."""
    return {name: array(tensor).copy() for name, tensor in module.state_dict().items()}


def scatter(module: nn.Module, amount: float = 0.1, seed: int = 0) -> None:
    """Moves every parameter and running statistic, so that nothing agrees by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(amount * torch.randn(p.shape, generator=generator))
        for name, b in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.add_(amount * torch.rand(b.shape, generator=generator))


def linear(s: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ s[f"{name}.weight"].T + s.get(f"{name}.bias", 0)


def norm(s: State, name: str, x: np.ndarray, training: bool = True) -> np.ndarray:
    """Batch norm of (rows, channels): by the rows' own statistics, or by the running ones."""
    mean = x.mean(0) if training else s[f"{name}.running_mean"]
    var = ((x - mean) ** 2).mean(0) if training else s[f"{name}.running_var"]
    return (x - mean) / np.sqrt(var + 1e-5) * s[f"{name}.weight"] + s[f"{name}.bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def plain_head(s: State, x: np.ndarray) -> np.ndarray:
    """Linear, ReLU, linear: MoCo v2, ReSSL, CGH."""
    return linear(s, "2", relu(linear(s, "0", x)))


def normed_head(s: State, x: np.ndarray, training: bool = True) -> np.ndarray:
    """Linear, norm, ReLU, linear: heads of BYOL, LEWEL and SCE, predictor of NNCLR and MNCLGLF."""
    return linear(s, "3", relu(norm(s, "1", linear(s, "0", x), training)))


def long_head(s: State, x: np.ndarray) -> np.ndarray:
    """(Linear, norm, ReLU) twice, linear, norm: projector of NNCLR and MNCLGLF."""
    x = relu(norm(s, "1", linear(s, "0", x)))
    x = relu(norm(s, "4", linear(s, "3", x)))
    return norm(s, "7", linear(s, "6", x))


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one; one of zeros, which a head without biases can give, stays what it is."""
    return x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cosine_loss(p: np.ndarray, t: np.ndarray) -> float:
    return float((2 - 2 * (unit(p) * unit(t)).sum(-1)).mean())


def info_nce(s: np.ndarray, k: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Row i's positive is row i of ``k``, its negatives are the queue."""
    logits = np.concatenate([(s * k).sum(1, keepdims=True), s @ queue.T], 1) / temperature
    return float(-log_softmax(logits)[:, 0].mean())


def batch_info_nce(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    """Row i's positive is row i of ``b``, its negatives are the other rows of ``b``."""
    return float(-np.diagonal(log_softmax(a @ b.T / temperature)).mean())


def nt_xent(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    """One anchor after another: 1 positive, 2N - 2 negatives, itself left out."""
    rows, n = np.concatenate([a, b]), len(a)
    total = 0.0
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        logits = log_softmax(rows[others] @ rows[i] / temperature)
        total -= logits[others.index((i + n) % (2 * n))]
    return total / (2 * n)


def relation_loss(
    t: np.ndarray, teacher_queue: np.ndarray, s: np.ndarray, queue: np.ndarray, t_t, t_s
) -> float:
    """H(softmax(t.Qt / t_t), softmax(s.Qs / t_s)), ReSSL's and CGH's."""
    p = np.exp(log_softmax(t @ teacher_queue.T / t_t))
    return float(-(p * log_softmax(s @ queue.T / t_s)).sum(1).mean())


def similarity_contrast(
    s: np.ndarray, t: np.ndarray, queue: np.ndarray, contrast: float, t_s: float, t_t: float
) -> float:
    """SCE's, image after image, over the positive and the queue."""
    total = 0.0
    for student, positive in zip(s, t, strict=True):
        related = np.exp(queue @ positive / t_t)
        target = [contrast, *((1 - contrast) * related / related.sum())]
        chances = log_softmax(np.concatenate([positive[None], queue]) @ student / t_s)
        total -= np.dot(target, chances)
    return total / len(s)


def nearest(z: np.ndarray, queue: np.ndarray) -> np.ndarray:
    return queue[(unit(z) @ queue.T).argmax(1)]


def relative(mine: Tensor, wanted: Tensor) -> float:
    """Frobenius norm of the difference over that of what is wanted."""
    return ((mine.double() - wanted.double()).norm() / wanted.double().norm()).item()
