"""MoCo v2 against the paper's equation, in NumPy: one direction and both."""

import golden
import numpy as np
import pytest
import torch
from golden import array, plain_head, scatter, state, unit

from cgh_models.backbone import create
from cgh_models.methods.moco_v2 import MoCoV2


def build(**settings):
    torch.manual_seed(0)
    config = MoCoV2.Config(
        **(dict(projection_width=8, hidden_width=16, queue_length=40) | settings)
    )
    method = MoCoV2(create("resnet18_cifar_w16"), config)
    scatter(method.student, 0.05, seed=1)
    scatter(method.teacher, 0.05, seed=2)
    return method


def two_views(count):
    return list(torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(3)))


@torch.no_grad()
def projection(branch, view):
    return unit(plain_head(state(branch.projector), array(branch.backbone(view))))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "batch, width, hidden, queue, temperature", [(2, 8, 16, 40, 0.2), (5, 4, 32, 7, 0.07)]
)
def test_the_loss_is_the_equation(batch, width, hidden, queue, temperature, symmetric):
    method = build(
        projection_width=width,
        hidden_width=hidden,
        queue_length=queue,
        temperature=temperature,
        symmetric=symmetric,
    )
    x1, x2 = two_views(batch)
    rows = array(method.queue.rows[0])
    z1, z2, k1, k2 = (projection(b, x) for b in (method.student, method.teacher) for x in (x1, x2))
    one, back = (
        golden.info_nce(z1, k2, rows, temperature),
        golden.info_nce(z2, k1, rows, temperature),
    )
    assert method([x1, x2], 0.5)["loss"].item() == pytest.approx(
        (one + back) / 2 if symmetric else one, rel=1e-5
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_after_the_step_the_queue_holds_what_the_teacher_made_of_the_views_it_saw(symmetric):
    method, views = build(symmetric=symmetric), two_views(4)
    k1, k2 = (projection(method.teacher, view) for view in views)
    before = method.queue.rows.clone()
    method(views, 0.5)
    assert torch.equal(before, method.queue.rows)
    method.after_step(0.5)
    wanted = np.concatenate([k2, k1]) if symmetric else k2
    np.testing.assert_allclose(array(method.queue.rows[0, : len(wanted)]), wanted, atol=1e-5)
    assert torch.equal(before[0, len(wanted) :], method.queue.rows[0, len(wanted) :])
    assert method.queue.position == len(wanted)


def test_with_frozen_statistics_neither_parts_nor_their_shuffle_can_be_seen():
    plain, split = build().eval(), build(batch_norm_splits=2).eval()
    views = two_views(6)
    torch.testing.assert_close(plain(views, 0.5)["loss"], split(views, 0.5)["loss"])
    torch.testing.assert_close(plain.queue._pending, split.queue._pending)
    plain.train(), split.train()
    assert abs(plain(views, 0.5)["loss"] - split(views, 0.5)["loss"]) > 1e-4
