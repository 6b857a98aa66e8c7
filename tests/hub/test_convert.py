"""`cgh convert` on authors' layouts built from real networks.

Backbones are equal to the bit in the weights folder; everything else is refused.
"""

import argparse
import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from conftest import HUB, cgh
from loopback_hub import TOKEN
from safetensors.torch import save_file

from cgh_models.cli.main import main
from cgh_models.errors import InputError, IntegrityError
from cgh_models.hashing import sha256
from cgh_models.hub import manifest
from cgh_models.hub.convert import convert
from cgh_models.hub.integrity import verify
from cgh_models.hub.publish import publish
from cgh_models.hub.registry import create_model, load_method, start_from
from cgh_models.hub.row import ConvertedFrom
from cgh_models.methods import METHODS, build_method

SMALL = "resnet18_cifar_w16"


def network(arch="resnet18", seed=0, **kwargs):
    """A network whose every tensor and running statistic differs from that of another seed."""
    torch.manual_seed(seed)
    model = timm.create_model(arch, **{"num_classes": 0, **kwargs}).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bn" in name or "downsample.1" in name:
                tensor.copy_(
                    torch.rand(tensor.shape) + 0.5
                    if tensor.is_floating_point()
                    else torch.tensor(7)
                )
    return model


def named(prefix, model):
    return OrderedDict((prefix + key, value) for key, value in model.state_dict().items())


def head(prefix):
    return {prefix + key: torch.randn(4, 4) for key in ("0.weight", "1.running_mean", "3.weight")}


def layouts(student, teacher):
    """What the authors' programs save: student and teacher, heads, queue, optimizer."""
    optimizer = {
        "state": {0: {"momentum_buffer": torch.ones(3)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    queue = {
        "module.queue": torch.randn(4, 8),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    moco = named("module.encoder_k.", teacher) | named("module.encoder_q.", student)
    cgh = queue | moco | head("module.hyper_q.")
    ressl = queue | named("module.encoder_k.net.", teacher)
    ressl |= named("module.encoder_q.net.", student) | head("module.encoder_q.head.")
    lewel = named("module.target_net.backbone.", teacher) | head("module.online_net.projector.")
    lewel |= named("module.online_net.backbone.", student)
    byol = named("target_encoder.", teacher) | named("online_encoder.", student)
    byol |= head("predictor.")
    mnclglf = named("module.encoder_m.", teacher) | named("module.encoder.", student)
    mnclglf |= head("module.projector.")
    trained = {"optimizer": optimizer, "epoch": 200}
    return {
        "cgh": {"net": cgh, **trained},
        "ressl": {"model": ressl, **trained},
        "lewel": {"state_dict": lewel, "epoch": 99, "arch": "LEWELB_EMAN"},
        "moco_v2": {"state_dict": moco | queue, "arch": "resnet18", **trained},
        "byol": {"model": byol},
        "mnclglf": {"state_dict": mnclglf},
    }


LICENSES = {
    "cgh": "Apache-2.0",
    "ressl": None,
    "lewel": "CC-BY-NC-4.0",
    "moco_v2": "MIT",
    "byol": None,
    "mnclglf": "MIT",
}


def features(model, size=64):
    with torch.no_grad():
        return model.eval()(torch.linspace(-2, 2, 3 * size * size).view(1, 3, size, size))


@pytest.mark.parametrize("method", LICENSES)
def test_an_authors_checkpoint_is_its_students_backbone_to_the_bit(method, tmp_path):
    arch, given = (SMALL, SMALL) if method in ("cgh", "byol", "mnclglf") else ("resnet18", "")
    student, teacher = network(arch, num_classes=9), network(arch, seed=1)
    torch.save(layouts(student, teacher)[method], tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "w", method, arch=given, image_size=64)
    read = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True)
    student.reset_classifier(0)
    assert torch.equal(features(read), features(student)) and not torch.equal(
        features(read), features(teacher)
    )
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in read.state_dict().items())
    row = manifest.read_row(tmp_path / "w")
    assert row.name == f"{arch}.{method}_converted"
    assert row.license == LICENSES[method] and row.notes
    cfg = read.pretrained_cfg  # timm leaves out what is null
    assert cfg["interpolation"] == ("bicubic" if method == "byol" else "bilinear")
    assert cfg.get("license") == row.license and tuple(cfg["input_size"]) == (3, 64, 64)
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "weights.json",
    ]
    assert verify(tmp_path / "w")["fingerprint_error"] < 1e-5


def numbered(prefix, model):
    """A ResNet's state as an nn.Sequential of its children names it: MNCLGLF's only layout."""
    order = [name for name, _ in model.named_children()]
    assert order[:4] == ["conv1", "bn1", "act1", "maxpool"]
    state = OrderedDict()
    for key, value in model.state_dict().items():
        part, _, rest = key.partition(".")
        state[f"{prefix}{order.index(part)}.{rest}"] = value
    return state


@pytest.mark.parametrize("prefixes", [["module.backbone.", "module.encoder.0."], ["encoder.0."]])
def test_a_backbone_with_numbers_for_names_is_mapped_by_order(tmp_path, prefixes):
    student = network("resnet18")
    state = numbered("module.teacher.0.", network("resnet18", seed=1))
    for prefix in prefixes:
        state |= numbered(prefix, student) | head(prefix[:-2].removesuffix(".0") + "1.")
    torch.save({"model": state, "step": 3}, tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "w", "mnclglf", image_size=64)
    read = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True)
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in read.state_dict().items())
    assert len(manifest.read_row(tmp_path / "w").notes) == 1
    state[prefixes[0] + "5.0.conv1.weight"] = torch.ones(3)
    torch.save({"model": state}, tmp_path / "b.pth")
    message = "of another shape, the first are layer2.0.conv1.weight"
    refused(IntegrityError, message, tmp_path / "b.pth", tmp_path / "v", "mnclglf", arch="")


