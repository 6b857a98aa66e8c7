"""`verify`: what is wrong with weights is found and named, whatever it is."""

import json
import shutil

import pytest
import torch
from conftest import cgh
from safetensors.torch import load_file, save_file
from test_export import run, weights  # noqa: F401 - fixtures

import cgh_models
from cgh_models import create_model, manifest
from cgh_models.errors import InputError, IntegrityError
from cgh_models.files import sha256
from cgh_models.integrity import fingerprint, verify


@pytest.fixture
def folder(weights, tmp_path):  # noqa: F811
    shutil.copytree(weights, tmp_path / "w")
    return tmp_path / "w"


def edit(folder, change):
    row = manifest.read_row(folder)
    change(row)
    (folder / manifest.ROW_FILE).write_text(json.dumps(row))


def replace(folder, file, change):
    """Other tensors under a description that has their hash: what only the later checks can find."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})

    def update(row):
        row["files"][file].update(sha256=sha256(folder / file), bytes=(folder / file).stat().st_size)

    edit(folder, update)


def test_what_was_exported_is_accepted(folder):
    done = verify(folder)
    row = manifest.read_row(folder)
    assert done["name"] == "test_resnet.cgh" and done["files"] == [manifest.BACKBONE, manifest.HEADS]
    assert done["parameters"] == row["parameters"] and done["fingerprint_error"] < 1e-5


KEY, HEAD = "layer1.0.conv1.weight", "student.projector.0.weight"
WRONG = {
    "a key is missing": (manifest.BACKBONE, lambda t: t.pop(KEY), r"1 of \d+ tensors are missing, .* " + KEY),
    "a key too many": (manifest.BACKBONE, lambda t: t.update(fc=torch.ones(1)), "first are fc"),
    "another shape": (manifest.BACKBONE, lambda t: t.update({KEY: torch.ones(3)}), "of another shape"),
    "not a number": (
        manifest.BACKBONE,
        lambda t: t[KEY].view(-1)[5:6].fill_(torch.nan),
        f"{KEY} holds values that are",
    ),
    "infinite": (manifest.HEADS, lambda t: t[HEAD].view(-1)[:1].fill_(torch.inf), f"{HEAD} holds values that are not"),
    "whole numbers": (manifest.BACKBONE, lambda t: t.update({KEY: t[KEY].char()}), "is torch.int8, not floating point"),
    "all zero": (manifest.BACKBONE, lambda t: [v.zero_() for v in t.values()], "its fingerprint is off by"),
    "other weights": (manifest.BACKBONE, lambda t: t[KEY].mul_(1.5), "its fingerprint is off by"),
    "a head is missing": (manifest.HEADS, lambda t: t.pop(HEAD), "tensors are missing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_tensors_are_refused(folder, wrong):
    file, change, message = WRONG[wrong]
    replace(folder, file, change)
    with pytest.raises(IntegrityError, match=message) as refused:
        verify(folder)
    assert len(str(refused.value)) < 420


LIES = {
    "another hash": (lambda r: r["files"][manifest.HEADS].update(sha256="0" * 64), "sha256 differs: expected 000"),
    "another size": (lambda r: r["files"][manifest.BACKBONE].update(bytes=5), "5 expected; export it again"),
    "another width": (lambda r: r.update(num_features=5), "its description says 372688, 5"),
    "other preprocessing": (lambda r: r["preprocessing"].update(crop_pct=0.5), "config.json: crop_pct is 0.875"),
    "another fingerprint": (lambda r: r.update(fingerprint=[0.1] * 8), "its fingerprint is off by"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_of_something_else_is_refused(folder, lie):
    edit(folder, LIES[lie][0])
    with pytest.raises(IntegrityError, match=LIES[lie][1]):
        verify(folder)


def test_the_commands_exit_code_says_it(folder):
    before = sorted(folder.iterdir())
    assert cgh("verify", folder, cwd=folder.parent).returncode == 0
    replace(folder, manifest.BACKBONE, lambda t: t[KEY].mul_(1.5))
    done = cgh("verify", "w", cwd=folder.parent)
    assert done.returncode == 4 and done.stderr.startswith("error: w: its fingerprint is off by")
    assert sorted(folder.iterdir()) == before


def test_what_is_no_weights_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="weights.json: not found; expected the description"):
        verify(tmp_path)
    with pytest.raises(InputError, match="nobody: no published weights of this name"):
        verify("nobody")


@pytest.mark.parametrize("name", manifest.names())
def test_every_published_row_is_what_its_row_says(name):
    assert cgh_models.verify(name)["fingerprint_error"] < 1e-4


@pytest.mark.parametrize("name", manifest.names())
def test_a_fingerprint_sees_a_change_of_any_layer(name):
    model = create_model(name)
    size = manifest.row(name)["preprocessing"]["input_size"]
    before = fingerprint(model, size)
    with torch.no_grad():
        for parameter in model.parameters():
            kept = parameter.clone()
            parameter.mul_(1.2).add_(0.05)
            assert max(abs(a - b) for a, b in zip(before, fingerprint(model, size), strict=True)) > 1e-5
            parameter.copy_(kept)
    assert fingerprint(model, size) == before
