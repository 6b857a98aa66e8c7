"""NNCLR against the paper's equation, in NumPy."""

import golden
import numpy as np
import pytest
import torch
from golden import array, long_head, normed_head, scatter, state, unit

from cgh_models.backbone import create
from cgh_models.methods.nnclr import NNCLR


def build(**settings):
    torch.manual_seed(0)
    small = dict(projection_width=8, hidden_width=16, predictor_width=12, queue_length=30)
    method = NNCLR(create("resnet18_cifar_w16"), NNCLR.Config(**(small | settings)))
    scatter(method.student, 0.05, seed=1)
    return method


def two_views(count):
    return list(torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(3)))


@torch.no_grad()
def projection(method, view):
    return long_head(state(method.student.projector), array(method.student.backbone(view)))


@pytest.mark.parametrize(
    "batch, width, hidden, predictor, queue, temperature",
    [(2, 8, 16, 12, 30, 0.2), (6, 4, 24, 8, 3, 0.1), (9, 16, 8, 32, 200, 1.0)],
)
def test_the_loss_is_half_the_sum_of_both_directions(
    batch, width, hidden, predictor, queue, temperature
):
    method = build(
        projection_width=width,
        hidden_width=hidden,
        predictor_width=predictor,
        queue_length=queue,
        temperature=temperature,
    )
    views, rows = two_views(batch), array(method.queue.rows[0])
    z = [projection(method, view) for view in views]
    p = [unit(normed_head(state(method.student.predictor), one)) for one in z]
    one, back = (
        golden.batch_info_nce(golden.nearest(z[u], rows), p[1 - u], temperature) for u in (0, 1)
    )
    assert one != pytest.approx(back, rel=1e-4)
    assert method(views, 0.5)["loss"].item() == pytest.approx((one + back) / 2, rel=1e-5)


def test_the_queue_takes_the_second_views_unit_projections_after_the_step_and_not_before():
    method, views = build(), two_views(5)
    before = method.queue.rows.clone()
    second = unit(projection(method, views[1]))
    method(views, 0.5)
    assert torch.equal(before, method.queue.rows)
    method.after_step(0.5)
    np.testing.assert_allclose(array(method.queue.rows[0, :5]), second, atol=1e-5)
    assert torch.equal(before[0, 5:], method.queue.rows[0, 5:])


def test_an_image_that_was_queued_is_its_own_nearest_neighbour():
    method, views = build(temperature=0.1), two_views(5)
    views[1] = views[0]
    far = method(views, 0.5)["loss"]
    method.after_step(0.5)
    z = projection(method, views[0])
    np.testing.assert_allclose(golden.nearest(z, array(method.queue.rows[0])), unit(z), atol=1e-5)
    p = unit(normed_head(state(method.student.predictor), z))
    near = method(views, 0.5)["loss"].item()
    assert near == pytest.approx(golden.batch_info_nce(unit(z), p, 0.1), rel=1e-5) != far.item()


def test_the_gradient_comes_through_the_predictions_alone():
    method, views = build(), two_views(4)
    method(views, 0.5)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())
    assert not method.queue._pending[0].requires_grad and not hasattr(method, "teacher")