@pytest.mark.parametrize("new", [True, False])
def test_settings_and_numbers_of_numpy_beside_the_tensors_are_left_out(small, tmp_path, new):
    metadata = {
        "args": argparse.Namespace(lr=0.1, data="/x", betas=[1, {"a": np.float32(2)}]),
        "best_acc1": np.float64(35.1),
        "curve": np.arange(3.0),
        "epoch": np.int64(99),
    }
    torch.save(
        {"net": named("encoder_q.", small[1]), **metadata},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=new,
    )
    if not new:  # as NumPy 1 names it
        body = (tmp_path / "a.pth").read_bytes()
        assert b"cnumpy._core.multiarray\nscalar" in body
        (tmp_path / "a.pth").write_bytes(body.replace(b"cnumpy._core.", b"cnumpy.core."))
    convert(tmp_path / "a.pth", tmp_path / "w", "cgh", arch=SMALL, recipe="cifar")
    read = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True)
    assert torch.equal(features(read, 32), features(small[1], 32))


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A resnet50 as PyTorch before 1.6 and 0.4.1 saved it, converted on the command line."""
    folder = tmp_path_factory.mktemp("road")
    model = network("resnet50", num_classes=128)
    old = {k: v for k, v in named("module.encoder_q.", model).items() if "num_batches" not in k}
    torch.save(
        {"epoch": 800, "state_dict": old},
        folder / "moco.pth.tar",
        _use_new_zipfile_serialization=False,
    )
    words = [
        "--method",
        "moco_v2",
        "--out",
        "w",
        "--image-size",
        64,
        "--data-name",
        "Some Set",
        "--epochs",
        800,
    ]
    return folder, model, cgh("convert", "moco.pth.tar", *words, cwd=folder)


def test_the_command_line_converts_what_old_pytorch_saved(road, monkeypatch, capsys):
    folder, model, done = road
    assert done.returncode == 0, done.stderr
    assert "resnet50.moco_v2_converted, 23,508,032 parameters of module.encoder_q.*" in done.stdout
    assert "licence: MIT; The authors' code is under MIT" in done.stdout
    monkeypatch.setattr(sys, "argv", ["cgh", "verify", str(folder / "w")])
    main()
    assert "fingerprint are right (23,508,032 parameters" in capsys.readouterr().out
    code = """if True:
        import json, sys, timm, torch
        model = timm.create_model("local-dir:w", pretrained=True).eval()
        assert "cgh_models" not in sys.modules and not any(
            v.any() for k, v in model.state_dict().items() if "num_batches" in k)
        x = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
        print(json.dumps(model(x)[0].tolist()))"""
    plain = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    model.reset_classifier(0)
    assert torch.equal(torch.tensor([json.loads(plain.stdout)]), features(model))


def test_the_card_and_info_say_what_it_was_converted_from_and_no_number_of_anybody(road):
    folder, _, _ = road
    digest = sha256(folder / "moco.pth.tar")
    row, card = manifest.read_row(folder / "w"), (folder / "w" / "README.md").read_text()
    size = (folder / "moco.pth.tar").stat().st_size
    assert row.converted_from == ConvertedFrom("moco.pth.tar", size, digest, "module.encoder_q.")
    assert row.epochs == 800 and row.data.name == "Some Set"
    words = "--method moco_v2 --out FOLDER --image-size 64 --epochs 800.0 --data-name 'Some Set'"
    assert row.command == f"cgh convert moco.pth.tar {words}"
    assert (
        f"| sha256 | `{digest}` |" in card and "`moco.pth.tar`" in card and "license: mit" in card
    )
    assert (
        "Nothing yet" in card
        and "No number of its authors is repeated" in card
        and "Epochs: 800." in card
    )
    assert "None" not in card and "null" not in card and "seed None" not in card
    info = cgh("info", "w", cwd=folder)
    assert (
        info.returncode == 0 and f"sha256: {digest}" in info.stdout and "seed: null" in info.stdout
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory, image_root):
    """A folder with a small network in CGH's layout, and what was converted from it for 32 px."""
    folder = tmp_path_factory.mktemp("small")
    model = network(SMALL)
    torch.save({"net": named("encoder_q.", model)}, folder / "cgh.pth")
    convert(folder / "cgh.pth", folder / "w", "cgh", arch=SMALL, recipe="cifar")
    return folder, model


