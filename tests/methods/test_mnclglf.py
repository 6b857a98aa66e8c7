"""MNCLGLF against the equations, in NumPy: local pairs, nearest neighbours, gradients."""

from itertools import combinations

import golden
import numpy as np
import pytest
import torch
from golden import array, long_head, normed_head, scatter, state, unit
from torch.utils.flop_counter import FlopCounterMode

from cgh_models.backbone import create
from cgh_models.errors import InputError
from cgh_models.methods.mnclglf import MNCLGLF, PAIRS

SMALL = dict(projection_width=8, hidden_width=16, predictor_width=12, queue_length=20)


def build(arch="resnet18_cifar_w16", size=32, model_args=None, **settings):
    torch.manual_seed(0)
    backbone = create(arch, {"input_size": (3, size, size)}, **(model_args or {}))
    made = MNCLGLF(backbone, MNCLGLF.Config(**(SMALL | settings)))
    scatter(made.student, 0.05, seed=1)
    scatter(made.teacher, 0.05, seed=2)
    return made


def three_views(count=4, size=32):
    return list(torch.randn(3, count, 3, size, size, generator=torch.Generator().manual_seed(3)))


@torch.no_grad()
def numpy_losses(method, views, temperature):
    """The local and the nearest loss of methods 3.3, from the backbones' embeddings on."""
    student, teacher, queue = method.student, method.teacher, array(method.queue.rows[0])
    g, g_teacher, q = state(student.projector), state(teacher.projector), state(student.predictor)
    n, _, height, width = views[0].shape
    p = [unit(normed_head(q, long_head(g, array(student.backbone(view))))) for view in views]
    local = []
    for global_, tiled in ((p[1], views[0]), (p[0], views[1])):
        cut = tiled.numpy().reshape(n, 3, 2, height // 2, 2, width // 2)
        tiles = cut.transpose(4, 2, 0, 1, 3, 5).reshape(
            4 * n, 3, height // 2, width // 2
        )  # left column first
        e = array(student.backbone(torch.from_numpy(tiles))).reshape(4, n, -1)
        pairs = list(combinations(range(4), 2))
        c = long_head(g, np.concatenate([(e[i] + e[j]) / 2 for i, j in pairs])).reshape(
            len(pairs), n, -1
        )
        local += [golden.batch_info_nce(global_, unit(one), temperature) for one in c]
    assert len(local) == 12
    j1, j3 = (long_head(g_teacher, array(teacher.backbone(views[i]))) for i in (0, 2))
    near1, near3 = golden.nearest(j1, queue), golden.nearest(j3, queue)
    nearest = (
        golden.nt_xent(near3, p[0], temperature) + golden.nt_xent(near1, p[2], temperature)
    ) / 2
    return sum(local) / 12, nearest


@pytest.mark.parametrize("local_gradient", [True, False])
@pytest.mark.parametrize(
    "batch, projection, hidden, predictor", [(2, 8, 16, 12), (5, 4, 24, 8), (7, 16, 8, 32)]
)
def test_the_losses_are_the_equations(batch, projection, hidden, predictor, local_gradient):
    method = build(
        projection_width=projection,
        hidden_width=hidden,
        predictor_width=predictor,
        temperature=0.3,
        nearest_weight=2.5,
        local_gradient=local_gradient,
    )
    views = three_views(batch)
    local, nearest = numpy_losses(method, views, 0.3)
    losses = {key: value.item() for key, value in method(views, 0.5).items()}
    assert losses == pytest.approx(
        {"local": local, "nearest": nearest, "loss": local + 2.5 * nearest}, rel=1e-5
    )


def test_the_defaults_are_the_authors():
    c = MNCLGLF.Config()
    assert (c.temperature, c.nearest_weight, c.queue_length, c.teacher_momentum) == (
        1,
        6,
        16384,
        0.99,
    )
    assert (c.projection_width, c.hidden_width, c.predictor_width, c.local_gradient) == (
        2048,
        2048,
        512,
        True,
    )
    assert len(PAIRS) == 6


def gradients(method, term, views):
    losses = method(views, 0.5)
    method.zero_grad(set_to_none=True)
    losses[term].backward()
    return {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


def test_the_local_loss_reaches_backbone_projector_and_predictor_and_no_teacher():
    method = build()
    local = gradients(method, "local", three_views())
    student = {f"student.{key}" for key, _ in method.student.named_parameters()}
    assert set(local) == student
    assert all(g.abs().sum() > 0 for g in local.values())


def test_without_the_local_gradient_what_is_left_is_the_nearest_loss_times_its_weight():
    views, weight = three_views(), 4.0  # a power of two: scaling by it rounds nothing
    plain = build(local_gradient=False, nearest_weight=weight)
    assert not plain(views, 0.5)["local"].requires_grad
    total, nearest = gradients(plain, "loss", views), gradients(plain, "nearest", views)
    assert (
        set(total)
        == set(nearest)
        == {f"student.{key}" for key, _ in plain.student.named_parameters()}
    )
    for key, g in total.items():
        assert torch.equal(g, weight * nearest[key]), key
    figure = gradients(build(nearest_weight=weight), "loss", views)
    assert any(golden.relative(figure[key], total[key]) > 0.01 for key in total)


@pytest.mark.parametrize("local_gradient", [True, False])
def test_the_second_view_moves_the_gradient_only_through_the_local_loss(local_gradient):
    one, other = three_views(), three_views()
    other[1] = torch.randn_like(other[1])
    a, b = (
        gradients(build(local_gradient=local_gradient), "loss", views) for views in (one, other)
    )
    assert all(torch.equal(a[key], b[key]) for key in a) is not local_gradient


def test_without_the_local_gradient_a_third_of_the_backward_is_not_paid_for():
    def backward(local_gradient):
        method, views = build(local_gradient=local_gradient), three_views()
        losses = method(views, 0.5)
        with FlopCounterMode(display=False) as flops:
            losses["loss"].backward()
        return flops.get_total_flops()

    assert backward(False) == pytest.approx(backward(True) * 2 / 3, rel=0.01)


def test_tiles_leave_running_statistics_alone():
    method, views = build(), three_views()
    method._pairs_of_tiles(views[0])
    fresh = build()
    for key, value in method.state_dict().items():
        if "running_" in key:
            assert torch.equal(value, fresh.state_dict()[key]), key
    for view in views:  # the step as a whole moves them as three whole views do
        fresh._predict(view)
    method(views, 0.5)
    for key, value in method.student.state_dict().items():
        if "running_" in key:
            assert torch.equal(value, fresh.student.state_dict()[key]), key


def test_tiles_are_normalized_by_their_own_statistics():
    """With running statistics a projection would not depend on the other images."""
    method, view = build(), three_views()[0]
    whole, part = method._pairs_of_tiles(view), method._pairs_of_tiles(view[:2])
    assert whole.shape == (6, 4, 8) and not torch.allclose(whole[:, :2], part, atol=1e-3)


def test_the_queue_takes_the_teachers_third_view_after_the_step():
    method, views = build(), three_views()
    before = method.queue.rows.clone()
    third = unit(
        long_head(state(method.teacher.projector), array(method.teacher.backbone(views[2])))
    )
    method(views, 0.5)
    assert torch.equal(before, method.queue.rows)
    method.after_step(0.5)
    np.testing.assert_allclose(array(method.queue.rows[0, :4]), third, atol=1e-5)
    assert torch.equal(before[0, 4:], method.queue.rows[0, 4:])


def enlarged(x):
    """Doubles the last axis, bilinear: a quarter of the neighbour, the edge repeated."""
    left, right = (
        np.concatenate(p, -1) for p in ((x[..., :1], x[..., :-1]), (x[..., 1:], x[..., -1:]))
    )
    return np.stack([0.75 * x + 0.25 * left, 0.75 * x + 0.25 * right], -1).reshape(
        *x.shape[:-1], -1
    )


def test_a_backbone_of_a_fixed_size_sees_its_tiles_enlarged():
    method = build("test_vit", 64, {"dynamic_img_size": False}).eval()
    seen = []
    method.student.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    view = three_views(2, 64)[0]
    assert method._pairs_of_tiles(view).shape == (6, 2, 8)
    tiles = (
        view.numpy().reshape(2, 3, 2, 32, 2, 32).transpose(2, 4, 0, 1, 3, 5).reshape(8, 3, 32, 32)
    )
    wanted = enlarged(enlarged(tiles).swapaxes(2, 3)).swapaxes(2, 3)
    np.testing.assert_allclose(array(*seen), wanted, atol=1e-5)
    losses = method.train()(three_views(2, 64), 0.5)
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("arch, size", [("resnet18_cifar_w16", 32), ("test_vit", 64)])
def test_a_backbone_that_takes_other_sizes_sees_the_tiles_as_they_are(arch, size):
    method, seen = build(arch, size), []
    method.student.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    method(three_views(4, size), 0.5)
    assert sorted(seen) == sorted([(4, 3, size, size)] * 3 + [(16, 3, size // 2, size // 2)] * 2)


@pytest.mark.parametrize("arch, size", [("test_convnext", 32), ("test_convnext", 48)])
def test_tiles_too_small_for_a_backbone_are_one_sentence(arch, size):
    with pytest.raises(InputError) as refusal:
        build(arch, size)
    sentence = str(refusal.value)
    assert "\n" not in sentence and arch in sentence and "--image-size" in sentence


def test_tiles_of_an_odd_side_are_checked_at_the_side_they_have():
    with pytest.raises(InputError, match="31 x 31"):
        build("test_convnext", 63)(three_views(2, 63), 0.5)
