"""Which parameters are decayed or adapted, and what a step does with each optimizer."""

import dataclasses

import pytest
import torch
from small_runs import QUICK, build

from cgh_models.methods import METHODS
from cgh_models.recipes import train_config
from cgh_models.train.optim import create_optimizer, parameter_groups
from cgh_models.train.step import train_step


def names(method, groups, **wanted):
    """Names of the student's parameters in the groups whose keys have these values."""
    found = {
        id(p)
        for group in groups
        if all(group[k] == v for k, v in wanted.items())
        for p in group["params"]
    }
    return {name for name, p in method.student.named_parameters() if id(p) in found}


def undecayed(name, **train):
    method = build(name)
    groups = parameter_groups(method, dataclasses.replace(QUICK, weight_decay=0.1, **train))
    assert sum(len(group["params"]) for group in groups) == len(list(method.student.parameters()))
    return names(method, groups, weight_decay=0.0)


@pytest.mark.parametrize("name", ["cgh", "lewel", "mnclglf"])
def test_norms_and_biases_are_not_decayed_by_type(name):
    kept = undecayed(name)
    method = build(name)
    expected = {key for key, p in method.student.named_parameters() if p.ndim == 1}
    assert kept == expected and "backbone.layer2.0.downsample.1.weight" in kept
    assert undecayed(name, decay_norms=True) == set()


def test_norms_that_torch_does_not_know_and_scales_are_not_decayed():
    method = build(
        "moco_v2", arch="convnextv2_atto", config=dataclasses.replace(QUICK, image_size=64)
    )
    groups = parameter_groups(method, QUICK)
    kept = names(method, groups, weight_decay=0.0)
    assert any(".grn.weight" in key for key in kept) and all(
        ".norm" not in key for key in names(method, groups) - kept
    )


@pytest.mark.parametrize("name", METHODS)
def test_on_small_images_everything_is_decayed_as_the_authors_do_by_either_rule(name):
    assert (
        undecayed(name, decay_norms=True)
        == undecayed(name, decay_norms=True, paper_faithful=True)
        == set()
    )


def test_adamw_brings_a_rate_and_a_decay_of_its_own():
    for recipe in ("imagenet", "cifar"):
        train = train_config(recipe, "byol", "adamw")
        assert (train.optimizer, train.base_lr, train.weight_decay, train.decay_norms) == (
            "adamw",
            5e-4,
            0.05,
            False,
        )


def test_the_authors_rules_go_by_name():
    cgh, lewel = undecayed("cgh", paper_faithful=True), undecayed("lewel", paper_faithful=True)
    assert "backbone.layer1.0.bn1.weight" in cgh and "projector.0.bias" in cgh
    assert (
        "backbone.layer2.0.downsample.1.weight" not in cgh and "hypercolumn.norm.weight" not in cgh
    )
    assert "backbone.layer2.0.downsample.1.weight" in lewel and "backbone.bn1.weight" in lewel
    heads = {f"{name}.1.weight" for name in ("projector", "aligned_projector", "predictor")}
    assert heads | {"aligned_predictor.1.weight"} <= lewel  # EMAN: the norms of the heads, too
    assert (
        undecayed("mnclglf", paper_faithful=True)
        == undecayed("moco_v2", paper_faithful=True)
        == set()
    )
    assert undecayed("byol", paper_faithful=True) == undecayed("byol")  # its authors go by type


@pytest.mark.parametrize("setting", ["average_norms", "exempt_head_norms"])
def test_without_eman_and_in_earlier_runs_the_norms_of_lewels_heads_are_decayed(setting):
    method = build("lewel", **{setting: False})
    groups = parameter_groups(method, dataclasses.replace(QUICK, paper_faithful=True))
    kept = names(method, groups, weight_decay=0.0)
    assert "backbone.bn1.weight" in kept and not [key for key in kept if "or.1.weight" in key]


def test_the_predictor_of_mnclglf_keeps_its_rate_while_the_others_follow_the_schedule():
    method = build("mnclglf")
    optimizer = create_optimizer(method, dataclasses.replace(QUICK, base_lr=1.6))
    train_step(
        method, optimizer, list(torch.randn(3, 4, 3, 32, 32)), 0.5, 0.02, "cpu", torch.float32
    )
    held = names(method, optimizer.param_groups, lr=QUICK.batch_size / 256 * 1.6)
    assert held == {
        name for name, _ in method.student.named_parameters() if name.startswith("predictor.")
    }
    assert (
        names(method, optimizer.param_groups, lr=0.02)
        == {n for n, _ in method.student.named_parameters()} - held
    )


def test_gradients_are_clipped_to_the_norm_together():
    moved = {}
    for clip in (0.0, 0.01):
        method = build("ressl")
        before = [p.clone() for p in method.student.parameters()]
        config = dataclasses.replace(QUICK, momentum=0.0, weight_decay=0.0)
        views = list(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        out = train_step(
            method, create_optimizer(method, config), views, 0.5, 1.0, "cpu", torch.float32, clip
        )
        steps = [b - p.detach() for b, p in zip(before, method.student.parameters(), strict=True)]
        moved[clip] = torch.nn.utils.get_total_norm(steps)
        assert out["grad_norm"] > 0.01
    assert moved[0.01].item() == pytest.approx(0.01, rel=1e-2) and moved[0.0] > 0.02


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_a_non_finite_step_leaves_finite_weights_and_fused_ones_leave_the_student_as_it_was(
    optimizer,
):
    method = build("moco_v2")
    steps = create_optimizer(method, dataclasses.replace(QUICK, optimizer=optimizer))
    views = list(torch.randn(2, 8, 3, 32, 32))
    train_step(method, steps, views, 0.5, 0.1, "cpu", torch.float32)
    before = [p.clone() for p in method.student.parameters()]
    views[0][0, 0, 0, 0] = float("inf")
    assert train_step(method, steps, views, 0.5, 0.1, "cpu", torch.float32)["finite"] == 0
    assert all(torch.isfinite(p).all() for p in method.student.parameters())
    if optimizer != "lars":
        assert all(
            torch.equal(a, b) for a, b in zip(before, method.student.parameters(), strict=True)
        )


def test_lars_scales_a_decayed_weights_step_by_its_norm_and_leaves_norms_alone():
    """Source of the equation: You et al., arXiv 1708.03888, section 4, trust coefficient 0.001."""
    method = build("byol")
    config = dataclasses.replace(QUICK, optimizer="lars", weight_decay=0.5, momentum=0.0)
    optimizer = create_optimizer(method, config)
    weight, norm = method.student.projector[0].weight, method.student.projector[1].weight
    before = weight.detach().clone(), norm.detach().clone()
    method(list(torch.randn(2, 8, 3, 32, 32)), 0.5)["loss"].backward()
    gradients = weight.grad.clone(), norm.grad.clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    optimizer.step()
    trust = 0.001 * before[0].norm() / (gradients[0].norm() + 0.5 * before[0].norm())
    torch.testing.assert_close(
        weight.detach(), before[0] - 0.2 * trust * (gradients[0] + 0.5 * before[0])
    )
    torch.testing.assert_close(norm.detach(), before[1] - 0.2 * gradients[1])