def test_a_3x3_stem_needs_the_architecture_and_says_which_fit(small, tmp_path):
    folder, model = small
    assert torch.equal(features(create_model(folder / "w"), 32), features(model, 32))
    with pytest.raises(
        InputError,
        match=r"whether a max-pool follows it; give --arch .*resnet18_cifar_w16.* \(max-pool",
    ):
        convert(folder / "cgh.pth", tmp_path / "w", "cgh")
    torch.save(
        {"model": named("module.encoder_q.net.", network("resnet18_small"))}, tmp_path / "r.pth"
    )
    with pytest.raises(
        InputError,
        match=r"give --arch .*resnet18_small.* \(max-pool: those with _small\)",
    ):
        convert(tmp_path / "r.pth", tmp_path / "w", "ressl")
    with pytest.raises(
        InputError,
        match=r"--arch resnet18 does not fit: 1 of .* conv1.weight; .* give the --arch of the file",
    ):
        convert(tmp_path / "r.pth", tmp_path / "w", "ressl", arch="resnet18")
    row = convert(tmp_path / "r.pth", tmp_path / "w", "ressl", arch="resnet18_small", recipe="tiny")
    assert row.architecture == "resnet18_small" and row.preprocessing.input_size == [3, 64, 64]
    assert row.preprocessing.mean == [0.4802, 0.4481, 0.3975] and row.pool_size == [4, 4]


def test_equal_files_convert_to_equal_bytes(small, tmp_path):
    folder, _ = small
    convert(folder / "cgh.pth", tmp_path / "second", "cgh", arch=SMALL, recipe="cifar")
    for path in (folder / "w").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "prefix", ["online_net.backbone.", "module.encoder_q.", "backbone.", "online_network.encoder."]
)
def test_byol_is_found_under_many_names_and_the_student_comes_first(small, tmp_path, prefix):
    state = named("module.target_net.", network(SMALL, 1)) | named(prefix, small[1])
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    row = convert(tmp_path / "b.pth", tmp_path / "w", "byol", arch=SMALL, image_size=32)
    assert row.converted_from.prefix == prefix
    assert row.license is None and "many hands" in row.notes[0]
    assert torch.equal(features(create_model(tmp_path / "w"), 32), features(small[1], 32))


