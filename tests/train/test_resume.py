"""A run that was stopped continues with the same result, or is refused with a reason."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import make_images
from small_runs import QUICK, build, final, lines, small, stop_at

from cgh_models.backbone import create
from cgh_models.data.image_set import ImageSet, load
from cgh_models.errors import InputError, Interrupted
from cgh_models.methods import METHODS
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain

CASES = {
    **{name: (name, {}, {}) for name in METHODS},
    "streamed": ("cgh", {"memory_gib": 0}, {}),
    "exact": ("cgh", {"views": "exact"}, {}),
    "two workers": ("mnclglf", {"memory_gib": 0, "workers": 2}, {}),
    "lars": ("lewel", {"optimizer": "lars"}, {}),
    "adamw": ("cgh", {"optimizer": "adamw"}, {}),
    "multi-crop": ("ressl", {}, {"multi_crop": True}),
    "symmetric": ("moco_v2", {}, {"symmetric": True}),
    "batch negatives": ("lewel_m", {"clip_norm": 0.1}, {"negatives": "batch"}),
}


@pytest.mark.parametrize("case", CASES)
def test_five_and_seven_steps_equal_twelve_to_the_bit(image_root, tmp_path, monkeypatch, case):
    """Every tensor of the state and every logged number; stopped within an epoch of four steps."""
    name, train, settings = CASES[case]
    config, data = dataclasses.replace(QUICK, **train), image_root / "train"
    pretrain(build(name, config, **settings), data, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(
            Interrupted, match="SIGTERM at step 5 of 12, saved; go on with `cgh resume"
        ):
            pretrain(build(name, config, **settings), data, config, tmp_path / "parts")
    other = build(
        name, dataclasses.replace(config, seed=99), **settings
    )  # resumed from other weights
    pretrain(other, data, config, tmp_path / "parts", resume=True)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert whole.keys() == parts.keys() and len(whole) > 100
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_signal_while_the_images_are_read_changes_nothing_of_the_run(
    image_root, tmp_path, monkeypatch
):
    def signalled(self, *_):
        self.pixels = torch.zeros(1)  # as far as it has come
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal ends the reading")

    pretrain(build(), image_root / "train", QUICK, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "cache_pixels", signalled)
        for resume in (False, True):
            with pytest.raises(Interrupted, match="SIGTERM at step 0 of 12, saved"):
                pretrain(build(), image_root / "train", QUICK, tmp_path / "parts", resume=resume)
    pretrain(build(), image_root / "train", QUICK, tmp_path / "parts", resume=True)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_resume_is_exact_with_random_depth_and_shuffled_split_statistics(
    image_root, tmp_path, monkeypatch
):
    """What draws from torch's own random state is saved with it."""

    def make():
        torch.manual_seed(0)
        backbone = create("resnet18_cifar_w16", drop_path_rate=0.5)
        return METHODS["cgh"](backbone, METHODS["cgh"].Config(**small("cgh", batch_norm_splits=4)))

    pretrain(make(), image_root / "train", QUICK, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            pretrain(make(), image_root / "train", QUICK, tmp_path / "parts")
    pretrain(make(), image_root / "train", QUICK, tmp_path / "parts", resume=True)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_resuming_a_finished_run_says_so_and_changes_nothing(image_root, tmp_path, capsys):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "lock"}
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run", resume=True)
    assert "finished at step 12 of 12" in capsys.readouterr().err
    assert before == {
        p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "lock"
    }


