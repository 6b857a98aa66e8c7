"""Checkpoints: damage is found, nothing is lost to a kill, no pickle anywhere."""

import errno
import json
import os
import random
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import FORKS

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


def steps(run) -> set[int]:
    """Of the checkpoint files that are there."""
    return {int(path.stem.rpartition("-")[2]) for path in run.glob("checkpoint-*.safetensors")}


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints of steps 2 and 3; that of step 1 has gone."""
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, *make(step))
    return tmp_path


def test_the_last_two_are_kept_and_listed_with_size_and_sha256(run):
    entries = checkpoint.read_index(run)
    assert [entry.step for entry in entries] == [3, 2]
    assert sorted(p.name for p in run.glob("*.safetensors")) == sorted(e.file for e in entries)
    assert entries[0].bytes == (run / entries[0].file).stat().st_size
    assert len(entries[0].sha256) == 64


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
    newest, older = (run / entry.file for entry in checkpoint.read_index(run))
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
    older.write_bytes(b"")
    with pytest.raises(IntegrityError, match="every checkpoint is damaged"):
        checkpoint.newest(run, said.append)


OUTSIDE = '{"checkpoints": [{"file": "../x", "step": 1, "bytes": 1, "sha256": "0"}]}'
DAMAGED = ["", "{", "[]", '{"checkpoints": 3}', '{"checkpoints": [3]}', '{"checkpoints": ["a"]}']
DAMAGED += ['{"checkpoints": [["file"]]}', '{"checkpoints": [{"step": 1}]}', OUTSIDE]


@pytest.mark.parametrize("index", [None, *DAMAGED])
def test_without_a_readable_index_the_files_are_read_and_none_is_lost(run, index):
    (run / "checkpoints.json").unlink()
    if index is not None:
        (run / "checkpoints.json").write_text(index)
    said = []
    step, path = checkpoint.newest(run, said.append)
    assert step == 3 and len(said) == 1
    assert f"{path}: not in checkpoints.json, which is lost or older; read and taken" in said[0]
    checkpoint.save(run, 4, *make(4))
    assert steps(run) == {2, 3, 4}, "an index that names one checkpoint supersedes none"
    checkpoint.save(run, 5, *make(5))
    assert steps(run) == {4, 5} == {entry.step for entry in checkpoint.read_index(run)}


def test_an_index_that_is_older_than_the_files_loses_none_of_them(run):
    older = (run / "checkpoints.json").read_bytes()
    for step in (4, 5):
        checkpoint.save(run, step, *make(step))
    (run / "checkpoints.json").write_bytes(older)
    said = []
    assert checkpoint.newest(run, said.append)[0] == 5
    assert len(said) == 1 and "checkpoint-00000005.safetensors: not in checkpoints.json" in said[0]
    checkpoint.save(run, 6, *make(6))
    assert steps(run) == {4, 5, 6}
    checkpoint.save(run, 7, *make(7))
    assert steps(run) == {6, 7}


def test_a_file_that_is_no_checkpoint_is_named_and_left_alone(run):
    stray = run / "checkpoint-00000009.safetensors"
    stray.write_bytes(b"not a checkpoint")
    said = []
    assert checkpoint.newest(run, said.append)[0] == 3
    assert said == [f"{stray}: not a readable checkpoint; trying an older checkpoint"]
    for step in (4, 5, 6):
        checkpoint.save(run, step, *make(step))
    assert stray.read_bytes() == b"not a checkpoint" and steps(run) == {5, 6, 9}


def resume(run, expected):
    """As the loop does before it goes on."""
    assert checkpoint.resume_point(run, print)[0] == expected


def test_a_damaged_checkpoint_that_was_passed_over_is_never_taken_for_a_whole_one(run):
    """Not even if the next save is killed before the index is written: it has another name then."""
    checkpoint.save(run, 9, *make(9))
    damaged = run / "checkpoint-00000009.safetensors"
    with open(damaged, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert read_tensors(damaged), "its tensors can be read all the same"
    index = (run / "checkpoints.json").read_bytes()
    resume(run, 3)
    checkpoint.save(run, 4, *make(4))
    assert not damaged.exists() and checkpoint.newest(run, print)[0] == 4
    assert damaged.with_name(f"{damaged.name}.damaged").exists()
    (run / "checkpoints.json").write_bytes(index)
    assert checkpoint.newest(run, print)[0] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mem, whose start is an EIO")
@pytest.mark.parametrize("indexed", [True, False])
def test_a_checkpoint_that_the_system_does_not_read_keeps_its_name(run, indexed):
    path = run / "checkpoint-00000003.safetensors"
    whole = path.rename(run / "whole")
    path.symlink_to("/proc/self/mem")
    if not indexed:
        (run / "checkpoints.json").unlink()
    with pytest.raises(DiskError, match=f"^{path}: cannot be read .Input/output error.; check"):
        resume(run, 2)
    whole.rename(path)
    resume(run, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mem, whose start is an EIO")
def test_an_index_that_the_system_does_not_read_just_now_is_neither_lost_nor_written_anew(run):
    index = run / "checkpoints.json"
    content = index.read_bytes()
    index.unlink()
    index.symlink_to("/proc/self/mem")
    for use in (
        lambda: resume(run, 3),
        lambda: checkpoint.newest(run, print),
        lambda: checkpoint.save(run, 4, *make(4)),
    ):
        with pytest.raises(DiskError, match=f"^{index}: cannot be read .Input/output error"):
            use()
    assert index.is_symlink() and {2, 3} <= steps(run)
    index.unlink()
    index.write_bytes(content)
    resume(run, 4)


def test_a_run_is_a_folder_with_an_index_or_with_a_description_and_a_checkpoint(run):
    assert checkpoint.is_run(run)
    (run / "checkpoints.json").unlink()
    assert not checkpoint.is_run(run)
    (run / "config.json").write_text("{}")
    assert checkpoint.is_run(run)
    for path in run.glob("checkpoint-*"):
        path.unlink()
    assert not checkpoint.is_run(run) and not checkpoint.is_run(run / "none")


def test_a_run_without_checkpoints_and_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.newest(tmp_path, print)
    with pytest.raises(InputError, match="not found; expected the config.json of a run folder"):
        checkpoint.read_run(tmp_path)


def test_after_a_fallback_the_damaged_checkpoint_does_not_push_out_the_good_one(run):
    (run / checkpoint.read_index(run)[0].file).write_bytes(b"damaged")
    resume(run, 2)
    checkpoint.save(run, 4, *make(4))
    assert [entry.step for entry in checkpoint.read_index(run)] == [4, 2] and 2 in steps(run)
    (run / checkpoint.read_index(run)[0].file).unlink()
    resume(run, 2)
    checkpoint.save(run, 6, *make(6))
    assert [entry.step for entry in checkpoint.read_index(run)] == [6, 2] and 2 in steps(run)


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(run):
    (run / "checkpoint-best.safetensors").write_bytes(b"mine")
    (run / ".notes.tmp").write_bytes(b"mine")
    (run / ".checkpoint-00000009.safetensors.123.tmp").write_bytes(b"x")
    (run / ".checkpoints.json.123.tmp").write_bytes(b"x")
    checkpoint.remove_temporary_files(run)
    assert len(list(run.iterdir())) == 5


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_files_have_the_mode_of_any_other_file(run):
    plain = run / "plain"
    plain.touch()
    assert {p.stat().st_mode for p in run.iterdir()} == {plain.stat().st_mode}


def write_checkpoints(folder, first):
    module = torch.nn.Linear(400, 300)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(first, 10**6):
        torch.nn.init.constant_(module.weight, step)
        checkpoint.save(folder, step, module, optimizer)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_kill_at_any_moment_of_saving_loses_nothing(tmp_path):
    """Five kills, 20 checks of a stopped process: a whole checkpoint, never an older one."""
    generator, last, said = random.Random(0), 0, []
    for _ in range(5):
        process = FORKS.Process(target=write_checkpoints, args=(tmp_path, last + 1))
        process.start()
        while not any(step > last for step in steps(tmp_path)):
            assert process.exitcode is None
            time.sleep(0.01)
        for _ in range(5):  # the folder as it is at five moments, one of them the kill
            time.sleep(0.05 + generator.random() * 0.15)
            os.kill(process.pid, signal.SIGSTOP)
            step, path = checkpoint.newest(tmp_path, said.append)
            assert step >= last
            assert read_tensors(path)["method.weight"].unique().item() == step
            last = step
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.join()
        checkpoint.remove_temporary_files(tmp_path)
        step, _ = checkpoint.newest(tmp_path, said.append)
        assert step >= last
        last = step
        assert len(steps(tmp_path)) <= 4
    assert not [line for line in said if "damaged" in line or "not a readable" in line]


def test_no_pickle_is_read_anywhere():
    """Except by `cgh convert`: the authors' checkpoints are pickles, read without running any."""
    found = set()
    for path in Path(cgh_models.__file__).parent.rglob("*.py"):
        source = path.read_text("utf-8")
        if re.search(r"pickle\.loads?\(|Unpickler|torch\.load\(|allow_pickle=True", source):
            found.add(path.name)
            assert source.count("torch.load(") == source.count("weights_only=True") == 1
    assert found == {"author_checkpoints.py"}


def test_numbers_in_a_damaged_config_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"cgh_models": "1", "extra": 1}))
    with pytest.raises(
        InputError, match="config.json: .*extra.*; expected one written by cgh pretrain"
    ):
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
