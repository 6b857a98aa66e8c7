"""The streamed losses against plain NumPy and against float64 autograd."""

import functools

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import array, relative

from cgh_models.methods import losses
from cgh_models.methods.losses import (
    batch_info_nce,
    cosine_loss,
    crossed_relation_losses,
    info_nce,
    nearest,
    nt_xent,
    relation_loss,
)


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    ).to(dtype)


def near(rows, queue, seed=9):
    """Unit vectors that resemble rows of the queue, as trained projections do."""
    return F.normalize(
        queue[:rows].double() + 0.03 * unit(rows, queue.shape[1], seed=seed, dtype=torch.float64),
        dim=-1,
    )


@functools.cache
def long_queue():
    """The papers' queue size."""
    return unit(131072, 512, seed=3)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(s, qs, t, qt, student_temperature, teacher_temperature):
    p = softmax(t.numpy() @ qt.numpy().T / teacher_temperature)
    return -(p * np.log(softmax(s.numpy() @ qs.numpy().T / student_temperature))).sum(1).mean()


@pytest.mark.parametrize("queue_length", [5, 2048, 5000])
def test_relation_losses_are_the_cross_entropies_of_the_papers(queue_length):
    s, sh, t, th = (unit(6, 8, seed=i, dtype=torch.float64) for i in range(4))
    q, qh = queues = torch.stack(
        [unit(queue_length, 8, seed=i, dtype=torch.float64) for i in (5, 6)]
    )
    one, two = crossed_relation_losses((s, sh), (t, th), queues, (0.1, 0.07), (0.04, 0.08))
    assert one.item() == pytest.approx(cross_entropy(s, q, th, qh, 0.1, 0.08), rel=1e-12)
    assert two.item() == pytest.approx(cross_entropy(sh, qh, t, q, 0.07, 0.04), rel=1e-12)
    assert relation_loss(s, t, q, 0.1, 0.04).item() == pytest.approx(
        cross_entropy(s, q, t, q, 0.1, 0.04), rel=1e-12
    )


def test_several_views_have_the_mean_of_their_losses():
    s, t = unit(18, 8, seed=1, dtype=torch.float64), unit(6, 8, seed=2, dtype=torch.float64)
    q = unit(50, 8, seed=3, dtype=torch.float64)
    each = [cross_entropy(part, q, t, q, 0.1, 0.04) for part in s.split(6)]
    assert relation_loss(s, t, q, 0.1, 0.04).item() == pytest.approx(np.mean(each), rel=1e-12)


