"""The plan before the first step: what it says is true, and making it changes nothing."""

import dataclasses
import json
import re

import pytest
import torch
from small_runs import QUICK, build, final, stop_at

from cgh_models.cli.main import parse
from cgh_models.data.image_set import load
from cgh_models.errors import InputError, Interrupted
from cgh_models.methods import METHODS
from cgh_models.train import plan as plans
from cgh_models.train.checkpoint import newest
from cgh_models.train.loop import pretrain
from cgh_models.train.plan import plan
from cgh_models.view_recipes import RECIPES


@pytest.fixture
def images(image_root):
    return load(image_root / "train")


def plan_of(method, images, config):
    return plan(method, images, config, RECIPES[method.view_recipe])


def warnings_of(method, images, config):
    return [line for line in plan_of(method, images, config) if line.startswith("warning: ")]


@pytest.mark.parametrize("name", METHODS)
def test_a_plan_changes_neither_the_method_nor_what_is_random(images, name):
    method = build(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    lines = [line for line in plan_of(method, images, QUICK) if not line.startswith("warning: ")]
    assert 6 <= len(lines) <= 8 and all(len(line) < 160 for line in lines)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_the_numbers_of_a_plan_are_those_of_the_run(images, image_root, tmp_path):
    method = build()
    text = "\n".join(plan_of(method, images, QUICK))
    pretrain(method, image_root / "train", QUICK, tmp_path / "run")
    _, file = newest(tmp_path / "run", print)
    megabytes = float(re.search(r"files +([\d.,]+) MB a checkpoint", text)[1].replace(",", ""))
    assert megabytes == pytest.approx(file.stat().st_size / 1e6, rel=0.05, abs=0.1)
    assert "12: 3 epochs of 4, 16 images each; warm-up of 2" in text
    assert "queue    40 images, 0.62 times those of the set" in text


@pytest.mark.parametrize(
    "changes, settings, said",
    [
        ({}, {}, r"12 steps are few to learn from: --epochs 125 makes 500 or more"),
        ({}, {"queue_length": 100}, r"the queue \(100\) is larger than the set.*queue_length=32"),
        ({"batch_size": 4}, {}, "4 images a batch are few for batch norms"),
        ({}, {"global_teacher_temperature": 0.2}, "global_teacher_temperature=0.2 is above"),
    ],
)
def test_what_speaks_against_a_run_is_a_sentence(images, changes, settings, said):
    config = dataclasses.replace(QUICK, **changes)
    warnings = warnings_of(build(config=config, **settings), images, config)
    assert any(re.search(said, text) for text in warnings), warnings


def test_settings_for_a_gpu_are_named_with_flags_that_end_within_an_hour(images, monkeypatch):
    monkeypatch.setattr("cgh_models.train.plan.seconds_of_step", lambda *_: 0.5)
    for side, said in ((32, "--epochs 1800"), (128, "--image-size 64 --epochs 7200")):
        config = dataclasses.replace(QUICK, epochs=10_000, image_size=side)
        planned = plan_of(build(config=config), images, config)
        assert f"with {said} it is about an hour here" in planned[-1]
        assert "about 6 hours on cpu" in "\n".join(planned)


def test_a_long_and_well_chosen_run_has_no_warning(images):
    config = dataclasses.replace(QUICK, epochs=200)
    assert warnings_of(build(config=config), images, config) == []


def test_a_dry_run_makes_no_folder_and_a_small_set_a_smaller_batch(image_root, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["pretrain", "--data", str(image_root / "train"), "--out", str(out), "--dry-run"]
    words += ["--arch", "test_resnet", "--image-size", "32", "--set", "queue_length=32"]
    parse([*words, "--set", "hidden_width=8"]).run()
    err = capsys.readouterr().err
    assert not out.exists() and "batch: 64, as there are 64 images" in err
    assert "steps    200: 200 epochs of 1, 64 images each" in err


SMALL_SET = "--recipe cifar --arch test_resnet --batch-size 24 --epochs 2 --eval-every -1"
SMALL_SET += " --device cpu --set projection_width=8 --set hidden_width=16"


def test_a_small_set_gets_a_queue_that_it_fills_and_the_run_keeps_it(
    image_root, tmp_path, in_process, monkeypatch
):
    words = ["pretrain", "--data", image_root / "train", *SMALL_SET.split(), "--out"]
    said = in_process(*words, "whole").err
    assert said.count("queue: 48, as there are 64 images; --set queue_length=N") == 1
    assert "larger than the set" not in said
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises((SystemExit, Interrupted)):
            in_process(*words, "parts")
    assert "queue" not in in_process("resume", "parts").err
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert stored["method_config"]["queue_length"] == 48
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert [v.shape[1] for k, v in whole.items() if k.endswith("queue.rows")] == [48]
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    said = in_process(*words, "tiny", "--batch-size", 100, "--dry-run").err
    assert "batch: 64, as there" in said and "queue: 64, as there" in said


def test_a_queue_that_was_asked_for_or_is_none_stays_as_it_is(image_root, in_process):
    words = ["pretrain", "--data", image_root / "train", *SMALL_SET.split(), "--out", "run"]
    said = in_process(*words, "--dry-run", "--set", "queue_length=100").err
    assert "queue: " not in said and "the queue (100) is larger than the set" in said
    assert "queue" not in in_process(*words, "--dry-run", "--method", "byol").err
    fits = in_process(*words, "--dry-run", "--set", "queue_length=64").err
    assert "queue: " not in fits and "larger than the set" not in fits


def test_one_image_is_no_set_to_train_on(image_root, tmp_path):
    one = next((image_root / "train").rglob("*.png"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(one.read_bytes())
    words = ["pretrain", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match="1 images: at least 2 are needed"):
        parse([*words, "--arch", "test_resnet"]).run()


def test_a_step_of_the_whole_batch_is_timed_once_its_memory_is_there(images, monkeypatch):
    taken, train_step = [], plans.train_step

    def counted(method, optimizer, views, *settings):
        taken.append(len(views[0]))
        return train_step(method, optimizer, views, *settings)

    monkeypatch.setattr(plans, "train_step", counted)
    config = dataclasses.replace(QUICK, batch_size=32)
    for fast, expected in ((float("inf"), [16, 16, 32, 32]), (0.0, [16, 16])):
        monkeypatch.setattr(plans, "_FAST", fast)
        plan_of(build(), images, config)
        assert taken == expected
        taken.clear()
