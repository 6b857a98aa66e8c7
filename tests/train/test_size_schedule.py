"""Runs that begin with smaller views: which step sees which size, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from small_runs import QUICK, build

from cgh_models.cli.main import parse
from cgh_models.config import TrainConfig
from cgh_models.data.image_set import load
from cgh_models.data.loader import batches
from cgh_models.errors import InputError
from cgh_models.methods import METHODS
from cgh_models.report.contact_sheet import first_views
from cgh_models.train import plan as plans
from cgh_models.train.checkpoint import read_run
from cgh_models.train.loop import pretrain
from cgh_models.train.step import check_sizes
from cgh_models.view_recipes import RECIPES

SCHEDULE = dataclasses.replace(QUICK, size_schedule="20:0.7,32")  # 20 pixels until step 8 of 12
READINGS = {
    "in memory": {},
    "streamed": {"memory_gib": 0},
    "exact": {"views": "exact"},
}


def views_of(images, config, name="weak_strong"):
    """The views of all steps of a run, made as it makes them."""
    images.pixels = None
    images.cache_pixels(config.memory_gib)
    recipe = RECIPES[name]
    return list(batches(images, recipe, config, 0, 12, torch.device("cpu")))


@pytest.mark.parametrize("reading", READINGS)
def test_each_phase_has_the_views_that_a_run_of_its_size_has(image_root, reading):
    images = load(image_root / "train")
    config = dataclasses.replace(SCHEDULE, **READINGS[reading])
    plain = dataclasses.replace(config, size_schedule="")
    made = views_of(images, config)
    small = views_of(images, dataclasses.replace(plain, image_size=20))
    large = views_of(images, plain)
    sizes = [views[0].shape[2] for views, _ in made]
    assert sizes == [20] * 8 + [32] * 4
    for (views, indices), (expected, same) in zip(made, small[:8] + large[8:], strict=True):
        assert np.array_equal(indices, same)
        assert all(map(torch.equal, views, expected))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_it(image_root, tmp_path, name):
    method = build(name, SCHEDULE)
    sizes = []
    method.register_forward_pre_hook(lambda _, given: sizes.append(given[0][0].shape[2]))
    pretrain(method, image_root / "train", SCHEDULE, tmp_path / "run")
    assert sizes == [20] + [20] * 8 + [32] * 4  # the first is the try before the run
    assert read_run(tmp_path / "run")["train"]["size_schedule"] == "20:0.7,32"
    assert method.student.backbone.pretrained_cfg["input_size"] == (3, 32, 32)


@pytest.mark.parametrize(
    "schedule, epochs, phases",
    [
        ("24:0.75,32", 20, [(24, 15), (32, 20)]),
        ("16:0.3,24:0.4,32", 10, [(16, 3), (24, 7), (32, 10)]),
        ("24:0.5,32", 3, [(24, 1), (32, 3)]),
        ("24:0.29,32", 100, [(24, 29), (32, 100)]),
        ("24:0.9,32", 1, [(32, 1)]),  # the last size has an epoch at least
        ("8:0.1,24:0.5,32", 2, [(24, 1), (32, 2)]),
        ("", 7, [(32, 7)]),
    ],
)
def test_shares_of_the_run_are_whole_epochs(schedule, epochs, phases):
    config = TrainConfig(image_size=32, epochs=epochs, size_schedule=schedule)
    assert config.phases == phases
    seen = [config.size_in(epoch) for epoch in range(epochs)]
    begun = 0
    for size, end in phases:
        assert seen[begun:end] == [size] * (end - begun)
        begun = end
    assert config.size_in(2**31) == 32  # of the views that health is measured on


OTHERS = "24 24:0.75 24:1,32 24:0.6,28:0.4,32 24:-0.1,32 24:0,32 0:0.5,32 24:nan,32 a:0.5,32"
OTHERS += " 24:0.5, 24:0.5:1,32 24.5:0.5,32 , 24:0.5\t,b 40:0.5,32 32:0.5,32 24:1e-1,32 2_4:.5,32"


@pytest.mark.parametrize("text", [*OTHERS.split(" "), "24:0.5\n,32:0.1", "24:0.5,\n32"])
def test_other_texts_are_refused_in_one_sentence(text):
    with pytest.raises(
        InputError,
        match="shares that leave a rest, the last the --image-size .32., for example 24:0.75,32",
    ) as found:
        TrainConfig(image_size=32, size_schedule=text)
    assert "\n" not in str(found.value)


def test_the_last_size_is_the_image_size():
    with pytest.raises(InputError, match="24:0.75,32: .* the last the --image-size .64."):
        TrainConfig(image_size=64, size_schedule="24:0.75,32")


def test_a_size_that_the_network_cannot_take_is_refused_before_work_begins(image_root, tmp_path):
    method = build("cgh", SCHEDULE, arch="test_vit")
    expected = "size_schedule=20:0.7,32: cgh on test_vit cannot take 20 pixels"
    with pytest.raises(InputError, match=expected):
        pretrain(method, image_root / "train", SCHEDULE, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_so_is_one_that_only_a_part_of_the_method_cannot_take():
    """Tiles of 24 pixels vanish in VGG's five pools; its views of 48 do not."""
    config = dataclasses.replace(SCHEDULE, image_size=64, size_schedule="48:0.7,64")
    method = build("mnclglf", config, arch="vgg11_bn")
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(InputError, match="mnclglf on vgg11_bn cannot take 48 pixels .*larger size"):
        check_sizes(method, RECIPES[method.view_recipe], config)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_functions_of_the_callers_are_refused(image_root, tmp_path):
    views = [lambda image: image, lambda image: image]
    with pytest.raises(InputError, match="size_schedule=.* views that functions of yours make"):
        pretrain(build(), image_root / "train", SCHEDULE, tmp_path / "run", views=views)


def test_a_plan_says_the_sizes_and_times_each(image_root, monkeypatch):
    timed, train_step = set(), plans.train_step

    def noted(method, optimizer, views, *settings):
        timed.add(views[0].shape[2])
        return train_step(method, optimizer, views, *settings)

    monkeypatch.setattr(plans, "train_step", noted)
    images = load(image_root / "train")
    method = build("cgh", SCHEDULE)
    text = "\n".join(plans.plan(method, images, SCHEDULE, RECIPES[method.view_recipe]))
    assert timed == {20, 32}
    assert "(weak_strong; 20, 20 pixels before epoch 2, 32, 32 pixels)" in text


def test_pictures_of_views_are_of_the_last_size(image_root):
    images = load(image_root / "train")
    made, _ = first_views(SCHEDULE, images, RECIPES["weak_strong"], 4)
    assert [view.shape for view in made] == [(4, 3, 32, 32)] * 2


def test_from_the_command_line(image_root, tmp_path, capsys):
    given = ["pretrain", "--data", str(image_root / "train"), "--out", str(tmp_path / "run")]
    given += ["--recipe", "cifar", "--arch", "test_resnet", "--epochs", "2", "--batch-size", "32"]
    given += ["--set", "hidden_width=16", "--device", "cpu", "--eval-every=-1", "--size-schedule"]
    parse([*given, "24:0.5,32"]).run()
    assert "24, 24 pixels before epoch 1, 32, 32 pixels" in capsys.readouterr().err
    with pytest.raises(InputError, match="24:0.5,28: .* the last the --image-size .32."):
        parse([*given, "24:0.5,28"]).run()
