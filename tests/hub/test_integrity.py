"""`verify`: whatever is wrong with weights is found and named."""

import json
import shutil

import pytest
import torch
from conftest import cgh
from safetensors.torch import load_file, save_file

import cgh_models
from cgh_models import create_model
from cgh_models.errors import InputError, IntegrityError
from cgh_models.hashing import sha256
from cgh_models.hub import manifest
from cgh_models.hub.integrity import verify
from cgh_models.hub.row import BACKBONE, HEADS
from cgh_models.hub.timm_models import fingerprint


@pytest.fixture
def folder(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    return tmp_path / "w"


def edit(folder, change):
    row = json.loads((folder / manifest.ROW_FILE).read_text())
    change(row)
    (folder / manifest.ROW_FILE).write_text(json.dumps(row))


def replace(folder, file, change):
    """Changes tensors and writes their hash into the row, so that only later checks can find it."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})

    def update(row):
        row["files"][file].update(
            sha256=sha256(folder / file), bytes=(folder / file).stat().st_size
        )

    edit(folder, update)


def test_what_was_exported_is_accepted(folder):
    done = verify(folder)
    row = manifest.read_row(folder)
    assert done["name"] == "test_resnet.cgh" and done["files"] == [
        BACKBONE,
        HEADS,
    ]
    assert done["parameters"] == row.parameters and done["fingerprint_error"] < 1e-5


KEY, HEAD = "layer1.0.conv1.weight", "student.projector.0.weight"
WRONG = {
    "a key is missing": (
        BACKBONE,
        lambda t: t.pop(KEY),
        r"1 of \d+ tensors are missing, .* " + KEY,
    ),
    "a key too many": (BACKBONE, lambda t: t.update(fc=torch.ones(1)), "first are fc"),
    "another shape": (
        BACKBONE,
        lambda t: t.update({KEY: torch.ones(3)}),
        "of another shape",
    ),
    "not a number": (
        BACKBONE,
        lambda t: t[KEY].view(-1)[5:6].fill_(torch.nan),
        f"{KEY} holds values that are",
    ),
    "infinite": (
        HEADS,
        lambda t: t[HEAD].view(-1)[:1].fill_(torch.inf),
        f"{HEAD} holds values that are not",
    ),
    "whole numbers": (
        BACKBONE,
        lambda t: t.update({KEY: t[KEY].char()}),
        "is torch.int8, not floating point",
    ),
    "all zero": (
        BACKBONE,
        lambda t: [v.zero_() for v in t.values()],
        "its fingerprint is off by",
    ),
    "other weights": (BACKBONE, lambda t: t[KEY].mul_(1.5), "its fingerprint is off by"),
    "features that are not numbers": (
        BACKBONE,
        lambda t: t["layer4.0.bn2.running_var"][-1:].fill_(-1),
        "is off by inf",
    ),
    "a head is missing": (HEADS, lambda t: t.pop(HEAD), "tensors are missing"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_tensors_are_refused(folder, wrong):
    file, change, message = WRONG[wrong]
    replace(folder, file, change)
    with pytest.raises(IntegrityError, match=message) as refused:
        verify(folder)
    assert len(str(refused.value)) < 420


LIES = {
    "another hash": (
        lambda r: r["files"][HEADS].update(sha256="0" * 64),
        "sha256 differs: expected 000",
    ),
    "another size": (
        lambda r: r["files"][BACKBONE].update(bytes=5),
        "5 expected; export it again",
    ),
    "another width": (
        lambda r: r.update(num_features=5),
        "config.json: num_features is 96, weights.json says 5",
    ),
    "other preprocessing": (
        lambda r: r["preprocessing"].update(crop_pct=0.5),
        "pretrained_cfg.crop_pct is 0.875",
    ),
    "another count": (
        lambda r: r.update(parameters=5),
        "372688 parameters, width 96; its description says 5, 96",
    ),
    "another fingerprint": (lambda r: r.update(fingerprint=[0.1] * 8), "its fingerprint is off by"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_of_something_else_is_refused(folder, lie):
    edit(folder, LIES[lie][0])
    with pytest.raises(IntegrityError, match=LIES[lie][1]):
        verify(folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("license", "mit"),
        ("paper_ids", ["x"]),
        ("tag", "other"),
        ("num_classes", 9),
        ("custom_load", True),
    ],
)
def test_a_config_that_tells_timm_something_else_is_refused(folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=f"config.json: pretrained_cfg.{key} is "):
        verify(folder)


CANNOT_BE_BUILT = {
    "an unknown architecture": {"name": "resnet51.cgh", "architecture": "resnet51"},
    "unknown arguments": {"model_args": {"bogus": 1}},
    "a checkpoint from elsewhere": {"model_args": {"checkpoint_path": "/tmp/x"}},
    "grey images": {"preprocessing": {"input_size": [1, 32, 32]}},
    "huge images": {"preprocessing": {"input_size": [3, 2000000, 2000000]}},
}


@pytest.mark.parametrize("case", CANNOT_BE_BUILT)
@pytest.mark.parametrize("load", [create_model, verify, cgh_models.load_method])
def test_a_description_that_cannot_be_built_is_one_sentence(folder, case, load):
    changes = CANNOT_BE_BUILT[case]

    def change(row):
        row.update({k: row[k] | v if k == "preprocessing" else v for k, v in changes.items()})

    edit(folder, change)
    with pytest.raises((InputError, IntegrityError)) as refused:
        load(folder)
    assert len(str(refused.value)) < 420


def test_a_folder_without_a_description_that_timm_cannot_load_is_one_sentence(folder):
    (folder / manifest.ROW_FILE).unlink()
    for config in (
        {},
        {"architecture": "resnet51"},
        {"architecture": "test_resnet", "model_args": {"bogus": 1}},
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="timm has no architecture|is not passed on"):
            create_model(folder)


def test_a_folder_has_no_untrained_weights(folder):
    with pytest.raises(
        InputError, match="holds trained weights; give the architecture's name for untrained ones"
    ):
        create_model(folder, pretrained=False)


def test_every_folder_is_checked_and_the_worst_is_said(folder, weights):
    replace(folder, BACKBONE, lambda t: t[KEY].mul_(1.5))
    done = cgh("verify", folder, weights, cwd=folder.parent)
    assert (
        done.returncode == 4 and len(done.stderr.splitlines()) == 1 and str(weights) in done.stdout
    )


def test_the_commands_exit_code_says_it(folder):
    before = sorted(folder.iterdir())
    assert cgh("verify", folder, cwd=folder.parent).returncode == 0
    replace(folder, BACKBONE, lambda t: t[KEY].mul_(1.5))
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
    size = manifest.row(name).preprocessing.input_size
    before = fingerprint(model, size)
    with torch.no_grad():
        for parameter in model.parameters():
            kept = parameter.clone()
            parameter.mul_(1.2).add_(0.05)
            assert (
                max(abs(a - b) for a, b in zip(before, fingerprint(model, size), strict=True))
                > 1e-5
            )
            parameter.copy_(kept)
    assert fingerprint(model, size) == before
