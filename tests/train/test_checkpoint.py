"""Checkpoints: damage is found, nothing is lost to a kill, no pickle anywhere."""

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cgh_models
from cgh_models import files
from cgh_models.errors import DiskError, InputError, IntegrityError
from cgh_models.tensors import read_tensors
from cgh_models.train import checkpoint


def make(value: float):
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.fill_(value)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints of steps 2 and 3; that of step 1 has gone."""
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, *make(step))
    return tmp_path


def test_the_last_two_are_kept_and_listed_with_size_and_sha256(run):
    entries = checkpoint.checkpoints(run)
    assert [e["step"] for e in entries] == [3, 2]
    assert sorted(p.name for p in run.glob("*.safetensors")) == sorted(e["file"] for e in entries)
    assert entries[0]["bytes"] == (run / entries[0]["file"]).stat().st_size
    assert len(entries[0]["sha256"]) == 64


def test_state_comes_back_to_the_bit(run):
    module, optimizer = make(3)
    torch.manual_seed(5)
    checkpoint.save(run, 4, module, optimizer)
    expected = torch.rand(3)
    other, its_optimizer = make(0)
    checkpoint.load(checkpoint.newest(run, print)[1], other, its_optimizer)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(other.weight, module.weight)
    for mine, theirs in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def test_any_changed_byte_is_noticed_and_the_older_checkpoint_is_taken(run):
    newest = run / checkpoint.checkpoints(run)[0]["file"]
    whole = newest.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        newest.write_bytes(damaged)
        said = []
        assert checkpoint.newest(run, said.append)[0] == 2
        assert "damaged" in said[0] and newest.name in said[0]
    newest.unlink()
    assert checkpoint.newest(run, said.append)[0] == 2
    (run / checkpoint.checkpoints(run)[1]["file"]).write_bytes(b"")
    with pytest.raises(IntegrityError, match="every checkpoint is damaged"):
        checkpoint.newest(run, said.append)


OUTSIDE = '{"checkpoints": [{"file": "../x", "step": 1, "bytes": 1, "sha256": "0"}]}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"checkpoints": 3}', '{"checkpoints": [{"step": 1}]}', OUTSIDE])
def test_a_damaged_list_of_checkpoints_is_one_sentence(run, text):
    (run / "checkpoints.json").write_text(text)
    with pytest.raises(IntegrityError, match="checkpoints.json"):
        checkpoint.newest(run, print)


def test_a_run_without_checkpoints_and_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.newest(tmp_path, print)
    with pytest.raises(InputError, match="not found; expected the config.json of a run folder"):
        checkpoint.read_run(tmp_path)


def test_after_a_fallback_the_damaged_checkpoint_does_not_push_out_the_good_one(run):
    (run / checkpoint.checkpoints(run)[0]["file"]).write_bytes(b"damaged")
    assert checkpoint.newest(run, lambda _: None)[0] == 2
    checkpoint.save(run, 3, *make(3))
    assert [e["step"] for e in checkpoint.checkpoints(run)] == [3, 2]
    (run / checkpoint.checkpoints(run)[0]["file"]).write_bytes(b"damaged")
    checkpoint.save(run, 2 + 0, *make(2))
    assert [e["step"] for e in checkpoint.checkpoints(run)] == [2]


def test_leftovers_of_a_killed_run_are_swept_and_nothing_else(run):
    (run / "checkpoint-best.safetensors").write_bytes(b"mine")
    (run / ".checkpoint-00000009.safetensors.123.tmp").write_bytes(b"x")
    (run / "checkpoint-00000009.safetensors").write_bytes(b"x")
    checkpoint.sweep(run)
    assert len(list(run.iterdir())) == 4


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_files_have_the_mode_of_any_other_file(run):
    plain = run / "plain"
    plain.touch()
    assert {p.stat().st_mode for p in run.iterdir()} == {plain.stat().st_mode}


WRITER = """
import sys, torch
from pathlib import Path
from cgh_models import checkpoint, files
module = torch.nn.Linear(400, 300)
optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
print("ready", flush=True)
for step in range(int(sys.argv[2]), 10**6):
    torch.nn.init.constant_(module.weight, step)
    checkpoint.save(Path(sys.argv[1]), step, module, optimizer)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_kill_at_any_moment_of_saving_loses_nothing(tmp_path):
    """5 kills, and 20 looks at a stopped process: each time a whole checkpoint, never an older one than before."""
    generator, last = random.Random(0), 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(last + 1)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        kills = []
        for _ in range(5):  # the folder as it is at five moments, one of them the kill
            time.sleep(0.05 + generator.random() * 0.15)
            process.send_signal(signal.SIGSTOP)
            step, path = checkpoint.newest(tmp_path, kills.append)
            assert not kills and step >= last
            assert read_tensors(path)["method.weight"].unique().item() == step
            last = step
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        checkpoint.sweep(tmp_path)
        assert checkpoint.newest(tmp_path, kills.append)[0] >= last and not kills


def test_no_pickle_is_read_anywhere():
    for path in Path(cgh_models.__file__).parent.rglob("*.py"):
        source = path.read_text("utf-8")
        if path.name == "authors.py":  # `cgh convert`: authors' checkpoints are pickles, read without running any
            assert source.count("torch.load(") == source.count("weights_only=True") == 1
            continue
        assert "pickle" not in source.replace("no pickle", "") and "torch.load" not in source, path


def test_numbers_in_a_damaged_config_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"cgh_models": "1", "extra": 1}))
    with pytest.raises(InputError, match="unknown or missing keys"):
        checkpoint.read_run(tmp_path)


def test_a_read_only_file_system_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)  # it answers so even for files that are not there
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(DiskError, match=r"a.json: cannot be written \(Read-only file system\)"):
        files.write_json(tmp_path / "a.json", {})


def test_a_mount_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(tmp_path / "a.json", {"b": 1})
    assert files.read_json(tmp_path / "a.json", "a file") == {"b": 1}
