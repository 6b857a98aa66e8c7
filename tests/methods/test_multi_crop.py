"""Multi-crop of CGH and ReSSL: one weak view teaches five student views of five sizes."""

import golden
import numpy as np
import pytest
import torch
from golden import array, plain_head, scatter, state, unit
from test_cgh import numpy_branch

from cgh_models.backbone import create
from cgh_models.errors import InputError
from cgh_models.methods import METHODS
from cgh_models.view_recipes import RECIPES

each = pytest.mark.parametrize("name", ["cgh", "ressl"])


def build(name, arch="resnet18_cifar_w16", size=32, model_args=None, **settings):
    torch.manual_seed(0)
    config = dict(projection_width=8, hidden_width=16, queue_length=40, multi_crop=True) | settings
    backbone = create(arch, {"input_size": (3, size, size)}, **(model_args or {}))
    method = METHODS[name](backbone, METHODS[name].Config(**config))
    scatter(method.teacher, 0.05, seed=2)
    return method


def six_views(size=32, count=5):
    generator = torch.Generator().manual_seed(3)
    sides = [view.side(size) for view in RECIPES["multi_crop"]]
    return [torch.randn(count, 3, side, side, generator=generator) for side in sides]


def projection(branch, view):
    with torch.no_grad():
        return unit(plain_head(state(branch.projector), array(branch.backbone(view))))


def test_ressls_loss_is_the_mean_over_five_student_views():
    method, views = build("ressl"), six_views()
    queue, t = array(method.queue.rows[0]), projection(method.teacher, views[0])
    each = [
        golden.relation_loss(t, queue, projection(method.student, v), queue, 0.04, 0.1)
        for v in views[1:]
    ]
    assert len(each) == 5 and np.std(each) > 1e-3
    assert method(views, 0.5)["loss"].item() == pytest.approx(np.mean(each), rel=1e-5)


def test_cghs_global_student_learns_the_mean_over_five_views_and_its_hypercolumn_from_one():
    method, views = build("cgh"), six_views()
    _, h2 = numpy_branch(method.teacher, views[0])
    queue, hyper_queue = array(method.queue.rows)
    each = [
        golden.relation_loss(h2, hyper_queue, projection(method.student, v), queue, 0.08, 0.1)
        for v in views[1:]
    ]
    assert len(each) == 5 and np.std(each) > 1e-3
    plain = build("cgh", multi_crop=False)
    plain.load_state_dict(method.state_dict())
    losses, of_two = method(views, 0.5), plain(views[:2], 0.5)
    assert losses["hyper_to_global"].item() == pytest.approx(np.mean(each), rel=1e-5)
    assert losses["global_to_hyper"].item() == pytest.approx(
        of_two["global_to_hyper"].item(), rel=1e-6
    )
    total = (losses["hyper_to_global"] + losses["global_to_hyper"]) / 2
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_small_views_take_no_part_in_cghs_warm_up_losses():
    method, views = build("cgh", warmup=1.0), six_views()
    plain = build("cgh", warmup=1.0, multi_crop=False)
    plain.load_state_dict(method.state_dict())
    losses, of_two = method(views, 0.25), plain(views[:2], 0.25)
    for term in ("info_nce", "hyper_info_nce"):
        assert losses[term].item() == pytest.approx(of_two[term].item(), rel=1e-6)
    crossed = (losses["hyper_to_global"] + losses["global_to_hyper"]) / 2
    wanted = 0.75 * (losses["info_nce"] + losses["hyper_info_nce"]) + 0.25 * crossed
    assert losses["loss"].item() == pytest.approx(wanted.item(), rel=1e-6)


@each
def test_each_small_view_has_a_gradient_and_the_queue_holds_the_weak_one_alone(name):
    method, views = build(name), six_views()
    views = [view.requires_grad_() for view in views]
    method(views, 0.5)["loss"].backward()
    assert views[0].grad is None and all(view.grad.abs().sum() > 0 for view in views[1:])
    wanted = projection(method.teacher, views[0])
    method.after_step(0.5)
    np.testing.assert_allclose(array(method.queue.rows[0, :5]), wanted, atol=1e-5)
    assert method.queue.position == 5


@each
def test_the_recipe_follows_the_setting(name):
    assert build(name).view_recipe == "multi_crop" and len(RECIPES["multi_crop"]) == 6
    assert build(name, multi_crop=False).view_recipe == "weak_strong"


@each
def test_a_vit_of_a_fixed_size_is_refused_in_one_sentence(name):
    with pytest.raises(InputError) as refusal:
        build(name, "test_vit", 64, {"dynamic_img_size": False})
    sentence = str(refusal.value)
    assert (
        sentence.startswith("multi_crop=True: test_vit cannot take images of 55 x 55")
        and "\n" not in sentence
    )
    assert build(name, "test_vit", 64, {"dynamic_img_size": False}, multi_crop=False)
