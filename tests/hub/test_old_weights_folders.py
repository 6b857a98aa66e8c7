"""Weights folders of earlier commits, whose heads are `pretrain.safetensors`, still work."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from cgh_models import create_model, load_method, verify
from cgh_models.hub import manifest
from cgh_models.hub.card import card_of
from cgh_models.hub.registry import start_from
from cgh_models.hub.row import BACKBONE, OLD_HEADS
from cgh_models.hub.timm_models import fingerprint
from cgh_models.methods import build_method

FOLDER = Path(__file__).resolve().parents[1] / "old_folders" / "weights"
ROW = json.loads((FOLDER / "weights.json").read_text())


def assert_fingerprint(model):
    found = fingerprint(model, ROW["preprocessing"]["input_size"])
    assert found == pytest.approx(ROW["fingerprint"], abs=1e-6)


def test_the_folder_is_one_of_the_old_kind():
    assert sorted(ROW["files"]) == [BACKBONE, OLD_HEADS] and (FOLDER / OLD_HEADS).is_file()
    assert manifest.read_row(FOLDER).heads_file == OLD_HEADS


def test_its_backbone_loads():
    assert_fingerprint(create_model(FOLDER))
    assert_fingerprint(create_model(f"local-dir:{FOLDER}"))
    classifier = create_model(FOLDER, num_classes=3).eval()
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_plain_timm_loads_it():
    assert_fingerprint(timm.create_model(f"local-dir:{FOLDER}", pretrained=True))


def test_its_method_loads():
    method = load_method(FOLDER)
    assert method.name == ROW["method"]
    assert_fingerprint(method.student.backbone)
    state = method.state_dict()
    heads = load_file(FOLDER / OLD_HEADS)
    assert len(heads) > 10 and all(torch.equal(state[key], value) for key, value in heads.items())


def test_it_is_verified():
    found = verify(FOLDER)
    assert found["files"] == [BACKBONE, OLD_HEADS] and found["parameters"] == ROW["parameters"]


def test_a_pretraining_starts_from_it():
    torch.manual_seed(0)
    images = {"input_size": (3, 32, 32)}
    method = build_method(ROW["method"], ROW["architecture"], images, ROW["method_config"])
    assert start_from(method, FOLDER).endswith("backbone, heads, teacher and queues")
    expected = load_method(FOLDER).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in method.state_dict().items())


def test_its_card_is_what_is_written_today_so_that_it_can_be_published():
    card = (FOLDER / "README.md").read_text("utf-8")
    assert card_of(FOLDER, manifest.read_row(FOLDER)) == card
