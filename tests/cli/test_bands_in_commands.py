"""Thirteen bands from the files to timm: check, pretrain, resume, export, measure, embed."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from small_runs import QUICK, final, lines, small, stop_at

from cgh_models import extract
from cgh_models.data.eval_loader import eval_transform
from cgh_models.data.image_set import load
from cgh_models.data.pixels import as_tensor, measured
from cgh_models.data.reading import user_function
from cgh_models.errors import InputError, Interrupted
from cgh_models.hub import manifest
from cgh_models.hub.integrity import verify
from cgh_models.hub.registry import create_model, load_method, load_run
from cgh_models.methods import build_method, preprocessing
from cgh_models.train.loop import pretrain as pretrain_in_python

REPO = Path(__file__).resolve().parents[2]
BANDS = ("--in-chans", 13)
SMALL = ("--recipe", "cifar", "--arch", "test_resnet", "--image-size", 64, "--batch-size", 16)
SMALL += ("--epochs", 3, "--device", "cpu", "--set", "queue_length=40")
SMALL += ("--set", "projection_width=8", "--set", "hidden_width=16")


def make_scenes(root, count, bands=13, seed=0):
    """uint16 TIFF files in three class folders, each of which is brighter in one band."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % 3
        values = rng.normal(1000, 150, (bands, 40, 36))
        values[label % bands] += 300
        values[:, :: 2 + label] -= 200
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        scene = values.clip(0, 4095).astype(np.uint16)
        tifffile.imwrite(folder / f"{number:03}.tif", scene, photometric="minisblack")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    make_scenes(root / "train", 48)
    make_scenes(root / "val", 18, seed=1)
    return root


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """The run and the weights of a training that was stopped and resumed, and what was said."""
    home = tmp_path_factory.mktemp("bands")
    return home / "run", home / "weights"


def pretrain(in_process, scenes, out, *more):
    return in_process("pretrain", "--data", scenes / "train", "--out", out, *BANDS, *SMALL, *more)


