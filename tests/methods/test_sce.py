"""SCE against the paper's equations, in NumPy; between InfoNCE and ReSSL's relations."""

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import array, normed_head, scatter, state, unit

from cgh_models.backbone import create
from cgh_models.errors import InputError
from cgh_models.methods import losses
from cgh_models.methods.losses import info_nce
from cgh_models.methods.sce import SCE, similarity_contrast


def build(**settings):
    torch.manual_seed(0)
    config = dict(projection_width=8, hidden_width=16, queue_length=40) | settings
    method = SCE(create("resnet18_cifar_w16"), SCE.Config(**config))
    scatter(method.student, 0.05, seed=1)
    scatter(method.teacher, 0.05, seed=2)
    return method


@torch.no_grad()
def projection(branch, view):
    return unit(normed_head(state(branch.projector), array(branch.backbone(view))))


@pytest.mark.parametrize(
    "batch, width, hidden, queue, contrast, temperatures",
    [(2, 8, 16, 40, 0.5, (0.1, 0.05)), (5, 4, 32, 7, 0.2, (0.2, 0.07))],
)
def test_the_loss_is_the_equation(batch, width, hidden, queue, contrast, temperatures):
    t_s, t_t = temperatures
    method = build(
        projection_width=width,
        hidden_width=hidden,
        queue_length=queue,
        contrast=contrast,
        student_temperature=t_s,
        teacher_temperature=t_t,
    )
    views = torch.randn(2, batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    t, s = projection(method.teacher, views[0]), projection(method.student, views[1])
    wanted = golden.similarity_contrast(s, t, array(method.queue.rows[0]), contrast, t_s, t_t)
    assert method(list(views), 0.5)["loss"].item() == pytest.approx(wanted, rel=1e-5)


def vectors(*shape, seed, near=None):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows if near is None else near[: shape[0]] + 0.03 * rows, dim=-1)


def student_teacher_queue(length=5000, width=8, near=False):
    """In float64; near: student and teacher resemble rows of the queue, as trained ones do."""
    q = vectors(length, width, seed=3)
    return *(vectors(6, width, seed=seed, near=q if near else None) for seed in (1, 2)), q


def plain(s, t, q, contrast, t_s, t_t):
    """With a batch x queue matrix, for autograd."""
    scores = torch.cat([(s * t).sum(1, keepdim=True), s @ q.T], 1) / t_s
    related = (1 - contrast) * (t @ q.T / t_t).softmax(1)
    target = torch.cat([torch.full_like(scores[:, :1], contrast), related], 1)
    return -(target * scores.log_softmax(1)).sum(1).mean()


def value_and_gradient(loss, s, *rest):
    s = s.clone().requires_grad_()
    value = loss(s, *rest)
    return value.detach(), torch.autograd.grad(3 * value, s)[0]


SETTINGS = [(0.5, 0.1, 0.05), (0.0, 0.1, 0.05), (1.0, 0.1, 0.05), (0.3, 0.02, 0.02)]


@pytest.mark.parametrize("scores", [1, 2**20], ids=["chunks of 128", "chunks of 1,024"])
@pytest.mark.parametrize("length", [1, 129, 5000])
@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_those_of_the_plain_equation(monkeypatch, settings, length, scores):
    monkeypatch.setattr(losses, "_SCORES", scores)
    s, t, q = student_teacher_queue(length)
    value, gradient = value_and_gradient(similarity_contrast, s, t, q, *settings)
    wanted, wanted_gradient = value_and_gradient(plain, s, t, q, *settings)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert value.item() == pytest.approx(
        golden.similarity_contrast(*map(array, (s, t, q)), *settings), rel=1e-12
    )
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("near", [False, True], ids=["random", "near"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_float32_gradients_are_within_two_millionths_of_float64(settings, near):
    rows = [x.float() for x in student_teacher_queue(16384, 128, near)]
    value, gradient = value_and_gradient(similarity_contrast, *rows, *settings)
    wanted, wanted_gradient = value_and_gradient(plain, *(x.double() for x in rows), *settings)
    scale = wanted_gradient.norm()
    if near:  # student and teacher agree: the scale is that of the terms that cancel
        scale = 3 / (settings[1] * len(gradient) ** 0.5)
    assert (gradient - wanted_gradient).norm() <= 2e-6 * scale
    assert value.item() == pytest.approx(wanted.item(), rel=2e-6)


def test_with_all_of_the_target_on_the_positive_it_is_info_nce():
    rows = student_teacher_queue()
    mine = value_and_gradient(lambda *r: similarity_contrast(*r, 1.0, 0.1, 0.05), *rows)
    other = value_and_gradient(lambda *r: info_nce(*r, 0.1), *rows)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def test_with_none_on_the_positive_it_is_the_relation_loss_over_one_more_row():
    """The softmax has the positive: what is added is -log of the share that it leaves the queue."""
    s, t, q = map(array, student_teacher_queue())
    mine = similarity_contrast(*student_teacher_queue(), 0.0, 0.1, 0.05).item()
    scores = np.concatenate([(s * t).sum(1, keepdims=True), s @ q.T], 1) / 0.1
    share = 1 - np.exp(golden.log_softmax(scores)[:, 0])
    wanted = golden.relation_loss(t, q, s, q, 0.05, 0.1) - np.log(share).mean()
    assert mine == pytest.approx(wanted, rel=1e-12)


def test_the_loss_is_the_mean_of_both_ends_in_the_proportion_of_contrast():
    rows = student_teacher_queue()
    ends = [similarity_contrast(*rows, contrast, 0.1, 0.05).item() for contrast in (0.0, 1.0)]
    between = similarity_contrast(*rows, 0.3, 0.1, 0.05).item()
    assert between == pytest.approx(0.7 * ends[0] + 0.3 * ends[1], rel=1e-12)


def test_autocast_leaves_the_loss_in_float32():
    rows = [x.float() for x in student_teacher_queue()]
    whole = similarity_contrast(*rows, 0.5, 0.1, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        cast = similarity_contrast(*rows, 0.5, 0.1, 0.05)
    assert torch.equal(whole, cast) and cast.dtype == torch.float32


def test_nothing_of_size_batch_x_queue_is_kept(counters):
    with torch.device("meta"):
        queue = torch.empty(131072, 128)
        s, t = torch.empty(256, 128, requires_grad=True), torch.empty(256, 128)
    with counters.LiveBytes() as live:
        similarity_contrast(s, t, queue, 0.5, 0.1, 0.05).backward()
    assert live.peak <= 8 * 2**20 < 256 * 131072 * 4 / 8


def test_after_the_step_the_queue_holds_what_the_teacher_made_of_the_weak_view():
    method = build()
    views = list(torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    wanted, before = projection(method.teacher, views[0]), method.queue.rows.clone()
    method(views, 0.5)
    method.after_step(0.5)
    assert array(method.queue.rows[0, :4]) == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(before[0, 4:], method.queue.rows[0, 4:]) and method.queue.position == 4


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(InputError, match="contrast=1.5.*: at least 0 and at most 1"):
        SCE.Config(contrast=1.5)
