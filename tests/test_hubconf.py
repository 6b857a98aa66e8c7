"""torch.hub: load from a checkout, list, help, without leaked names."""

import shutil
from pathlib import Path

import pytest
import torch
from test_export import run, weights  # noqa: F401 - fixtures

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.filterwarnings("ignore")
def test_a_weights_folder_loads_through_torch_hub(weights):  # noqa: F811
    model = torch.hub.load(str(REPO), "cgh", source="local", weights=str(weights))
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.num_features)


@pytest.mark.filterwarnings("ignore")
def test_list_and_help_show_one_documented_entry(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "owner_repo_main"
    folder.mkdir(parents=True)
    shutil.copy(REPO / "hubconf.py", folder)
    shutil.copytree(REPO / "cgh_models", folder / "cgh_models", ignore=shutil.ignore_patterns("__pycache__"))
    options = {"skip_validation": True, "trust_repo": True}
    assert torch.hub.list("owner/repo:main", **options) == ["cgh"]
    assert "written by `cgh export`" in torch.hub.help("owner/repo:main", "cgh", **options)
