"""The tensors of a backbone alone: what is in the folder, and what is refused."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import QUICK, build, small
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from cgh_models.errors import InputError
from cgh_models.hub.export import export
from cgh_models.hub.plain_tensors import export_tensors
from cgh_models.hub.registry import create_model, load_run
from cgh_models.methods import METHODS, preprocessing
from cgh_models.own_network import OwnNetwork
from cgh_models.train.loop import pretrain

CONFIG = dataclasses.replace(QUICK, epochs=1, eval_every=-1.0)


def test_a_resnet_goes_to_torchvision_as_it_is(image_root, tmp_path, in_process):
    trained = build("moco_v2", CONFIG, "resnet18")
    pretrain(trained, image_root / "train", CONFIG, tmp_path / "run")
    said = in_process("export", tmp_path / "run", "--out", "w", "--format", "torchvision").out
    assert "safetensors.torch.load_file('w/model.safetensors') loads it" in said
    model = resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(load_file("w/model.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    expected = trained.to("cpu").student.backbone.eval()(images)
    torch.testing.assert_close(model.eval()(images), expected)
    about = json.loads((tmp_path / "w" / "training.json").read_text())
    assert about["arch"] == "resnet18" and about["preprocessing"]["input_size"] == [3, 32, 32]
    assert str(tmp_path) not in json.dumps(about)  # it may be published


@pytest.mark.parametrize("words, message", [
    (["--format", "torchvision"], "torchvision: test_resnet is not one of resnet18, .*state-dict"),
    (["--format", "state-dict", "--with-queue"], "leave out --with-queue, which is of .* timm"),
    (["--format", "state-dict", "--no-heads"], "leave out --heads, which is of --format timm"),
    (["--heads", "student", "--with-queue"], "--heads student .*leaves the queues out.*one of the"),
    (["--no-heads", "--with-queue"], "--heads none .*leaves the queues out, --with-queue keeps"),
    (["--format", "state-dict", "--tag", "x"], "leave out --tag, which is of --format timm"),
])  # fmt: skip
def test_what_does_not_go_together_is_a_sentence(run, in_process, capsys, words, message):
    with pytest.raises(SystemExit):
        in_process("export", run, "--out", "w", *words)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "function, choice",
    [
        (export, {"heads": "foo"}),
        (export, {"dtype": "bf16"}),
        (export_tensors, {"format": "foo"}),
    ],
)
def test_a_choice_that_there_is_not_is_refused(run, tmp_path, function, choice):
    with pytest.raises(InputError, match="=.*: expected "):
        function(run, tmp_path / "w", **choice)
    assert not (tmp_path / "w").exists()


def test_torchvision_has_no_networks_of_four_bands(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    described = json.loads((run / "config.json").read_text()) | {"arch": "resnet18"}
    described["train"] |= {"in_chans": 4, "mean": [0.5] * 4, "std": [0.5] * 4}
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="take 3 channels, this one 4; give --format state-dict"):
        export_tensors(tmp_path / "run", tmp_path / "w", format="torchvision")


def test_the_tensors_of_any_architecture_are_those_of_the_run(run, tmp_path):
    export_tensors(run, tmp_path / "w", torch.float16)
    state = load_file(tmp_path / "w" / "model.safetensors")
    for key, value in load_run(run).student.backbone.state_dict().items():
        assert torch.equal(state[key], value.half() if value.is_floating_point() else value)
    with pytest.raises(InputError, match="holds no weights"):
        create_model(tmp_path / "w")


class Vector(torch.nn.Sequential):
    def __init__(self):
        conv = torch.nn.Conv2d(3, 8, 3, 2)
        super().__init__(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


class Maps(torch.nn.Module):
    def __init__(self, container):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Conv2d(8, 12, 3, 2)
        self.container = container

    def forward(self, images):
        shallow = self.first(images)
        return self.container([shallow, self.second(shallow)])


CONTAINERS = (list, tuple, lambda maps: dict(zip("ab", maps, strict=True)))


def own(module):
    return OwnNetwork(module, preprocessing(CONFIG))


@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_is_not_timms_has_to_be_wrapped(name):
    with pytest.raises(InputError, match="backbone: a ResNet, .*wrap it: OwnNetwork.module, prepr"):
        METHODS[name](resnet18(), METHODS[name].Config())
    with pytest.raises(InputError, match="lacks input_size, mean, std; give preprocessing.config"):
        OwnNetwork(resnet18(), {})


@pytest.mark.parametrize("name", METHODS)
def test_a_network_of_ones_own_is_trained_by_every_method(name, image_root, tmp_path):
    of_vector = name in ("byol", "mnclglf")
    make = Vector if of_vector else lambda: Maps(list)
    settings = small(name, heads=4) if "lewel" in name else small(name)
    module = make()
    method = METHODS[name](own(module), METHODS[name].Config(**settings))
    pretrain(method, image_root / "train", CONFIG, tmp_path / "run")
    export_tensors(tmp_path / "run", tmp_path / "w")
    state = load_file(tmp_path / "w" / "model.safetensors")
    make().load_state_dict(state)  # under the module's own keys
    for key, value in module.state_dict().items():  # trained in place
        assert torch.equal(value.cpu(), state[key])
    with pytest.raises(InputError, match="module:.*: a network of your own.*--format state-dict"):
        export(tmp_path / "run", tmp_path / "timm")


def test_a_resnet_of_torchvision_is_trained_and_goes_back_there(image_root, tmp_path, in_process):
    torch.manual_seed(0)
    maps = create_feature_extractor(resnet18(), ["layer3", "layer4"])
    method = METHODS["cgh"](own(maps), METHODS["cgh"].Config(**small("cgh")))
    before = {key: value.clone() for key, value in maps.state_dict().items()}
    pretrain(method, image_root / "train", CONFIG, tmp_path / "run")
    in_process("export", "run", "--format", "state-dict", "--out", "w")
    state = load_file(tmp_path / "w" / "model.safetensors")
    assert not torch.equal(state["conv1.weight"], before["conv1.weight"])
    model = resnet18()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected
    model.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    expected = method.to("cpu").student.backbone.eval()(images)
    torch.testing.assert_close(model.eval()(images), expected)


@pytest.mark.parametrize("container", CONTAINERS)
def test_maps_come_in_any_container(container):
    network = own(Maps(container))
    images = torch.randn(2, 3, 32, 32)
    final, (shallow, deep) = network.forward_intermediates(images, indices=2)
    assert shallow.shape[1:] == (8, 15, 15) and deep.shape[1:] == (12, 7, 7) and final is deep
    assert torch.equal(network(images), deep.mean((2, 3)))
    assert torch.equal(network.forward_intermediates(images, [-1], True)[0], deep)


def test_what_is_neither_maps_nor_a_vector_is_a_sentence():
    images = torch.randn(2, 3, 32, 32)
    for module in (Maps(lambda maps: [maps[0], maps[1].mean((2, 3))]), torch.nn.Flatten(2)):
        with pytest.raises(InputError, match="returns .*; expected a vector .N, D., or maps"):
            own(module)(images)
    with pytest.raises(InputError, match="taps=3: module:Maps .* 2 maps.; use fewer"):
        METHODS["cgh"](own(Maps(list)), METHODS["cgh"].Config(**small("cgh", taps=3)))
