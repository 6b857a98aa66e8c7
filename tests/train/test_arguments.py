"""What `pretrain` cannot train is one sentence before anything is written."""

import dataclasses

import pytest
import torch
from PIL import Image
from small_runs import QUICK, build, lines, small

from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.methods import METHODS as METHODS_BY_NAME
from cgh_models.methods import build_method, preprocessing
from cgh_models.train.loop import pretrain


def frozen(method):
    method.student.backbone.requires_grad_(False)
    return method


def half_backbone(method):
    method.student.backbone.half()
    return method


def compiled_backbone(method):
    method.student.backbone = torch.compile(method.student.backbone, backend="eager")
    return method


METHODS = [
    (lambda method: method.half(), "is torch.float16 on cpu; give one in float32"),
    (lambda method: method.double(), "is torch.float64 on cpu; give one in float32"),
    (lambda method: method.to("meta"), "on meta; give one in float32 with memory"),
    (half_backbone, "is torch.float16 on cpu"),
    (frozen, "all of its backbone is frozen"),
    (compiled_backbone, "its backbone is compiled or scripted; give timm's module itself"),
    (lambda method: torch.compile(method), "its state would have other names; give the method"),
    (torch.nn.DataParallel, "a DataParallel: its state would have other names"),
    (torch.nn.Sequential, "a Sequential: expected an nn.Module with the members of"),
    (lambda method: method.student.backbone, "a ResNet: expected an nn.Module with"),
    (lambda method: "cgh", "a str: expected an nn.Module with the members of"),
    (lambda method: type(method), "a type: expected an nn.Module with"),
]


@pytest.mark.parametrize("change, message", METHODS, ids=[m[:30] for _, m in METHODS])
def test_a_method_that_would_be_trained_wrongly_is_refused(image_root, tmp_path, change, message):
    with pytest.raises(InputError, match=f"^method: .*{message}"):
        pretrain(change(build()), image_root / "train", QUICK, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"config": {}}, "config: a dict: expected a TrainConfig"),
        ({"config": None}, "config: a NoneType: expected a TrainConfig"),
        ({"data": None}, "data: None: expected a folder, a file or an address; a list of paths"),
        ({"data": ["a.png"]}, "a.png: there is no such file; mend the list"),
        (
            {"data": torch.zeros(2, 5, 32, 32)},
            "5 bands .float32 of shape .32, 32, 5.., expected 3: give --in-chans 5",
        ),
        ({"run_dir": None}, "run_dir: None: expected a path"),
    ],
)
def test_other_types_are_one_sentence(image_root, tmp_path, changed, message):
    given = {"data": image_root / "train", "config": QUICK, "run_dir": tmp_path / "run"}
    with pytest.raises(InputError, match=message):
        pretrain(build(), **{**given, **changed})
    assert not (tmp_path / "run").exists()


def test_a_callers_defaults_change_no_loss(image_root, tmp_path):
    config = dataclasses.replace(QUICK, epochs=1)
    pretrain(build(config=config), image_root / "train", config, tmp_path / "plain")
    method = build(config=config)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        pretrain(method, image_root / "train", config, tmp_path / "other")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert lines(tmp_path / "other") == lines(tmp_path / "plain")


def test_channels_of_method_images_and_config_have_to_agree(image_root, tmp_path):
    grey = dataclasses.replace(QUICK, in_chans=1, mean=(0.5,), std=(0.25,))
    with pytest.raises(InputError, match="takes 3 channels, in_chans=1; build it with preproc"):
        pretrain(build(), image_root / "train", grey, tmp_path / "run")
    method = build_method("moco_v2", "resnet18_cifar_w16", preprocessing(grey), None)
    with pytest.raises(InputError, match="an ImageSet with in_chans=3.*config.reading"):
        pretrain(method, load(image_root / "train"), grey, tmp_path / "run")
    with pytest.raises(InputError, match="mean: 3 numbers; 1 are expected"):
        dataclasses.replace(QUICK, in_chans=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS_BY_NAME)
def test_every_method_trains_on_one_band(image_root, tmp_path, name):
    for path in sorted((image_root / "train").rglob("*.png"))[:16]:
        Image.open(path).convert("L").save(tmp_path / path.name)
    grey = {"in_chans": 1, "mean": (0.5,), "std": (0.25,), "image_size": 64, "epochs": 1}
    config = dataclasses.replace(QUICK, eval_every=-1, **grey)
    torch.manual_seed(0)
    method = build_method(name, "test_resnet", preprocessing(config), small(name))
    before = method.student.backbone.conv1[0].weight.detach().clone()
    pretrain(method, tmp_path, config, tmp_path / "run")
    after = method.student.backbone.conv1[0].weight
    assert after.shape[1] == 1 and after.isfinite().all() and not torch.equal(before, after)