@pytest.mark.parametrize("how", ["safetensors", "alone", "half"])
def test_a_state_dict_alone_and_safetensors_are_read_too(small, tmp_path, how):
    state = named(
        "module.encoder_q.", copy.deepcopy(small[1]).half() if how == "half" else small[1]
    )
    path = tmp_path / ("a.safetensors" if how == "safetensors" else "a.pth")
    save_file(dict(state), path) if how == "safetensors" else torch.save(state, path)
    convert(path, tmp_path / "w", "moco_v2", arch=SMALL, image_size=32)
    for key, value in create_model(tmp_path / "w").state_dict().items():
        assert (
            torch.equal(value, state["module.encoder_q." + key].to(value.dtype))
            and value.dtype != torch.half
        )


def test_a_layout_that_two_releases_share_is_noted_and_a_licence_can_be_stated(small, tmp_path):
    torch.save({"state_dict": named("module.encoder_q.", small[1])}, tmp_path / "m.pth")
    stated = {"arch": SMALL, "image_size": 32, "license": "apache-2.0", "tag": "mine"}
    row = convert(tmp_path / "m.pth", tmp_path / "w", "mnclglf", **stated)
    assert row.name == f"{SMALL}.mine" and row.license == "apache-2.0"
    assert "apache-2.0 was stated by whoever converted" in row.notes[0]
    assert "under MIT" in row.notes[0] and "layout is also that of moco_v2" in row.notes[1]


# --- what is done with a converted folder


def test_a_pretraining_starts_from_it_and_load_method_says_that_it_has_no_heads(small):
    folder, model = small
    settings = {"queue_length": 64, "projection_width": 16, "hidden_width": 16}
    method = build_method(
        "cgh", SMALL, {"input_size": (3, 32, 32)}, METHODS["cgh"].Config(**settings)
    )
    assert "backbone; heads: left out, the weights have none" in start_from(method, folder / "w")
    for branch in (method.student, method.teacher):
        assert all(
            torch.equal(v, model.state_dict()[k]) for k, v in branch.backbone.state_dict().items()
        )
    with pytest.raises(
        InputError,
        match="w: holds a backbone without heads, expected heads/model.safetensors; create_",
    ):
        load_method(folder / "w")


