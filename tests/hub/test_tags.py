"""The rows as timm tags: all that timm does with a tag, nothing of timm's lost, bytes checked.

This file also runs on the oldest timm that setup.cfg allows (see .ci/run); it trains nothing.
"""

import copy
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from conftest import PACKAGED
from timm.models import _registry

import cgh_models
from cgh_models import create_model
from cgh_models.errors import IntegrityError
from cgh_models.hub import autoload, manifest, tags
from cgh_models.hub import fetch as hub
from cgh_models.hub.row import BACKBONE, HEADS

NAMES = manifest.names()
TABLES = ("_model_pretrained_cfgs", "_model_has_pretrained", "_model_with_tags")  # of timm
NAME = NAMES[0]
ROW = manifest.row(NAME)
X = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def fresh(
    code: str, *flags: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess:
    words = [sys.executable, *flags, "-c", code]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **env}
    )


def test_the_issue_in_three_lines_offline():
    code = f"""
import cgh_models, timm
model = timm.create_model({NAME!r}, pretrained=True)
print(type(model).__module__, model.num_features)
"""
    done = fresh(code, HF_HUB_OFFLINE="1")
    assert done.stdout.split()[-1] == str(ROW.num_features), done.stderr


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package, with its packaged weights."""
    ignored = shutil.ignore_patterns("__pycache__", "sample")
    shutil.copytree(Path(cgh_models.__file__).parent, tmp_path / "cgh_models", ignore=ignored)
    return tmp_path


def test_one_changed_byte_of_the_packaged_file_is_refused_in_a_fresh_process(checkout):
    path = checkout / "cgh_models" / "weights" / NAME / BACKBONE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code = f"""
import cgh_models, timm
for create, words in ((timm.create_model, {{"pretrained": True}}), (cgh_models.create_model, {{}})):
    try:
        create({NAME!r}, **words)
    except Exception as error:
        print(type(error).__name__, error)
"""
    said = fresh(code, cwd=checkout, PYTHONPATH=str(checkout)).stdout.splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("IntegrityError ") and "sha256 differs: expected " in line
        assert str(path) in line and "install cgh-models again" in line


def test_the_tables_differ_by_our_rows_alone():
    code = """
import json, sys, timm
architectures = timm.list_models()

def tables():
    cfgs = {name: timm.get_pretrained_cfg(name) for name in architectures}
    return timm.list_pretrained(), {name: cfg and cfg.to_dict() for name, cfg in cfgs.items()}

