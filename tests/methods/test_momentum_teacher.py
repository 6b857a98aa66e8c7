"""The teacher: its momentum over a run, what follows the student, the order of split batches."""

import copy

import pytest
import timm
import torch
from torch import nn

from cgh_models.methods.momentum_teacher import make_teacher, teacher_forward, update_teacher
from cgh_models.schedule import cosine_momentum


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("start", [0.0, 0.5, 0.98, 1.0])
def test_the_momentum_goes_from_its_start_to_one_by_a_cosine(start):
    assert cosine_momentum(start, 0.0) == pytest.approx(start, abs=1e-12)
    assert cosine_momentum(start, 0.5) == pytest.approx((1 + start) / 2, abs=1e-12)
    assert cosine_momentum(start, 1.0) == pytest.approx(1.0, abs=1e-12)


def test_the_momentum_is_slow_at_both_ends():
    steps = [cosine_momentum(0.9, i / 100) for i in range(101)]
    assert steps == sorted(steps)
    assert steps[1] - steps[0] < 0.1 * (steps[51] - steps[50]) > steps[100] - steps[99]


def test_a_predictor_that_the_teacher_has_not_is_left_to_the_student():
    net = student()
    follower = make_teacher(net)
    net.predictor = nn.Linear(2, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    kept = copy.deepcopy(net.state_dict())
    old = copy.deepcopy(follower.state_dict())
    update_teacher(follower, net, 0.75)
    assert not [key for key in follower.state_dict() if "predictor" in key]
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    for key, p in follower.named_parameters():
        torch.testing.assert_close(p, old[key] + 0.25)


def test_parameters_are_paired_by_name_and_not_by_their_order():
    follower = make_teacher(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    turned = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    update_teacher(follower, turned, 0.0)
    assert torch.equal(follower["a"].weight, turned["a"].weight)
    assert torch.equal(follower["b"].weight, turned["b"].weight)


@pytest.mark.parametrize("buffers", [False, True])
def test_statistics_follow_only_if_asked_and_counts_are_copied(buffers):
    net = student()
    follower = make_teacher(net)
    net(torch.randn(8, 3))
    net(torch.randn(8, 3))
    old, theirs = copy.deepcopy(follower.state_dict()), net.state_dict()
    update_teacher(follower, net, 0.75, buffers=buffers)
    mine = follower.state_dict()
    for key in ("1.running_mean", "1.running_var"):
        wanted = 0.75 * old[key] + 0.25 * theirs[key] if buffers else old[key]
        torch.testing.assert_close(mine[key], wanted)
        assert not torch.equal(old[key], theirs[key])
    assert mine["1.num_batches_tracked"] == (2 if buffers else 0)


def test_the_teacher_is_a_copy_without_gradient():
    net = student()
    follower = make_teacher(net)
    assert all(p.requires_grad for p in net.parameters()) and not any(
        p.requires_grad for p in follower.parameters()
    )
    assert not {p.data_ptr() for p in net.parameters()} & {
        p.data_ptr() for p in follower.parameters()
    }


@pytest.mark.parametrize("tuple_", [False, True])
def test_split_batches_are_shuffled_for_the_branch_and_come_back_in_order(tuple_):
    torch.manual_seed(0)
    images, seen = torch.arange(32.0).reshape(32, 1).requires_grad_(), []

    def branch(given, splits):
        seen.append((given.clone(), splits))
        return (given + 1, given * 2) if tuple_ else given + 1

    out = teacher_forward(branch, images, 4)
    for mine, wanted in zip(out if tuple_ else (out,), (images + 1, images * 2), strict=False):
        assert torch.equal(mine, wanted) and not mine.requires_grad
    ((given, splits),) = seen
    assert (
        splits == 4 and not torch.equal(given, images) and torch.equal(given.sort(0).values, images)
    )
    teacher_forward(branch, images, 1)
    assert torch.equal(seen[1][0], images)


@pytest.mark.parametrize(
    "arch, settings",
    [
        ("levit_128s", {"embed_dim": (8, 16, 16), "num_heads": (1, 1, 1), "key_dim": 8}),
        ("efficientformerv2_s0", {"embed_dims": (8, 16, 16, 16)}),
    ],
)
def test_a_teacher_in_eval_mode_forgets_what_its_backbone_computed_from_older_parameters(
    arch, settings
):
    """These keep their attention biases in eval mode, which move with the parameters here."""
    net = timm.create_model(arch, num_classes=0, img_size=64, **settings)
    follower = make_teacher(net).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        follower(images)
        for p in net.parameters():
            p.add_(0.1)
        update_teacher(follower, net, 0.5)
        fresh = make_teacher(net).train().eval()
        fresh.load_state_dict(follower.state_dict())
        assert not follower.training and torch.equal(follower(images), fresh(images))