def test_it_is_measured_published_and_loaded_from_the_hub(
    small, image_root, tmp_path, loopback, monkeypatch, capsys
):
    folder, model = small
    state = torch.load(folder / "cgh.pth", weights_only=True)["net"]
    torch.save(
        {"model": {k.replace("encoder_q.", "encoder_q.net."): v for k, v in state.items()}},
        tmp_path / "r.pth",
    )
    convert(tmp_path / "r.pth", tmp_path / "w", "ressl", arch=SMALL, recipe="cifar")
    monkeypatch.chdir(tmp_path)
    words = [
        "evaluate",
        "knn",
        "w",
        "--data",
        str(image_root),
        "--k",
        "5",
        "--record",
        "--workers",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", ["cgh", *words])
    main()
    value = json.loads(capsys.readouterr().out.splitlines()[-1])["value"]
    assert (
        f"| knn | {image_root.name} | {value} % | 20 |"
        in (tmp_path / "w" / "README.md").read_text()
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit, left = publish(tmp_path / "w", "org/converted", private=False, manifests=[])
    files = HUB.repos["org/converted"]["commits"][-1][1]
    assert (
        not left
        and not [name for name in files if "heads" in name or "pretrain" in name]
        and b"licence: none" not in files["README.md"]
    )
    assert manifest.read_row(tmp_path / "w").hub.revision == commit
    read = timm.create_model(
        "hf-hub:org/converted", pretrained=True, cache_dir=str(tmp_path / "hub")
    )
    assert torch.equal(features(read, 32), features(model, 32))


def test_list_and_torch_hub_tell_a_row_that_does_not_know_its_images(small, monkeypatch, capsys):
    import hubconf  # of the checkout
    from cgh_models.cli.weights import List

    row = manifest.read_row(small[0] / "w")
    monkeypatch.setattr(manifest, "rows", lambda: {row.name: row})
    List().run()
    assert "not stated" in capsys.readouterr().out
    assert "Trained on images whose name was not stated." in hubconf._entry(row.to_json()).__doc__


# --- what is refused, and that nothing is left behind


def refused(error, match, path, out, method="cgh", **options):
    with pytest.raises(error, match=match) as caught:
        convert(path, out, method, **({"arch": SMALL} | options))
    said = str(caught.value)
    assert (
        said.startswith(str(path)) and len(said.replace(str(path), "")) < 330 and "\n" not in said
    )
    assert "weights_only" not in said and not out.exists()


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("force", ["0", "1"])
def test_code_in_a_pickle_is_refused_and_does_not_run(small, tmp_path, monkeypatch, new, force):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    canary = tmp_path / "canary"
    evil = {"net": named("encoder_q.", small[1]), "args": argparse.Namespace(f=Canary(canary))}
    torch.save(evil, tmp_path / "evil.pth", _use_new_zipfile_serialization=new)
    refused(
        IntegrityError,
        r"more than tensors, posix.mkdir, .* none is run",
        tmp_path / "evil.pth",
        tmp_path / "w",
    )
    assert not canary.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert canary.exists()  # it would have


def test_a_bare_pickle_is_not_opened_at_all(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refused(IntegrityError, "not as torch.save begins", tmp_path / "evil.pth", tmp_path / "w")
    assert not (tmp_path / "canary").exists()


KEY = "encoder_q.layer2.0.conv1.weight"
WRONG = {
    "missing": (lambda s: s.pop(KEY), r"1 of \d+ tensors .* layer2.0.conv1.weight;"),
    "a missing stem": (lambda s: s.pop("encoder_q.conv1.weight"), "are conv1.weight;"),
    "a missing buffer": (lambda s: s.pop("encoder_q.bn1.running_var"), "are bn1.running_var;"),
    "five missing": (
        lambda s: (
            [s.pop(k) for k in list(s) if "layer4.1.bn" in k and "running" in k] + [s.pop(KEY)]
        ),
        r"5 of \d+ tensors .* layer2.0.conv1.weight, layer4.1.bn1.running_mean, "
        r"layer4.1.bn1.running_",
    ),
    "extra": (
        lambda s: s.update({"encoder_q.layer2.0.extra.bias": torch.ones(1)}),
        "are layer2.0.extra.bias;",
    ),
    "another shape": (
        lambda s: s.update({KEY: torch.ones(1)}),
        "of another shape, the first are layer2.0.conv1.weig",
    ),
    "not finite": (
        lambda s: s[KEY].view(-1)[3:4].fill_(torch.nan),
        "layer2.0.conv1.weight holds values that are not",
    ),
    "whole numbers": (
        lambda s: s.update({KEY: s[KEY].char()}),
        "layer2.0.conv1.weight is torch.int8; expected float",
    ),
    "no tensor": (lambda s: s.update({KEY: 3}), "layer2.0.conv1.weight is no tensor with values"),
    "sparse": (
        lambda s: s.update({KEY: s[KEY].to_sparse()}),
        "layer2.0.conv1.weight is no tensor with values",
    ),
    "no values": (
        lambda s: s.update({KEY: s[KEY].to("meta")}),
        "layer2.0.conv1.weight is no tensor with values",
    ),
}


def test_heads_beside_the_backbone_are_left_out(small, tmp_path):
    heads = {"encoder_q.reg_conv.0.weight": torch.ones(1), "encoder_q.fc.0.bias": torch.ones(2)}
    torch.save({"net": named("encoder_q.", small[1]) | heads}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "w", "cgh", arch=SMALL, recipe="cifar")
    read = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True)
    assert all(
        torch.equal(value, small[1].state_dict()[key]) for key, value in read.state_dict().items()
    )


@pytest.mark.parametrize("wrong", WRONG)
def test_a_backbone_that_is_not_filled_to_the_last_tensor_is_refused(small, tmp_path, wrong):
    state = OrderedDict((k, v.clone()) for k, v in named("encoder_q.", small[1]).items())
    change, message = WRONG[wrong]
    change(state)
    torch.save({"net": state}, tmp_path / "a.pth")
    refused(IntegrityError, message, tmp_path / "a.pth", tmp_path / "w")


def test_the_stock_architecture_is_counted_and_a_gap_in_it_is_an_integrity_error(tmp_path):
    state = named("module.encoder_q.", network("resnet34"))
    del state["module.encoder_q.layer3.5.bn2.weight"]
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    message = r"encoder_q.\* does not fill resnet34: 1 of \d+ .* layer3.5.bn2.weight"
    refused(IntegrityError, message, tmp_path / "a.pth", tmp_path / "w", "moco_v2", arch="")
    message = (
        r"--arch resnet18 does not fit: .*; its blocks are those of resnet34, give the --arch of"
    )
    refused(InputError, message, tmp_path / "a.pth", tmp_path / "w", "moco_v2", arch="resnet18")
    shorter = {k: v for k, v in state.items() if "layer3.5" not in k}
    torch.save({"state_dict": shorter}, tmp_path / "b.pth")
    message = "its blocks are those of none of resnet18, .*; give --arch"
    refused(InputError, message, tmp_path / "b.pth", tmp_path / "w", "moco_v2", arch="")


CONTENT = {
    "only the teacher": (
        lambda m: {"net": named("encoder_k.", m)},
        r"found encoder_k.layer1.0.\* in 'net'; give a",
    ),
    "MoCo's": (
        lambda m: layouts(m, m)["moco_v2"],
        "in 'state_dict'.*; give --method moco_v2",
    ),
    "ReSSL's": (lambda m: layouts(m, m)["ressl"], "in 'model'.*; give --method ressl"),
    "LEWEL's": (
        lambda m: layouts(m, m)["lewel"],
        "in 'state_dict'.*; give --method lewel",
    ),
    "no ResNet": (
        lambda m: {"net": {"blocks.0.weight": torch.ones(1)}},
        "found no ResNet, but net; give a file",
    ),
    "nothing": (lambda m: {}, r"in 'net', found an empty dict or none \(dict\); give a file"),
    "a tensor": (lambda m: torch.ones(3), r"found an empty dict or none \(Tensor\)"),
    "numbered": (
        lambda m: {0: torch.ones(3), 1: {2: 3}},
        "found no ResNet, but 0, 1; give a file",
    ),
}


@pytest.mark.parametrize("content", CONTENT)
def test_another_layout_is_told_what_was_found(small, tmp_path, content):
    build, message = CONTENT[content]
    torch.save(build(small[1]), tmp_path / "a.pth")
    refused(InputError, message, tmp_path / "a.pth", tmp_path / "w")


def test_each_layout_is_refused_for_every_strict_method_but_its_own(small, tmp_path):
    for name, content in layouts(small[1], small[1]).items():
        torch.save(content, tmp_path / "a.pth")
        for method in {"cgh", "ressl", "lewel", "moco_v2"} - {name}:
            refused(
                InputError,
                "expected .* in .*, found .*; give --method",
                tmp_path / "a.pth",
                tmp_path / "w",
                method,
            )


@pytest.mark.parametrize("new", [True, False])
def test_a_damaged_file_is_refused(small, tmp_path, new):
    torch.save(
        {"net": named("encoder_q.", small[1])},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=new,
    )
    whole = (tmp_path / "a.pth").read_bytes()
    for keep in (len(whole) - 1, len(whole) // 2, 1000, 100, 21):
        (tmp_path / "a.pth").write_bytes(whole[:keep])
        refused(
            IntegrityError, "not a whole checkpoint|damaged, or", tmp_path / "a.pth", tmp_path / "w"
        )


def test_a_flipped_bit_in_an_archive_is_noticed(small, tmp_path):
    whole = bytearray((small[0] / "cgh.pth").read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(whole)
    refused(
        IntegrityError,
        r"not a whole checkpoint \(ValueError: the checksum",
        tmp_path / "a.pth",
        tmp_path / "w",
    )


@pytest.mark.parametrize(
    "body", [b"", b"<html>404</html>", b"PK", b"\x1f\x8b\x08\x00gzip", b"version https://git-lfs"]
)
def test_what_torch_did_not_save_is_refused(tmp_path, body):
    (tmp_path / "a.pth").write_bytes(body)
    refused(
        IntegrityError,
        "begins with .* not as torch.save begins",
        tmp_path / "a.pth",
        tmp_path / "w",
    )
    (tmp_path / "a.safetensors").write_bytes(body)
    refused(
        IntegrityError,
        "not a readable safetensors file",
        tmp_path / "a.safetensors",
        tmp_path / "w",
    )


def test_an_archive_that_unfolds_is_refused(small, tmp_path):
    with (
        zipfile.ZipFile(small[0] / "cgh.pth") as old,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.infolist():
            new.writestr(
                part.filename, bytes(part.file_size) if "data/" in part.filename else old.read(part)
            )
    refused(IntegrityError, "unfold to more than the file", tmp_path / "a.pth", tmp_path / "w")


def test_a_program_is_refused(tmp_path, recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.save(
            torch.jit.trace(network(SMALL), torch.zeros(1, 3, 32, 32)), tmp_path / "a.pth"
        )
    refused(IntegrityError, "a TorchScript program", tmp_path / "a.pth", tmp_path / "w")
    assert not recwarn.list


def test_a_file_of_unreasonable_size_is_refused_unread(tmp_path):
    with open(tmp_path / "a.pth", "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**33 + 1)  # no bytes on disk
    refused(
        IntegrityError, "8589934593 bytes, more than 8589934592", tmp_path / "a.pth", tmp_path / "w"
    )


MISTAKES = [
    (
        "none.pth --method cgh --out o",
        "none.pth: not found; expected a file of weights that the authors wrote",
    ),
    (
        "cgh.pth --method lewel --out o --arch {small}",
        "expected online_net.backbone.layer1.0.* in 'state_dict', found",
    ),
    ("cgh.pth --method dino --out o", "--method"),
    ("cgh.pth --method cgh --out full --arch {small}", "full: exists and is not an empty folder"),
    (
        "cgh.pth --method cgh --out o --arch resnet81",
        "architecture 'resnet81': timm has no model of this name; did you",
    ),
    ("cgh.pth --method cgh --out o --arch resnet50", "--arch resnet50 does not fit"),
    ("cgh.pth --method cgh --out o --tag My-Tag", "--tag 'My-Tag': expected lower-case letters"),
    (
        "cgh.pth --method cgh --out o --arch {small} --image-size 0",
        "image_size=0: at least 1 is needed",
    ),
    ("cgh.pth --method cgh --out o --arch {small} --image-size 9999", "at most 4096"),
    (
        "cgh.pth --method cgh --out o --arch {small} --mean nan 0 0",
        "each has to be a number",
    ),
    ("cgh.pth --method cgh --out o --arch {small} --std 0 1 1", "std=(0.0, 1.0, 1.0)"),
    ("cgh.pth --method cgh --out o --arch {small} --epochs -1", "--epochs -1"),
    ("full --method cgh --out o", "full: not found; expected a file of weights"),
]


@pytest.mark.parametrize("words, message", MISTAKES, ids=[m[0][:70] for m in MISTAKES])
def test_a_mistake_is_one_line_and_exit_2(small, tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "cgh.pth").write_bytes((small[0] / "cgh.pth").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cgh", "convert", *words.format(small=SMALL).split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert (
        stopped.value.code == 2
        and message in said
        and len(said.splitlines()) == 1
        and said.startswith("error: ")
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cgh.pth", "full"]
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_from_python_an_unknown_method_or_recipe_is_one_sentence(small, tmp_path):
    for options in ({"method": "dino"}, {"method": "cgh", "recipe": "mnist"}):
        with pytest.raises(InputError, match="expected one of (cgh, ressl|imagenet, cifar)"):
            convert(small[0] / "cgh.pth", tmp_path / "w", **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_check_leaves_nothing_behind(small, tmp_path, monkeypatch):
    monkeypatch.setattr("cgh_models.hub.convert.verify", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(small[0] / "cgh.pth", tmp_path / "w", "cgh", arch=SMALL, recipe="cifar")
    assert [p.name for p in tmp_path.iterdir()] == ["w"] and not list((tmp_path / "w").iterdir())