before = tables()
import cgh_models
after = tables()
cgh_models._register()
twice = tables()
added = sorted(set(after[0]) ^ set(before[0]))
count = len(after[0]) - len(before[0])
print(json.dumps([added, count, before[1] == after[1], after == twice]))
"""
    assert json.loads(fresh(code).stdout) == [sorted(NAMES), len(NAMES), True, True]


def test_a_tag_on_an_architecture_of_timms_own_is_never_its_default(monkeypatch):
    row = dataclasses.replace(ROW, name="resnet34.cgh", architecture="resnet34")
    monkeypatch.setattr(manifest, "rows", lambda: {"resnet34.cgh": row})
    before, default = timm.list_pretrained(), timm.get_pretrained_cfg("resnet34").to_dict()
    tables = [copy.deepcopy(getattr(_registry, name)) for name in TABLES]
    known = _registry._model_default_cfgs["resnet34"]
    try:
        for _ in range(2):
            tags.register()
            assert [n for n in timm.list_pretrained() if n not in before] == ["resnet34.cgh"]
            assert timm.list_pretrained("resnet34.cgh*") == ["resnet34.cgh"]
            assert timm.is_model_pretrained("resnet34.cgh")
            assert timm.get_pretrained_cfg("resnet34").to_dict() == default
            assert timm.create_model("resnet34").pretrained_cfg["tag"] == default["tag"]
            assert "resnet34.cgh" in timm.list_models("resnet34.*", include_tags=True)
    finally:
        known.tags.remove("cgh")
        del known.cfgs["cgh"]
        for name, table in zip(TABLES, tables, strict=True):
            getattr(_registry, name).clear()
            getattr(_registry, name).update(table)
    assert timm.list_pretrained() == before


def test_what_timm_does_with_a_tag_works():
    model = timm.create_model(NAME, pretrained=True).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = create_model(NAME).eval()(X)
    assert torch.equal(model(X), expected)
    config = timm.data.resolve_model_data_config(model)
    assert config == ROW.preprocessing.to_timm()
    grey = timm.create_model(NAME, pretrained=True, num_classes=7, in_chans=1)
    assert grey(X[:, :1]).shape == (2, 7)
    assert torch.equal(grey.layer4[0].conv2.weight, model.layer4[0].conv2.weight)
    pyramid = timm.create_model(NAME, pretrained=True, features_only=True, out_indices=(2, 4))
    assert torch.equal(pyramid.eval()(X)[-1].mean((2, 3)), expected)
    assert torch.equal(
        model.forward_intermediates(X, intermediates_only=True)[-1].mean((2, 3)), expected
    )
    assert timm.create_model(NAME).pretrained_cfg["tag"] == NAME.partition(".")[2]


def test_a_weights_folder_with_heads_loads_in_plain_timm(tmp_path):
    """In older timm as well, which takes the only safetensors file of a folder for the weights."""
    shutil.copytree(manifest.PACKAGE / "weights" / PACKAGED, tmp_path / "w")
    (tmp_path / "w" / HEADS).parent.mkdir()
    (tmp_path / "w" / HEADS).write_bytes(b"heads")
    model = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    assert torch.equal(model(X), create_model(PACKAGED).eval()(X))
    assert timm.create_model(f"local-dir:{tmp_path / 'w'}", num_classes=3)(X).shape == (2, 3)


def test_create_model_takes_timms_arguments_too():
    assert create_model(NAME, num_classes=7)(X).shape == (2, 7)
    assert len(create_model(NAME, features_only=True)(X)) == 5
    assert create_model(NAME, num_classes=0).pretrained_cfg["architecture"] == ROW.architecture
    assert not torch.equal(
        create_model(NAME, pretrained=False).conv1.weight, create_model(NAME).conv1.weight
    )
    assert (
        cgh_models.list_models("resnet18_cifar*") and ROW.architecture in cgh_models.list_models()
    )


def test_loading_draws_no_random_number_and_leaves_nothing_without_memory():
    state = torch.get_rng_state()
    model = create_model(NAME)
    assert torch.equal(torch.get_rng_state(), state)
    assert not [t for t in (*model.parameters(), *model.buffers()) if t.is_meta]
    assert all(p.requires_grad for p in model.parameters()) and model.training
    with torch.no_grad():
        model.conv1.weight.zero_()  # ours alone: the next one is whole
    assert create_model(NAME).conv1.weight.abs().sum() > 0


def test_the_description_survives_copies_and_pickles():
    cfg = timm.get_pretrained_cfg(NAME)
    for twin in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert os.fspath(twin.file) == os.fspath(cfg.file) and str(twin.file).endswith(
            ".safetensors"
        )
    assert timm.create_model(NAME, pretrained=True).pretrained_cfg["file"] is not None


def test_a_saved_model_has_a_config_that_is_json(tmp_path):
    from timm.models import _hub

    if not _hub._has_hf_hub:
        pytest.skip("this timm is older than this huggingface_hub and cannot use it")
    _hub.save_for_hf(timm.create_model(NAME, pretrained=True), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == ROW.architecture


def test_a_file_without_some_key_is_refused_with_a_new_head_too(monkeypatch, tmp_path):
    from cgh_models.tensors import read_tensors, write_tensors

    whole = read_tensors(hub.fetch(ROW, BACKBONE))
    whole["layer4.0.renamed.weight"] = whole.pop("layer4.0.conv2.weight")
    write_tensors(tmp_path / "model.safetensors", whole)
    monkeypatch.setattr(hub, "fetch", lambda *_: tmp_path / "model.safetensors")
    with pytest.raises(
        IntegrityError, match=r"does not fit .*: 2 of \d+ tensors .* layer4.0.conv2.weight,"
    ):
        timm.create_model(NAME, pretrained=True, num_classes=10)


def test_a_timm_that_moved_its_tables_gives_a_warning(monkeypatch):
    monkeypatch.delattr(_registry, "_model_default_cfgs")
    with pytest.warns(
        UserWarning, match="timm does not know its weights .AttributeError: .*_model_default_cfgs"
    ):
        cgh_models._register()
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "rows", lambda: 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        cgh_models._register()


FIRST = ("import cgh_models, timm", "import timm, cgh_models", "import cgh_models.hub.tags, timm")


@pytest.mark.parametrize("first", FIRST)
def test_the_tags_are_there_whichever_is_imported_first(first):
    code = f"{first}; print(timm.list_pretrained('*.cgh*'), timm.list_models('resnet*_cifar*'))"
    done = fresh("import warnings; warnings.simplefilter('error', UserWarning);" + code)
    architectures = [
        "resnet10_cifar_fast",
        "resnet18_cifar",
        "resnet18_cifar_w16",
        "resnet50_cifar",
    ]
    assert done.stdout.strip() == f"{[name for name in NAMES if '.cgh' in name]} {architectures}"


def test_looking_for_timm_does_not_use_the_hook_up():
    code = """