def test_a_resumed_run_refuses_what_would_change_it_and_explains_what_does_not(
    image_root, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    longer = dataclasses.replace(QUICK, epochs=6)
    with pytest.raises(
        InputError, match=r"epochs: 3 -> 6 changes the schedule.*cgh pretrain --init"
    ):
        pretrain(build(), image_root / "train", longer, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="teacher_momentum: 0.999 -> 0.5 changes the model"):
        pretrain(
            build(teacher_momentum=0.5), image_root / "train", QUICK, tmp_path / "run", resume=True
        )
    with pytest.raises(
        InputError, match="arch: resnet18_cifar_w16 -> test_resnet changes the model"
    ):
        pretrain(
            build(arch="test_resnet"), image_root / "train", QUICK, tmp_path / "run", resume=True
        )
    with pytest.raises(InputError, match="data: 64 -> 20 images, and not the same files"):
        pretrain(build(), image_root / "val", QUICK, tmp_path / "run", resume=True)
    shutil.copytree(image_root / "val", tmp_path / "val")
    shutil.copytree(image_root / "train", tmp_path / "val" / ".ipynb_checkpoints")
    said = r"data: 64 -> 20 images \(1 hidden or system entries are left out now\), and not"
    with pytest.raises(InputError, match=said):
        pretrain(build(), tmp_path / "val", QUICK, tmp_path / "run", resume=True)
    pretrain(
        build(),
        image_root / "train",
        dataclasses.replace(QUICK, workers=1),
        tmp_path / "run",
        resume=True,
    )
    assert "workers: 2 -> 1 changes nothing" in capsys.readouterr().err


def test_a_run_that_was_killed_before_it_saved_starts_over(image_root, tmp_path):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    expected = lines(tmp_path / "run")
    for path in [*(tmp_path / "run").glob("checkpoint*")]:
        path.unlink()
    (tmp_path / "run" / ".checkpoint-00000000.safetensors.7.tmp").write_bytes(b"half")
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    assert lines(tmp_path / "run") == expected and not list((tmp_path / "run").glob(".checkpoint*"))


@pytest.mark.parametrize("index", [None, "{", "older"])
def test_a_run_without_its_index_loses_no_checkpoint(
    image_root, tmp_path, monkeypatch, capsys, index
):
    """The index is missing, unreadable, or older: pretrain refuses, resume reads the files."""
    data, run = image_root / "train", tmp_path / "run"
    config = dataclasses.replace(QUICK, checkpoint_every=4)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(Interrupted):
            pretrain(build(), data, config, run)
    saved = {path.name: path.read_bytes() for path in run.glob("checkpoint-*")}
    assert saved.keys() == {"checkpoint-00000008.safetensors", "checkpoint-00000009.safetensors"}
    (run / "checkpoints.json").unlink()
    if index == "older":
        entry = {"file": "checkpoint-00000004.safetensors", "step": 4, "bytes": 9, "sha256": "0"}
        index = json.dumps({"checkpoints": [entry]})
    if index:
        (run / "checkpoints.json").write_text(index)
    with pytest.raises(InputError, match="run: holds a run; `cgh resume .*run` goes on with it"):
        pretrain(build(), data, config, run)
    assert {path.name: path.read_bytes() for path in run.glob("checkpoint-*")} == saved
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(Interrupted, match="step 10 of 12"):
            pretrain(build(), data, config, run, resume=True)
    assert "00000009.safetensors: not in checkpoints.json" in capsys.readouterr().err
    newest = "checkpoint-00000009.safetensors"  # the older one goes: two newer are known to be good
    assert (run / newest).read_bytes() == saved[newest] and len(checkpoint.read_index(run)) == 2
    pretrain(build(), data, config, run, resume=True)
    pretrain(build(), data, config, tmp_path / "whole")
    whole, parts = final(tmp_path / "whole"), final(run)
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]


def test_a_run_on_a_list_resumes_from_another_folder(image_root, tmp_path, monkeypatch):
    names = [f"train/{name}" for name in load(image_root / "train").names[:40]]
    (image_root / "forty.txt").write_text("\n".join(names))
    monkeypatch.chdir(image_root)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            pretrain(build(), "forty.txt", QUICK, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    path = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["path"]
    pretrain(build(), path, QUICK, tmp_path / "run", resume=True)
    assert checkpoint.read_index(tmp_path / "run")[0].step == 6


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_the_whole_process_group_saves_and_exits_75(tmp_path, name):
    """As a terminal's Ctrl-C does: trainer and workers all get it."""
    make_images(tmp_path / "set", 64)
    command = "pretrain --data set --out run --arch resnet18_cifar_w16 --recipe cifar"
    command += " --batch-size 16 --epochs 2000"
    process = subprocess.Popen(
        [sys.executable, "-m", "cgh_models", *command.split(), "--memory-gib", "0"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (
        metrics.exists() and metrics.read_text().count("\n") > 3
    ):
        time.sleep(0.2)
    os.killpg(process.pid, getattr(signal, name))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert err.splitlines()[-1].startswith("saved: run: " + name) and "Traceback" not in err
    assert checkpoint.newest(tmp_path / "run", print)[0] >= 3
