"""The streamed losses against plain NumPy and against float64 autograd."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cgh_models.losses import info_nce, relation_loss, soft_target


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


def near(rows, queue, seed=9):
    """Unit vectors that resemble rows of the queue, as trained projections do."""
    return F.normalize(
        queue[:rows].double() + 0.03 * unit(rows, queue.shape[1], seed=seed, dtype=torch.float64), dim=-1
    )


@functools.cache
def long_queue():
    """The papers' queue size."""
    return unit(131072, 512, seed=3)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("queue_length", [5, 4096, 5000])
def test_relation_loss_is_the_cross_entropy_of_the_paper(queue_length):
    s, t = unit(6, 8, seed=1, dtype=torch.float64), unit(6, 8, seed=2, dtype=torch.float64)
    qs, qt = unit(queue_length, 8, seed=3, dtype=torch.float64), unit(queue_length, 8, seed=4, dtype=torch.float64)
    p = softmax(t.numpy() @ qt.numpy().T / 0.04)
    log_q = np.log(softmax(s.numpy() @ qs.numpy().T / 0.1))
    expected = -(p * log_q).sum(1).mean()
    loss = relation_loss(s, soft_target(t, qt, qs, 0.04), qs, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_info_nce_is_the_paper_formula():
    s, k, q = (unit(n, 8, seed=i, dtype=torch.float64) for i, n in enumerate((6, 6, 5000)))
    logits = np.concatenate([(s * k).sum(1, keepdim=True).numpy(), s.numpy() @ q.numpy().T], 1) / 0.2
    expected = -np.log(softmax(logits)[:, 0]).mean()
    assert info_nce(s, k, q, 0.2).item() == pytest.approx(expected, rel=1e-12)


def reference_gradient(s, target_logits, queue, temperature, positive=None):
    s = s.double().requires_grad_()
    logits = s @ queue.double().T / temperature
    if positive is not None:
        logits = torch.cat([(s * positive.double()).sum(1, keepdim=True) / temperature, logits], 1)
        loss = F.cross_entropy(logits, torch.zeros(len(s), dtype=torch.int64))
    else:
        loss = -(target_logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    return torch.autograd.grad(loss, s)[0]


def errors(s, t, q, temperature):
    """Gradient errors (Frobenius) of both losses in float32 against float64 autograd, and the gradients' norms."""
    for loss, wanted in (
        (
            lambda s: relation_loss(s, soft_target(t, q, q, temperature), q, temperature),
            reference_gradient(s, t.double() @ q.double().T / temperature, q, temperature),
        ),
        (lambda s: info_nce(s, t, q, temperature), reference_gradient(s, None, q, temperature, positive=t)),
    ):
        mine = s.clone().requires_grad_()
        loss(mine).backward()
        yield (mine.grad - wanted).norm().item(), wanted.norm().item()


@pytest.mark.parametrize("temperature", [0.02, 0.04, 0.1, 0.2])
@pytest.mark.parametrize("resembles", [False, True], ids=["random", "resembles the queue"])
def test_float32_gradients_are_within_two_millionths_of_float64(temperature, resembles):
    q = long_queue()
    s = near(32, q).float() if resembles else unit(32, 512, seed=1)
    for error, norm in errors(s, unit(32, 512, seed=2), q, temperature):
        assert error <= 2e-6 * norm


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_where_student_and_teacher_agree_the_error_stays_small_beside_the_terms_that_cancel(temperature):
    """The gradient itself is then next to nothing, so the scale is that of its two terms, 1 / (t sqrt(N))."""
    q = long_queue()
    s, t = near(32, q, seed=1).float(), near(32, q, seed=2).float()
    for error, _ in errors(s, t, q, temperature):
        assert error <= 2e-6 / (temperature * 32**0.5)


def test_gradient_of_a_scaled_loss_is_scaled():
    s, q = unit(4, 8).requires_grad_(), unit(50, 8, seed=1)
    loss = info_nce(s, unit(4, 8, seed=2), q, 0.2)
    (g,) = torch.autograd.grad(3 * loss, s, retain_graph=True)
    (h,) = torch.autograd.grad(loss, s)
    assert torch.allclose(g, 3 * h)


def test_autocast_leaves_the_losses_in_float32():
    s, t, q = unit(4, 64), unit(4, 64, seed=1), unit(5000, 64, seed=2)
    plain = relation_loss(s, soft_target(t, q, q, 0.04), q, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = relation_loss(s, soft_target(t, q, q, 0.04), q, 0.1)
    assert torch.equal(plain, cast)
