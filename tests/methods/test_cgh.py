"""CGH against the paper's equations, in NumPy."""

import numpy as np
import pytest
import torch

from cgh_models.backbone import count_parts, create, embed
from cgh_models.methods.cgh import CGH, Hypercolumn
from cgh_models.methods.momentum_teacher import teacher_forward

SMALL = dict(projection_width=8, hidden_width=16, queue_length=40, warmup=0.5)


@pytest.fixture
def method():
    torch.manual_seed(0)
    method = CGH(create("resnet18_cifar_w16"), CGH.Config(**SMALL))
    with torch.no_grad():  # a teacher of its own, so that nothing agrees by accident
        for p in method.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return method


def numpy_branch(branch, images):
    """Both unit projections, from the backbone's maps on: the paper's equations in NumPy."""
    embedding, maps = (x for x in embed(branch.backbone, images, 2))
    shallow, deep = (m.detach().numpy() for m in maps)
    n, c, h, w = shallow.shape
    halved = shallow.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))  # exact factor 2: 2x2 average
    column = np.concatenate([halved, deep], 1)
    mixed = np.einsum(
        "dc,nchw->ndhw", branch.hypercolumn.conv.weight.detach().numpy()[:, :, 0, 0], column
    )
    mean, var = mixed.mean((0, 2, 3), keepdims=True), mixed.var((0, 2, 3), keepdims=True)
    scale, shift = (p.detach().numpy()[:, None, None] for p in branch.hypercolumn.norm.parameters())
    hyper = np.maximum((mixed - mean) / np.sqrt(var + 1e-5) * scale + shift, 0).mean((2, 3))
    out = []
    for head, x in (
        (branch.projector, embedding.detach().numpy()),
        (branch.hyper_projector, hyper),
    ):
        first, last = head[0], head[2]
        x = np.maximum(x @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
        x = x @ last.weight.detach().numpy().T + last.bias.detach().numpy()
        out.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    return out


def cross_entropy(
    teacher, teacher_queue, student, student_queue, teacher_temperature, student_temperature
):
    a, b = (
        teacher @ teacher_queue.T / teacher_temperature,
        student @ student_queue.T / student_temperature,
    )
    p = np.exp(a - a.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    log_q = b - b.max(1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(1, keepdims=True))
    return -(p * log_q).sum(1).mean()


def info_nce(student, positive, queue, temperature):
    logits = (
        np.concatenate([(student * positive).sum(1, keepdims=True), student @ queue.T], 1)
        / temperature
    )
    logits -= logits.max(1, keepdims=True)
    return -(logits[:, 0] - np.log(np.exp(logits).sum(1))).mean()


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_losses_are_the_equations(method, progress):
    weak, strong = torch.randn(2, 6, 3, 32, 32)
    z1, h1 = numpy_branch(method.student, strong)
    z2, h2 = numpy_branch(method.teacher, weak)
    qg, qh = method.queue.rows.numpy()
    losses = {k: v.item() for k, v in method([weak, strong], progress).items()}

    hyper = cross_entropy(z2, qg, h1, qh, 0.04, 0.08)
    consistency = cross_entropy(h2, qh, z1, qg, 0.08, 0.10)
    start = info_nce(z1, z2, qg, 0.2) + info_nce(h1, h2, qh, 0.2)
    alpha = min(progress / 0.5, 1)
    assert losses["global_to_hyper"] == pytest.approx(hyper, rel=1e-5)
    assert losses["hyper_to_global"] == pytest.approx(consistency, rel=1e-5)
    assert losses["loss"] == pytest.approx(
        (1 - alpha) * start + alpha / 2 * (hyper + consistency), rel=1e-5
    )
    assert ("info_nce" in losses) == (progress < 0.5)


def test_both_queues_are_written_at_the_same_rows(method):
    views = list(torch.randn(2, 6, 3, 32, 32))
    before = method.queue.rows.clone()
    method(views, 1.0)
    ((whole, hyper),) = method.queue._pending
    method.after_step(1.0)
    changed = (method.queue.rows != before).any(2)  # (2, K)
    assert torch.equal(changed[0], changed[1]) and changed[0].sum() == 6
    assert torch.equal(method.queue.rows[0, :6], whole)
    assert torch.equal(method.queue.rows[1, :6], hyper)


def test_the_queue_does_not_hold_the_batch_while_its_loss_is_taken(method):
    views = list(torch.randn(2, 6, 3, 32, 32))
    before = method.queue.rows.clone()
    method(views, 0.1)
    assert torch.equal(before, method.queue.rows)


def test_a_hypercolumn_of_one_tap_and_of_three():
    maps = [torch.randn(2, c, s, s) for c, s in ((4, 8), (6, 4), (8, 2))]
    for taps in (1, 3):
        column = Hypercolumn([m.shape[1] for m in maps[-taps:]], 5)
        assert column(maps[-taps:]).shape == (2, 5)


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_running_statistics_of_parts_are_their_plain_mean(splits):
    norm = torch.nn.BatchNorm1d(4)
    parts = torch.randn(splits, 5, 4, generator=torch.Generator().manual_seed(0)) * 3
    for part in count_parts(norm, splits):
        norm(parts[part])
    torch.testing.assert_close(norm.running_mean, 0.1 * parts.mean((0, 1)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * parts.var(1).mean(0))
    assert norm.momentum == 0.1


def test_the_norm_of_the_hypercolumn_sees_the_same_parts_as_the_backbones():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    config = CGH.Config(**SMALL, batch_norm_splits=2)
    student = CGH(create("resnet18_cifar_w16"), config).student
    parts = torch.cat([student(part, 1)[1] for part in images.chunk(2)])
    torch.testing.assert_close(student(images, 2)[1], parts)
    student.split_hypercolumn = False  # as in runs before there was the setting
    assert not torch.allclose(student(images, 2)[1], parts, atol=1e-3)


def test_split_statistics_equal_separate_batches_and_keep_pairs_together():
    torch.manual_seed(0)
    plain = CGH(create("resnet18_cifar_w16"), CGH.Config(**SMALL))
    config = CGH.Config(**SMALL, batch_norm_splits=2)
    split = CGH(create("resnet18_cifar_w16"), config)
    split.load_state_dict(plain.state_dict())
    images = torch.randn(8, 3, 32, 32)
    whole = embed(split.student.backbone, images, 2, splits=2)[0]
    parts = torch.cat([embed(plain.student.backbone, part, 2)[0] for part in images.chunk(2)])
    assert torch.equal(whole, parts)
    moved, once = (net.student.backbone.bn1.running_mean for net in (split, plain))
    plain.load_state_dict(
        split.state_dict()
    )  # one update towards the mean of the parts, not one a part
    before = moved.clone()
    embed(split.student.backbone, images, 2, splits=2)
    embed(plain.student.backbone, images, 2)
    torch.testing.assert_close(moved - before, once - before, rtol=1e-4, atol=1e-7)
    split.eval()  # with frozen statistics the shuffle must not be visible at all
    assert torch.allclose(
        teacher_forward(split.teacher, images, 2)[0], split.teacher(images, 1)[0], atol=1e-6
    )