def test_a_stopped_run_of_bands_goes_on_to_the_bit_and_is_exported(
    scenes, trained, in_process, monkeypatch
):
    run, weights = trained
    whole = run.with_name("whole")
    said = pretrain(in_process, scenes, whole).err
    assert "13 bands of uint16" in said and "read as 12-bit" in said
    assert "measured on 48 images and used: --mean 0.2" in said
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(SystemExit) as stopped:
            pretrain(in_process, scenes, run)
        assert stopped.value.code == Interrupted.exit_code
    in_process("resume", run)
    expected, found = final(whole), final(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert lines(whole) == lines(run)
    train = json.loads((run / "config.json").read_text())["train"]
    assert train["in_chans"] == 13 and len(train["mean"]) == len(train["std"]) == 13
    in_process("export", run, "--out", weights)
    row = manifest.read_row(weights)
    assert row.preprocessing.input_size == [13, 64, 64] and row.preprocessing.mean == train["mean"]
    card = (weights / "README.md").read_text()
    assert "of 13 bands, a float tensor (13, H, W)" in card and "`12-bit`" in card


def test_plain_timm_loads_them_and_embeds_as_extract_does(scenes, trained):
    run, weights = trained
    model = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()
    ours = load_run(run).student.backbone
    for key, value in ours.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert verify(weights)
    config = timm.data.resolve_model_data_config(model)
    assert list(config["input_size"]) == [13, 64, 64] and len(config["mean"]) == 13
    transform = timm.data.create_transform(**config)
    images = load(scenes / "val", in_chans=13)
    with torch.inference_mode():
        by_timm = [model(transform(as_tensor(images.image(i)))[None])[0] for i in range(4)]
    found = extract(create_model(weights), scenes / "val", workers=0)
    np.testing.assert_allclose(found[:4], torch.stack(by_timm).numpy(), atol=1e-5)
    assert len(found) == 18 and np.ptp(found, 0).max() > 0.01
    assert torch.equal(
        eval_transform(model)(images.image(0)), transform(as_tensor(images.image(0)))
    )
    classifier = timm.create_model(f"local-dir:{weights}", pretrained=True, num_classes=5)
    assert classifier(torch.zeros(1, 13, 64, 64)).shape == (1, 5)
    assert load_method(weights).student.backbone.conv1[0].in_channels == 13


def test_they_are_measured_embedded_and_refused_for_other_images(
    scenes, trained, in_process, image_root, tmp_path, capsys
):
    run, weights = trained
    knn = ("evaluate", "knn", weights, "--k", 5, "--workers", 0)
    found = json.loads(in_process(*knn, "--data", scenes, "--record").out.splitlines()[-1])
    assert found["queries"] == 18 and found["pixel_range"] == "12-bit"
    assert json.loads(in_process("evaluate", "knn", run, *knn[3:], "--data", scenes).out)["value"]
    in_process("embed", weights, "--data", scenes / "val", "--out", "e.npz")
    assert np.load("e.npz")["embedding"].shape[0] == 18
    in_process("evaluate", "linear", weights, "--data", scenes, "--protocol", "ridge")
    more = ("--protocol", "sgd", "--epochs", 1, "--lr", 0.1)
    in_process("evaluate", "linear", weights, "--data", scenes, *more)
    with pytest.raises(SystemExit):
        in_process("embed", weights, "--data", image_root / "val", "--out", "f.npz")
    assert "3 bands, expected 13" in capsys.readouterr().err
    with pytest.raises(InputError, match="images of 13 channels, for a model of 3"):
        extract(create_model("test_resnet", pretrained=False), load(scenes / "val", in_chans=13))


def test_check_prints_means_and_deviations_that_pretrain_takes(scenes, in_process, tmp_path):
    asked = ("check", scenes, *BANDS, "--recipe", "cifar", "--workers", 0)
    text = in_process(*asked, "--out", tmp_path / "checked").out
    assert (tmp_path / "checked" / "views.png").is_file()
    flags = text.split("give `--in-chans 13 ")[1].split("`")[0].split()
    assert flags[0] == "--mean" and len(flags) == 28
    found = json.loads(in_process(*asked, "--json").out)
    values = np.stack([tifffile.imread(path) for path in sorted(scenes.rglob("*.tif"))]) / 4095
    np.testing.assert_allclose(found["mean"], values.mean((0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(found["std"], values.std((0, 2, 3)), rtol=1e-3)
    assert found["constant"]["count"] == 0 and found["modes"] == {"13-band": 66}
    said = pretrain(in_process, scenes, "planned", *flags, "--dry-run").err
    assert "measured" not in said


@pytest.mark.parametrize("channels", [1, 4])
def test_init_adapts_the_first_layer_of_rgb_weights_as_timm_does(
    scenes, in_process, tmp_path, weights, run, channels
):
    make_scenes(tmp_path / "few", 32, bands=channels)
    data = ("--data", tmp_path / "few", "--in-chans", channels, *SMALL)
    expected = timm.create_model(f"local-dir:{weights}", pretrained=True, in_chans=channels)
    for number, source in enumerate((weights, run)):
        out = tmp_path / f"run{number}"
        said = in_process("pretrain", *data, "--out", out, "--init", source, "--base-lr", 0).err
        assert f"backbone, adapted from 3 to {channels} channels" in said
        found = load_run(out).student.backbone.state_dict()["conv1.0.weight"]
        torch.testing.assert_close(found, expected.state_dict()["conv1.0.weight"])


def test_what_does_not_fit_together_is_refused_in_a_sentence(
    scenes, trained, in_process, image_root, tmp_path, capsys
):
    run, _ = trained
    data = ("--data", scenes / "train")
    other = ("pretrain", "--out", tmp_path / "r", *SMALL)
    for words, reason in (
        ((*other, *data, "--in-chans", 4), "13 bands, expected 4: give --in-chans 13"),
        ((*other, *data, *BANDS, "--mean", 0.5), "mean: 1 numbers; 13 are expected"),
        ((*other, *data, "--in-chans", 17), "in_chans=17"),
        ((*other, *data, *BANDS, "--init", "resnet18.cgh"), "does not fit"),
        ((*other, *data, *BANDS, "--reader", "absent:read"), "--reader absent:read: cannot be imp"),
        ((*other, "--data", image_root / "train", *BANDS), "3 bands, expected 13"),
        ((*other, "--data", image_root / "train", "--init", run), "does not fit the model"),
    ):
        with pytest.raises(SystemExit) as refused:
            in_process(*words)
        assert refused.value.code == 2 and reason in capsys.readouterr().err, reason


def test_a_reader_is_kept_by_the_run_and_is_run_for_weights_only_if_it_is_asked_for(
    scenes, in_process, tmp_path, monkeypatch, capsys
):
    code = "import numpy as np\n\n\ndef read(path):\n    return np.load(path)['values']\n"
    (tmp_path / "npz_reader.py").write_text(code)
    rng = np.random.default_rng(0)
    for number in range(32):
        folder = tmp_path / "set" / ("train", "val")[number > 23] / f"c{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        values = rng.normal(number % 2, 1, (2, 40, 36)).astype(np.float32)
        np.savez(folder / f"{number}.npz", values=values)
    how = ("--reader", "npz_reader:read")
    told = (*how, "--in-chans", 2, "--pixel-range=-4,5")
    in_process("pretrain", "--data", "set/train", "--out", "run", *told, *SMALL, "--epochs", 2)
    train = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert train["reader"] == "npz_reader:read" and train["pixel_range"] == "-4,5"
    in_process("resume", "run")
    in_process("export", "run", "--out", "w")
    knn = ("evaluate", "knn", "w", "--data", "set", "--k", 3)
    found = json.loads(in_process(*knn, *how).out.splitlines()[-1])
    assert found["queries"] == 8 and found["pixel_range"] == "-4,5"
    with pytest.raises(SystemExit):
        in_process(*knn)
    said = capsys.readouterr().err
    assert "read files by npz_reader:read; --reader npz_reader:read does so here" in said
    assert "no images (" in said
    module = tmp_path / "npz_reader.py"
    module.write_text(f"open('called', 'w').close()\n{code}")  # as that of a stranger's folder
    cgh_report = ("report", "run", "--workers", 0, "--images", 20)
    monkeypatch.delitem(sys.modules, "npz_reader")
    user_function.cache_clear()
    said = in_process(*cgh_report).err
    assert "a function of its user's; --reader npz_reader:read calls it here" in said
    assert not (tmp_path / "called").exists()
    in_process(*cgh_report, *how)
    assert (tmp_path / "called").exists()


def test_every_command_of_the_docs_works_as_written(in_process, tmp_path):
    make_scenes(tmp_path / "scenes" / "train", 32)
    make_scenes(tmp_path / "scenes" / "val", 9, seed=1)
    text = (REPO / "docs" / "bands.md").read_text("utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    commands = block.splitlines()
    assert len(commands) == 5
    for command in commands:
        in_process(*shlex.split(command)[1:])
    (measures,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "measured" in b]
    made = {}
    exec(measures, made)
    assert len(made["config"].mean) == 13 and made["count"] == 32
    model = timm.create_model("local-dir:weights", pretrained=True)
    assert model(torch.zeros(2, 13, 64, 64)).shape == np.load("val.npz")["embedding"][:2].shape


def test_an_array_of_bands_is_trained_on_in_python_resumed_and_loaded_by_timm(
    in_process, tmp_path, monkeypatch
):
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 40, 36, 13)).astype(np.uint16)
    images = load(pixels, in_chans=13)
    mean, std, count = measured(images)
    assert count == 32 and images.pixel_range == "12-bit"
    config = replace(QUICK, in_chans=13, mean=tuple(mean), std=tuple(std))

    def train(run, **more):
        torch.manual_seed(0)
        method = build_method("moco_v2", "test_resnet", preprocessing(config), small("moco_v2"))
        pretrain_in_python(method, pixels, config, tmp_path / run, **more)

    train("whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            train("run")
    train("run", resume=True)
    expected, found = final(tmp_path / "whole"), final(tmp_path / "run")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    in_process("export", "run", "--out", "w")
    model = timm.create_model(f"local-dir:{tmp_path}/w", pretrained=True).eval()
    with torch.inference_mode():
        assert model(as_tensor(images.image(0))[None]).shape[0] == 1