def test_each_context_has_the_gradient_of_its_own_loss():
    s, sh, t, th = (unit(6, 8, seed=i, dtype=torch.float64) for i in range(4))
    q, qh = queues = torch.stack([unit(5000, 8, seed=i, dtype=torch.float64) for i in (5, 6)])
    s.requires_grad_(), sh.requires_grad_()
    one, two = crossed_relation_losses((s, sh), (t, th), queues, (0.1, 0.07), (0.04, 0.08))
    mine = torch.autograd.grad(2 * one + 3 * two, [s, sh])
    wanted = (
        2 * reference_gradient(s, th @ qh.T / 0.08, q, 0.1),
        3 * reference_gradient(sh, t @ q.T / 0.04, qh, 0.07),
    )
    torch.testing.assert_close(mine[0], wanted[0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(mine[1], wanted[1], rtol=1e-10, atol=1e-14)


def test_info_nce_is_the_paper_formula():
    s, k, q = (unit(n, 8, seed=i, dtype=torch.float64) for i, n in enumerate((6, 6, 5000)))
    logits = (
        np.concatenate([(s * k).sum(1, keepdim=True).numpy(), s.numpy() @ q.numpy().T], 1) / 0.2
    )
    expected = -np.log(softmax(logits)[:, 0]).mean()
    assert info_nce(s, k, q, 0.2).item() == pytest.approx(expected, rel=1e-12)


def reference_gradient(s, target_logits, queue, temperature, positive=None):
    s = s.detach().double().requires_grad_()
    logits = s @ queue.double().T / temperature
    if positive is not None:
        logits = torch.cat([(s * positive.double()).sum(1, keepdim=True) / temperature, logits], 1)
        loss = F.cross_entropy(logits, torch.zeros(len(s), dtype=torch.int64))
    else:
        loss = -(target_logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    return torch.autograd.grad(loss, s)[0]


def errors(s, t, q, temperature):
    """Frobenius errors of both float32 gradients against float64, and the gradients' norms."""
    for loss, wanted in (
        (
            lambda s: relation_loss(s, t, q, temperature, temperature),
            reference_gradient(s, t.double() @ q.double().T / temperature, q, temperature),
        ),
        (
            lambda s: info_nce(s, t, q, temperature),
            reference_gradient(s, None, q, temperature, positive=t),
        ),
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
def test_where_student_and_teacher_agree_the_error_stays_small_beside_the_terms_that_cancel(
    temperature,
):
    """The gradient is then almost zero: the scale is that of its two terms, 1 / (t sqrt(N))."""
    q = long_queue()
    s, t = near(32, q, seed=1).float(), near(32, q, seed=2).float()
    for error, _ in errors(s, t, q, temperature):
        assert error <= 2e-6 / (temperature * 32**0.5)


def gather(cosine, *shape, seed):
    """Unit vectors whose mean cosine with each other is this one."""
    amount = (cosine / (1 - cosine)) ** 0.5
    return F.normalize(
        amount * unit(1, shape[-1], seed=99, dtype=torch.float64)
        + unit(*shape, seed=seed, dtype=torch.float64),
        dim=-1,
    )


def dense(s, sh, t, th, queues):
    """The losses with a batch x queue matrix: both relation losses of CGH, ReSSL's, InfoNCE."""
    (q, qh), nce = queues, torch.cat([(s * t).sum(1, keepdim=True), s @ queues[0].T], 1) / 0.2

    def relations(student, queue, student_t, teacher, target_queue, teacher_t):
        target = (teacher @ target_queue.T / teacher_t).softmax(1)
        return -(target * (student @ queue.T / student_t).log_softmax(1)).sum(1).mean()

    crossed = relations(s, q, 0.1, th, qh, 0.08) + relations(sh, qh, 0.08, t, q, 0.04)
    within = relations(s, q, 0.1, t, q, 0.04)
    return crossed, within, F.cross_entropy(nce, torch.zeros(len(s), dtype=torch.int64))


def streamed(s, sh, t, th, queues):
    crossed = crossed_relation_losses((s, sh), (t, th), queues, (0.1, 0.08), (0.04, 0.08))
    return sum(crossed), relation_loss(s, t, queues[0], 0.1, 0.04), info_nce(s, t, queues[0], 0.2)


@pytest.mark.parametrize("cosine", [0, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("length, width", [(4096, 128), (65536, 32)])
def test_in_a_queue_that_collapses_errors_are_at_most_twice_those_of_dense_float32(
    cosine, length, width
):
    rows = [gather(cosine, 16, width, seed=i) for i in range(4)]
    queues = torch.stack([gather(cosine, length, width, seed=i) for i in (5, 6)]).float()

    def measured(losses, dtype):
        """Each loss with its gradients, for projections of any length, the last layer's output."""
        projections = [row.float().to(dtype).requires_grad_() for row in rows]
        s, sh, t, th = map(F.normalize, projections)
        values = losses(s, sh, t.detach(), th.detach(), queues.to(dtype))
        for value in values:
            gradients = torch.autograd.grad(
                value, projections[:2], retain_graph=True, allow_unused=True
            )
            yield value, torch.cat([gradient for gradient in gradients if gradient is not None])

    for mine, plain, exact in zip(
        measured(streamed, torch.float32),
        measured(dense, torch.float32),
        measured(dense, torch.float64),
        strict=True,
    ):
        (value, gradient), (dense_value, dense_gradient), (wanted, wanted_gradient) = (
            mine, plain, exact
        )  # fmt: skip
        assert relative(gradient, wanted_gradient) <= 2 * relative(dense_gradient, wanted_gradient)
        error = 2 * relative(dense_value, wanted)
        assert relative(value, wanted) <= max(error, 2e-7)  # a unit of float32's last place


def test_gradient_of_a_scaled_loss_is_scaled():
    s, q = unit(4, 8).requires_grad_(), unit(50, 8, seed=1)
    loss = info_nce(s, unit(4, 8, seed=2), q, 0.2)
    (g,) = torch.autograd.grad(3 * loss, s, retain_graph=True)
    (h,) = torch.autograd.grad(loss, s)
    assert torch.allclose(g, 3 * h)


def test_autocast_leaves_the_losses_in_float32():
    s, t, q = unit(4, 64), unit(4, 64, seed=1), unit(5000, 64, seed=2)
    plain = relation_loss(s, t, q, 0.1, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        cast = relation_loss(s, t, q, 0.1, 0.04)
    assert torch.equal(plain, cast)


PAIRWISE = [batch_info_nce, nt_xent, lambda a, b, _: cosine_loss(a, b)]
NUMPY = [golden.batch_info_nce, golden.nt_xent, lambda a, b, _: golden.cosine_loss(a, b)]
pairwise = pytest.mark.parametrize(
    "loss, wanted", zip(PAIRWISE, NUMPY, strict=True), ids=["batch", "nt_xent", "cosine"]
)


@pairwise
@pytest.mark.parametrize("rows, width", [(1, 3), (2, 1), (3, 8), (17, 5), (64, 32)])
@pytest.mark.parametrize("temperature", [0.02, 0.2, 1.0])
def test_losses_within_a_batch_are_the_papers(loss, wanted, rows, width, temperature):
    a, b = (unit(rows, width, seed=i, dtype=torch.float64) for i in (1, 2))
    expected = wanted(array(a), array(b), temperature)
    assert loss(a, b, temperature).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert loss(a.float(), b.float(), temperature).item() == pytest.approx(
        expected, rel=2e-5, abs=2e-6 / temperature
    )


def test_the_cosine_loss_takes_rows_of_any_length():
    a, b = unit(6, 5, seed=1, dtype=torch.float64), unit(6, 5, seed=2, dtype=torch.float64)
    assert cosine_loss(3 * a, b / 7).item() == pytest.approx(
        golden.cosine_loss(array(a), array(b)), rel=1e-12
    )
    assert cosine_loss(a, a).item() == pytest.approx(0, abs=1e-12)
    assert cosine_loss(a, -a).item() == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize("groups, rows, width", [(1, 4, 3), (6, 5, 8), (3, 1, 4)])
def test_batch_info_nce_of_groups_is_the_mean_over_them(groups, rows, width):
    a, b = (unit(groups, rows, width, seed=i, dtype=torch.float64) for i in (1, 2))
    expected = np.mean(
        [golden.batch_info_nce(x, y, 0.2) for x, y in zip(array(a), array(b), strict=True)]
    )
    assert batch_info_nce(a, b, 0.2).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    turned = a.transpose(0, 1).contiguous().transpose(0, 1)  # as LEWEL_M and MNCLGLF hand them over
    assert batch_info_nce(turned, b, 0.2) == batch_info_nce(a, b, 0.2)
    assert batch_info_nce(a[:1].expand(groups, -1, -1), b, 0.2).item() == pytest.approx(
        np.mean([golden.batch_info_nce(array(a[0]), y, 0.2) for y in array(b)]),
        rel=1e-12,
        abs=1e-12,
    )


def plain_batch_info_nce(a, b, t):
    a, b = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    labels = torch.arange(a.shape[1])
    return torch.stack(
        [F.cross_entropy(x @ y.T / t, labels) for x, y in zip(a, b, strict=True)]
    ).mean()


def plain_nt_xent(a, b, t):
    rows = torch.cat([a, b])
    scores = (rows @ rows.T / t).masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(rows)).roll(len(a)))


def plain_cosine_loss(a, b, _):
    return (2 - 2 * torch.cosine_similarity(a, b)).mean()


within = pytest.mark.parametrize(
    "loss, plain, shape",
    [
        (batch_info_nce, plain_batch_info_nce, (32, 64)),
        (batch_info_nce, plain_batch_info_nce, (6, 32, 64)),
        (nt_xent, plain_nt_xent, (32, 64)),
        (PAIRWISE[2], plain_cosine_loss, (32, 64)),
    ],
    ids=["batch", "groups", "nt_xent", "cosine"],
)


def both_gradients(loss, plain, a, b, temperature):
    """Of 3 * loss, for both arguments: (float32 of ours, float64 of the plain formula)."""
    exact = [x.double().requires_grad_() for x in (a, b)]
    mine = [x.clone().requires_grad_() for x in (a, b)]
    (3 * plain(*exact, temperature)).backward()
    (3 * loss(*mine, temperature)).backward()
    return [(x.grad, y.grad) for x, y in zip(mine, exact, strict=True)]


@within
@pytest.mark.parametrize(
    "temperature, amount", [(0.02, 0), (0.1, 0), (0.2, 0), (1.0, 0), (0.2, 2), (1.0, 2)]
)
def test_float32_gradients_within_a_batch_are_within_two_millionths_of_float64(
    loss, plain, shape, temperature, amount
):
    a = unit(*shape, seed=1)
    b = F.normalize(
        amount * a + unit(*shape, seed=2), dim=-1
    )  # pairs that resemble each other, or do not
    for mine, exact in both_gradients(loss, plain, a, b, temperature):
        assert relative(mine, exact) <= 2e-6


@within
@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_where_pairs_agree_the_error_within_a_batch_stays_small_beside_the_terms_that_cancel(
    loss, plain, shape, temperature
):
    a = unit(*shape, seed=1)
    b = F.normalize(2 * a + unit(*shape, seed=2), dim=-1)
    rows = a.numel() // shape[-1]
    for mine, exact in both_gradients(loss, plain, a, b, temperature):
        assert (mine - exact).norm() <= 3 * 2e-6 / (temperature * rows**0.5)


@pytest.mark.parametrize("scores", [1, 2**20], ids=["chunks of 128", "one chunk"])
@pytest.mark.parametrize("length", [1, 5, 128, 129, 300])
@pytest.mark.parametrize("rows, width", [(1, 4), (7, 16)])
def test_nearest_is_the_row_with_the_largest_cosine(monkeypatch, scores, length, rows, width):
    monkeypatch.setattr(losses, "_SCORES", scores)
    query, queue = unit(rows, width, seed=1), unit(length, width, seed=2)
    wanted = golden.nearest(array(query), array(queue))
    np.testing.assert_array_equal(array(nearest(query, queue)), wanted)
    assert not nearest(query.requires_grad_(), queue).requires_grad


@pytest.mark.parametrize("places", [(3, 200), (200, 3), (127, 128), (10, 11)])
def test_of_equally_near_rows_the_first_is_taken(monkeypatch, places):
    monkeypatch.setattr(losses, "_SCORES", 1)  # chunks of 128
    queue = torch.tensor([[-1.0, 0.0]]).repeat(300, 1)
    queue[places[0]], queue[places[1]] = torch.tensor([0.5, 0.75]), torch.tensor([0.5, -0.75])
    found = nearest(torch.tensor([[1.0, 0.0]]), queue)
    assert torch.equal(found[0], queue[min(places)])


@pytest.mark.parametrize("length", [5, 128, 300])
def test_the_size_of_a_chunk_changes_no_loss(monkeypatch, length):
    s, t, q = (unit(n, 8, seed=i, dtype=torch.float64) for i, n in enumerate((6, 6, length)))
    whole = info_nce(s, t, q, 0.2), relation_loss(s, t, q, 0.1, 0.04)
    monkeypatch.setattr(losses, "_SCORES", 1)
    parts = info_nce(s, t, q, 0.2), relation_loss(s, t, q, 0.1, 0.04)
    for x, y in zip(whole, parts, strict=True):
        assert x.item() == pytest.approx(y.item(), rel=1e-12)
    assert whole[0].item() == pytest.approx(golden.info_nce(*map(array, (s, t, q)), 0.2), rel=1e-12)


def test_autocast_leaves_the_losses_within_a_batch_and_nearest_in_float32():
    a, b, q = unit(4, 64), unit(4, 64, seed=1), unit(5000, 64, seed=2)

    def values():
        found = nearest(a, q)
        return [found, info_nce(a, b, q, 0.2), *(loss(a, b, 0.1) for loss in PAIRWISE)]

    plain = values()
    with torch.autocast("cpu", torch.bfloat16):
        cast = values()
    assert all(
        torch.equal(x, y) and x.dtype == y.dtype == torch.float32
        for x, y in zip(plain, cast, strict=True)
    )


@pytest.mark.parametrize("rows", [256, 8192])  # 8192: LEWEL_M's 32 aligned embeddings of 256 images
def test_with_many_query_rows_nothing_of_size_batch_x_queue_is_kept(counters, rows):
    with torch.device("meta"):
        queue = torch.empty(16384, 128)
        s, t = torch.empty(rows, 128, requires_grad=True), torch.empty(rows, 128)
    limit = (
        4 * 2**20 + 10 * s.nbytes
    )  # the scores of one chunk, and a few tensors as large as the batch
    assert limit < rows * 16384 * 4 / 2
    with counters.LiveBytes() as live:
        nearest(t, queue)
    assert live.peak <= limit
    with counters.LiveBytes() as live:
        info_nce(s, t, queue, 0.2).backward()
    assert live.peak <= limit
