"""docs/use.md: every block runs with the real library, and does what it says."""

import dataclasses
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from small_runs import QUICK, small

from cgh_models import backbone
from cgh_models.hub.export import export
from cgh_models.hub.plain_tensors import TORCHVISION
from cgh_models.methods import build_method, preprocessing
from cgh_models.small_resnets import default_cfgs
from cgh_models.train.loop import pretrain

USE = (Path(__file__).resolve().parents[1] / "docs" / "use.md").read_text("utf-8")
LIBRARIES = ("faiss", "hnswlib", "lightning", "onnxruntime", "sklearn", "transformers")
LIBRARIES += ("segmentation_models_pytorch",)
BLOCKS = []
for section in USE.split("\n## ")[1:]:
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        BLOCKS.append(pytest.param(block, id=section.partition("\n")[0]))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as the page supposes it."""
    place = tmp_path_factory.mktemp("use")
    with resources.as_file(resources.files("cgh_models")) as package:
        shutil.copytree(package / "weights" / "resnet18.cgh", place / "my-weights")
        zipfile.ZipFile(package / "sample" / "cifar10.zip").extractall(place / "cgh-demo/images")
    for image in place.glob("cgh-demo/images/*/*/*"):
        if int(image.stem[-4:]) >= 10:  # ten of each class
            image.unlink()
    with pytest.MonkeyPatch.context() as patch:
        from cgh_models.cli.main import main

        patch.chdir(place)
        command = re.findall(r"^cgh embed .*", USE, re.M)[0]
        patch.setattr(sys, "argv", command.split())
        main()
    return place


def embedding_of(images):
    with torch.no_grad():
        return timm.create_model("local-dir:my-weights", pretrained=True).eval()(images)


def check_fine_tuning(made):
    assert len(made["losses"]) == 8 and sum(made["losses"][4:]) < sum(made["losses"][:4])


def check_file_alone(made):
    images = torch.randn(2, 3, 64, 64)
    for model in (made["model"].eval(), made["adapted"].eval()):
        assert model(images).shape == (2, 10)
        assert torch.equal(model.forward_head(model.forward_features(images), pre_logits=True),
                           embedding_of(images))  # fmt: skip


def check_feature_maps(made):
    assert [m.shape[1] for m in made["maps"]] == [64, 64, 128, 256, 512]


def check_torchvision(made):
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(made["model"].eval()(images), embedding_of(images))


def check_detector(made):
    first = made["network"].conv1.weight
    assert torch.equal(first, load_file("my-weights/model.safetensors")["conv1.weight"].float())
    assert first.grad.abs().sum() > 0 and len(made["losses"]) == 4


def check_smp(made):
    assert made["masks"].shape == (2, 3, 64, 64)
    images = torch.randn(2, 3, 64, 64)
    deepest = made["unet"].eval().encoder(images)[-1]
    torch.testing.assert_close(deepest.mean((2, 3)), embedding_of(images))
    maps = timm.create_model("local-dir:my-weights", pretrained=True, features_only=True)
    made["any_timm"].encoder.model.load_state_dict(maps.state_dict())


def check_transformers(made):
    if "backbone" in made:
        images = torch.randn(2, 3, 64, 64)
        maps = made["backbone"].eval()(images).feature_maps
        for one, other in zip(maps, made["network"].eval()(images), strict=True):
            assert torch.equal(one, other)
        from transformers import AutoBackbone

        with pytest.raises(Exception, match="Repo id must use alphanumeric"):
            AutoBackbone.from_pretrained("./my-weights")
    else:
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(made["model"](images).pooler_output, embedding_of(images))
        file = np.load("val.npz")
        expected = file["embedding"][list(file["path"]).index("cat/0000.jpg")]
        assert np.allclose(made["vector"], expected, atol=1e-4)


def check_lightning(made):
    assert made["trainer"].global_step == 3 and made["trainer"].callback_metrics is not None
    assert made["classifier"].model.fc.weight.shape == (10, 512)


def check_onnx(made):
    assert np.abs(made["embedding"] - embedding_of(made["images"]).numpy()).max() < 1e-5


def check_export(made):
    torch.testing.assert_close(made["exported"], made["expected"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made["compiled"], made["expected"], atol=1e-5, rtol=1e-5)


def check_search(made):
    neighbours = np.asarray(made["neighbours"])
    assert neighbours.shape == (5, 4) and (neighbours[:, 0] == np.arange(5)).all()


def check_scikit_learn(made):
    assert made["scores"].mean() > 0.2  # by chance 0.1


CHECKS = {
    "timm: fine-tuning": check_fine_tuning,
    "timm: the file alone": check_file_alone,
    "timm: feature maps": check_feature_maps,
    "torchvision": check_torchvision,
    "torchvision: Faster R-CNN on a feature pyramid": check_detector,
    "segmentation_models_pytorch": check_smp,
    "transformers": check_transformers,
    "Lightning": check_lightning,
    "ONNX": check_onnx,
    "torch.export and torch.compile": check_export,
    "Search: FAISS, hnswlib": check_search,
    "scikit-learn": check_scikit_learn,
}


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_with_the_real_library(block, place, monkeypatch, request):
    for library in LIBRARIES:
        if re.search(rf"^(import|from) {library}\b", block, re.M):
            pytest.importorskip(library, reason=f"{library} is not here: pip install '.[interop]'")
    if "torch.onnx" in block:
        pytest.importorskip("onnxscript", reason="it is not here: pip install '.[interop]'")
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    made = {"__name__": "__main__"}
    exec(compile(block, request.node.name, "exec"), made)
    CHECKS[re.findall(r"\[(.*?)\d*\]", request.node.name)[0]](made)


def test_weights_of_thirteen_bands_are_the_encoder_of_a_unet(tmp_path, monkeypatch):
    pytest.importorskip("segmentation_models_pytorch", reason="pip install '.[interop]'")
    page = (Path(__file__).resolve().parents[1] / "docs" / "bands.md").read_text("utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "unet" in b]
    bands = {"in_chans": 13, "mean": (0.5,) * 13, "std": (0.2,) * 13}
    config = dataclasses.replace(QUICK, epochs=1, eval_every=-1, **bands)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 13), dtype=np.uint8)
    torch.manual_seed(0)
    trained = build_method("byol", "resnet18", preprocessing(config), small("byol"))
    pretrain(trained, pixels, config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    export("run", "weights")
    made = {}
    exec(block, made)
    images = torch.randn(2, 13, 64, 64)
    with torch.no_grad():
        deepest = made["unet"].eval().encoder(images)[-1]
        expected = timm.create_model("local-dir:weights", pretrained=True).eval()(images)
    torch.testing.assert_close(deepest.mean((2, 3)), expected)


def test_without_the_import_timm_says_what_the_page_quotes():
    quoted = re.findall(r"^RuntimeError: (.*)$", USE, re.M)
    code = "import timm; timm.create_model('resnet18_cifar_w16')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and done.stderr.splitlines()[-1] == f"RuntimeError: {quoted[0]}"
    assert all(f"`{name}`" in USE for name in default_cfgs)


def test_timms_strict_loading_ends_in_what_the_page_quotes(place):
    with pytest.raises(RuntimeError) as error:
        timm.create_model(
            "resnet18", num_classes=10, checkpoint_path=str(place / "my-weights/model.safetensors")
        )
    assert 'Missing key(s) in state_dict: "fc.weight", "fc.bias"' in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_timms_resnets_are_torchvisions_to_the_last_tensor(name):
    torch.manual_seed(0)
    ours = backbone.create(name).eval()
    theirs = torchvision.models.get_model(name)
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), ours(images))
