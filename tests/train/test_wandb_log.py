"""`--wandb` with the real library, which keeps what it would send on this machine."""

import json
import sys

import pytest

from cgh_models.cli.main import main
from cgh_models.errors import InputError
from cgh_models.train.wandb_log import wandb_log

WORDS = ["--recipe", "cifar", "--arch", "resnet18_cifar_w16", "--epochs", "1", "--workers", "0"]
WORDS += ["--batch-size", "16", "--set", "queue_length=64", "--device", "cpu"]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="the wandb extra is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    wandb.teardown()  # it remembers the mode


def test_each_line_of_the_log_goes_to_the_project(offline, image_root, monkeypatch):
    words = ["pretrain", "--data", str(image_root / "train"), "--out", "run", "--wandb", "my-birds"]
    monkeypatch.setattr(sys, "argv", ["cgh", *words, *WORDS])
    main()
    sys.modules["wandb"].teardown()  # writes what its process still holds
    (kept,) = offline.glob("wandb/offline-run-*/run-*.wandb")
    records = kept.read_bytes()
    rows = [json.loads(line) for line in (offline / "run" / "metrics.jsonl").open()]
    assert len(rows) == 5 and b"my-birds" in records and b"queue_length" in records
    for row in rows:
        for name in ("loss", "effective_rank"):
            if name in row:
                assert str(row[name]).encode() in records, (row["step"], name)


def test_without_a_project_there_is_no_listener(tmp_path):
    with wandb_log("", tmp_path, {}) as on_log:
        assert on_log is None


def test_without_the_library_the_error_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing = r"--wandb: not installed; type pip install '.\[wandb\]'"
    with pytest.raises(InputError, match=missing), wandb_log("birds", tmp_path, {}):
        pass


def test_without_a_login_the_error_says_what_to_type(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(offline))  # where a login would be
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    login = "--wandb birds: .*; type `wandb login`, or set WANDB_MODE=offline"
    with pytest.raises(InputError, match=login), wandb_log("birds", offline / "run", {}):
        pass
