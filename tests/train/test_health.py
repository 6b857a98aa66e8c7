"""Signs of health: what each is at its extremes; measuring changes nothing."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import QUICK, build

from cgh_models.data.image_set import load
from cgh_models.evaluate.collapse import feature_std
from cgh_models.methods import METHODS
from cgh_models.train.health import Health, dead_channels, uniformity
from cgh_models.train.optim import create_optimizer
from cgh_models.train.run import Run
from cgh_models.train.step import train_step
from cgh_models.train.verdict import OF_THE_VIEWS
from cgh_models.view_recipes import RECIPES

CPU = torch.device("cpu")


@pytest.fixture
def images(image_root):
    return load(image_root / "train")


def health_of(method, images):
    return probe_of(images, method.view_recipe)


def probe_of(images, view_recipe, config=QUICK):
    return Health(Run(Path("unused"), images, config, CPU, RECIPES[view_recipe]), 16)


def steps(method, count):
    optimizer = create_optimizer(method, QUICK)
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        views = [torch.randn(16, 3, 32, 32, generator=generator) for _ in RECIPES["three_strong"]]
        views = views[: len(RECIPES[method.view_recipe])]
        train_step(method, optimizer, views, 0.5, 0.01, "cpu", torch.float32)


def test_uniformity_is_zero_of_equal_rows_and_falls_as_they_spread():
    one = torch.ones(8, 4) / 2
    assert uniformity(one) == 0
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8)  # a distance of 2, squared, doubled


def test_dead_channels_are_those_with_one_value():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    rows[:, 1] = 3.0
    assert dead_channels(rows) == 0.25


@pytest.mark.parametrize("name", METHODS)
def test_measuring_changes_neither_the_method_nor_what_is_random(images, name):
    method = build(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    random = torch.get_rng_state()
    values = health_of(method, images)(method)
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == [module.training for module in method.modules()]
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(math.isfinite(value) for value in values.values())
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_measured_of_each_method(images, name):
    method = build(name)
    health = health_of(method, images)
    first = health(method)
    again = health(method)
    assert first.keys() - again.keys() == OF_THE_VIEWS
    moved = {"moved"} | ({"teacher_moved"} if hasattr(method, "teacher") else set())
    moved |= {"queue_moved"} if hasattr(method, "queue") else set()
    assert again.keys() - first.keys() == moved and all(again[key] == 0 for key in moved)
    assert all(again[key] == first[key] for key in first.keys() & again.keys())
    steps(method, 2)
    after = health(method)
    assert after["moved"] > 0 and after["weight_norm"] != first["weight_norm"]
    if hasattr(method, "teacher"):
        assert first["teacher_distance"] == 0 < after["teacher_distance"]
        assert 0 < after["teacher_moved"] < after["moved"]
        assert after["teacher_gradient"] == 0
    if hasattr(method, "queue"):
        assert after["queue_moved"] > 0 and 0 <= after["queue_std"] <= 1.01
    assert ("context_agreement" in after) == (name == "cgh")
    assert 0 <= after.get("relation_entropy", 0.5) <= 1


def test_the_extremes_of_teacher_and_queue(images):
    method = build("ressl")
    health = health_of(method, images)
    with torch.no_grad():
        method.teacher.projector[-1].weight.zero_()
        method.queue.rows.copy_(method.queue.rows[:, :1].expand_as(method.queue.rows))
    values = health(method)
    assert values["teacher_std"] < 1e-6 and values["queue_std"] < 1e-6
    assert values["relation_entropy"] == pytest.approx(1)


def test_views_of_the_probe_are_not_those_of_any_epoch_but_always_the_same(images):
    probe = probe_of(images, "two_strong")
    twice = [probe._make_views() for _ in range(2)]
    for first, second in zip(*twice, strict=True):
        assert torch.equal(first, second)
    config = dataclasses.replace(QUICK, seed=1)
    other = probe_of(images, "two_strong", config)._make_views()
    assert not torch.equal(twice[0][0], other[0])


def test_feature_std_is_one_on_the_sphere_and_zero_at_a_point():
    rows = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(rows) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(50, 16)) < 1e-6
