"""torch.hub: an entry for each row, list and help from the manifest, no leaked names."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HUB, PACKAGED

from cgh_models import create_model
from cgh_models.hub import manifest
from cgh_models.hub.row import BACKBONE

REPO = Path(__file__).resolve().parents[1]
OPTIONS = {"skip_validation": True, "trust_repo": True}
ENTRIES = [name.replace(".", "_") for name in manifest.names()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of what torch.hub downloads, where it searches for it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "owner_repo_main"
    path.mkdir(parents=True)
    for file in ("hubconf.py", "weights_manifest.json"):
        shutil.copy(REPO / file, path)
    shutil.copytree(
        REPO / "cgh_models", path / "cgh_models", ignore=shutil.ignore_patterns("__pycache__")
    )
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_weights_folder_loads_through_torch_hub(weights):
    model = torch.hub.load(str(REPO), "cgh", source="local", weights=str(weights))
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.num_features)


@pytest.mark.filterwarnings("ignore")
def test_list_names_the_rows_and_nothing_else(folder):
    assert sorted(torch.hub.list("owner/repo:main", **OPTIONS)) == sorted(["cgh", *ENTRIES])
    assert "written by `cgh export`" in torch.hub.help("owner/repo:main", "cgh", **OPTIONS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", manifest.names())
def test_help_tells_what_the_manifest_says_data_first(folder, name):
    row, text = (
        manifest.row(name),
        torch.hub.help("owner/repo:main", name.replace(".", "_"), **OPTIONS),
    )
    knn = row.metrics["knn"]
    assert text.index(row.data.name) < text.index("Measured:") < text.index(f"{knn.value} %")
    assert row.data.license_note in text and row.paper_ids[0] in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", manifest.names())
def test_every_row_loads_through_torch_hub(folder, name):
    HUB.log.clear()
    entry, x = (
        name.replace(".", "_"),
        torch.randn(2, *manifest.row(name).preprocessing.input_size),
    )
    model = torch.hub.load("owner/repo:main", entry, **OPTIONS).eval()
    assert torch.equal(model(x), create_model(name).eval()(x))
    assert torch.hub.load("owner/repo:main", entry, num_classes=3, **OPTIONS)(x).shape == (2, 3)
    assert not torch.equal(
        torch.hub.load("owner/repo:main", entry, pretrained=False, **OPTIONS).eval()(x), model(x)
    )
    assert HUB.gets() == []


def fresh(folder, code, **env):
    import os

    words = [sys.executable, "-c", code]
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder.parent,
        env={**os.environ, **env},
    )


def test_a_missing_package_gets_torch_hubs_own_message(folder):
    code = """
import sys, torch
sys.modules["requests"] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "requests" else real(name, *rest)
torch.hub.load("owner/repo:main", "cgh", weights="x", skip_validation=True, trust_repo=True)
"""
    assert "RuntimeError: Missing dependencies: requests" in fresh(folder, code).stderr


@pytest.mark.skipif(not ENTRIES, reason="no row yet")
def test_an_altered_file_in_a_hub_folder_is_refused(folder):
    path = folder / "cgh_models" / "weights" / PACKAGED / BACKBONE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code = f"""
import torch
torch.hub.load({str(folder)!r}, {PACKAGED.replace(".", "_")!r}, source="local")
"""
    said = fresh(folder, code, PYTHONPATH=str(folder)).stderr
    assert "IntegrityError" in said and str(path) in said and "sha256 differs: expected" in said


@pytest.mark.skipif(not ENTRIES, reason="no row yet")
def test_an_other_version_already_imported_is_said(folder):
    code = folder / "cgh_models" / "version.py"
    code.write_text(code.read_text().replace('__version__ = "', '__version__ = "9.'))
    with pytest.warns(
        UserWarning, match=r"cgh_models .* is already imported and is used, not the 9\."
    ):
        torch.hub.load("owner/repo:main", ENTRIES[0], **OPTIONS)