import importlib.util, sys, cgh_models
assert importlib.util.find_spec("timm.models") and "timm" in sys.modules
import timm
print(timm.list_pretrained("*.cgh*"))
"""
    assert fresh(code).stdout.strip() == str([name for name in NAMES if ".cgh" in name])


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that a new interpreter treats as site-packages."""
    monkeypatch.setattr(autoload.sysconfig, "get_path", lambda name: str(tmp_path))
    return {"PYTHONPATH": str(Path(cgh_models.__file__).parents[1]), "SITE": str(tmp_path)}


START = "import os, site; site.addsitedir(os.environ['SITE']); "


def test_autoload_makes_import_timm_enough_and_off_undoes_it(site):
    code = START + "import sys; print('cgh_models' in sys.modules)"
    assert fresh(code, **site).stdout.strip() == "False"
    assert not autoload.switch(True) and autoload.path().name == "cgh_models_autoload.pth"
    timms = START + "import timm; print(timm.list_pretrained('*.cgh*') != [])"
    assert fresh(timms, **site).stdout.strip() == "True"
    assert fresh(code, **site, CGH_AUTOLOAD="0").stdout.strip() == "False"
    assert autoload.switch(False) and not autoload.switch(False)
    assert fresh(code, **site).stdout.strip() == "False" and not autoload.path().exists()


def test_autoload_imports_nothing_but_the_package_itself(site):
    autoload.switch(True)
    code = f"import sys, os, site; before = set(sys.modules); {START} "
    code += "print(*set(sys.modules) - before)"
    added = fresh(code, **site).stdout.split()
    assert "cgh_models" in added
    assert {name.partition(".")[0] for name in added} == {"cgh_models"}


def test_autoload_never_raises(site, tmp_path):
    autoload.switch(True)
    (tmp_path / "broken" / "cgh_models").mkdir(parents=True)
    (tmp_path / "broken" / "cgh_models" / "__init__.py").write_text("raise RuntimeError('broken')")
    for path in (tmp_path / "broken", tmp_path / "nowhere"):
        done = fresh(START + "print('started')", "-S", **site | {"PYTHONPATH": str(path)})
        assert (done.stdout, done.stderr) == ("started\n", "")


def test_no_warning_on_a_plain_import():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cgh_models._register()
