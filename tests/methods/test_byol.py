"""BYOL against the paper's equation, in NumPy."""

import golden
import pytest
import torch
from golden import array, normed_head, scatter, state

from cgh_models.backbone import create
from cgh_models.methods.byol import BYOL
from cgh_models.schedule import cosine_momentum


def build(**settings):
    torch.manual_seed(0)
    config = BYOL.Config(**(dict(projection_width=8, hidden_width=16) | settings))
    method = BYOL(create("resnet18_cifar_w16"), config)
    scatter(method.student, 0.05, seed=1)
    scatter(method.teacher, 0.05, seed=2)
    return method


def two_views(count):
    return list(torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("batch, width, hidden", [(2, 8, 16), (5, 4, 32), (9, 16, 8)])
def test_the_loss_is_the_sum_of_both_directions(batch, width, hidden):
    method = build(projection_width=width, hidden_width=hidden)
    x1, x2 = views = two_views(batch)
    q = state(method.student.predictor)

    def projection(branch, view):
        with torch.no_grad():
            return normed_head(state(branch.projector), array(branch.backbone(view)))

    one = golden.cosine_loss(
        normed_head(q, projection(method.student, x1)), projection(method.teacher, x2)
    )
    back = golden.cosine_loss(
        normed_head(q, projection(method.student, x2)), projection(method.teacher, x1)
    )
    assert one != pytest.approx(back, rel=1e-3)
    assert method(views, 0.5)["loss"].item() == pytest.approx(one + back, rel=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_teacher_follows_ever_more_slowly_and_keeps_statistics_of_its_own(progress):
    method = build(teacher_momentum=0.8)
    method(two_views(4), progress)
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    method.after_step(progress)
    share, student = cosine_momentum(0.8, progress), method.student.state_dict()
    parameters = {key for key, _ in method.teacher.named_parameters()}
    for key, value in method.teacher.state_dict().items():
        if key in parameters:
            torch.testing.assert_close(value, share * before[key] + (1 - share) * student[key])
        else:
            assert torch.equal(value, before[key]), key


def test_projector_and_predictor_have_one_norm_and_end_in_a_bias():
    method = build()
    for head in (method.student.projector, method.teacher.projector, method.student.predictor):
        names = {key for key, _ in head.named_parameters()}
        assert names == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert not hasattr(method.teacher, "predictor")
