"""The loop: exact resume, finite or stopped, one trainer a folder, what is left behind."""

import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_images
from PIL import Image
from small_runs import QUICK, build, final, lines, small, stop_at

from cgh_models import tensors
from cgh_models.backbone import create
from cgh_models.data.decode import BadFile
from cgh_models.data.image_set import load
from cgh_models.data.loader import order
from cgh_models.errors import DiskError, InputError, Interrupted
from cgh_models.hub.registry import load_run
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain
from cgh_models.train.metric_log import MetricLogger
from cgh_models.train.run_folder import LOCK
from cgh_models.view_recipes import RECIPES


def test_one_line_per_step_with_named_losses_and_measurements(image_root, tmp_path):
    config = dataclasses.replace(QUICK, eval_data=str(image_root), eval_every=1.0)
    pretrain(build(config=config), image_root / "train", config, tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(13))
    assert rows[1]["lr"] > 0 and rows[1].keys() >= {
        "loss",
        "global_to_hyper",
        "hyper_to_global",
        "info_nce",
        "grad_norm",
        "epoch",
    }
    assert [row["step"] for row in rows if "knn" in row] == [0, 4, 8, 12]
    assert all(0 <= row["knn"] <= 100 and row["effective_rank"] > 1 for row in rows if "knn" in row)


def test_a_monitor_that_is_off_looks_at_nothing(image_root, tmp_path, monkeypatch):
    config = dataclasses.replace(QUICK, eval_data=str(image_root), eval_every=-1.0)
    monkeypatch.setattr("cgh_models.train.monitor.embeddings", None)
    monkeypatch.setattr("cgh_models.train.monitor.load_splits", None)
    pretrain(build(config=config), image_root / "train", config, tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(13)) and all(
        "effective_rank" not in row for row in rows
    )


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_run_that_collapsed_says_so_last(image_root, tmp_path, capsys, scale):
    method = build()
    final_norm = method.student.backbone.layer4[-1].bn2
    shortcut = method.student.backbone.layer4[0].downsample[-1]
    for norm in (final_norm, method.student.backbone.layer4[0].bn2, shortcut):
        torch.nn.init.constant_(norm.weight, scale)
        torch.nn.init.constant_(norm.bias, 0.5)
    config = dataclasses.replace(QUICK, epochs=1, base_lr=0.0)
    pretrain(method, image_root / "train", config, tmp_path / "run")
    ending = capsys.readouterr().err
    pretrain(method, image_root / "train", config, tmp_path / "run", resume=True)
    for said in (ending, capsys.readouterr().err):
        last = said.splitlines()[-1]
        assert ("but it collapsed" in last) == (scale == 0), last
        assert ("cgh export" in last) == (scale == 1), last


def test_tensorboard_files_are_written_when_asked_for(image_root, tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(
        build(),
        image_root / "train",
        dataclasses.replace(QUICK, tensorboard=True),
        tmp_path / "run",
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 13))
    logged = [row["loss"] for row in lines(tmp_path / "run")[1:]]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged)
    measured = [row["step"] for row in lines(tmp_path / "run") if "feature_std" in row]
    assert [e.step for e in events.Images("neighbours")] == measured
    sheet = np.asarray(Image.open(io.BytesIO(events.Images("neighbours")[0].encoded_image_string)))
    assert sheet.shape == (8 * 64, 6 * 64, 3)
    images = load(image_root / "train")
    first = images.image(int(order(0, 0, 64)[0])).resize((64, 64))
    assert np.array_equal(sheet[:64, :64], np.asarray(first))  # an image is its own nearest
    for number, view in enumerate(RECIPES[build().view_recipe]):
        (views,) = events.Images(f"views/{number}")
        assert views.step == 0 and views.height == view.side(QUICK.image_size)


def test_on_log_gets_each_line_of_the_log(image_root, tmp_path):
    rows = []
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run", on_log=rows.append)
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in log] and len(rows) == 13


def test_a_run_whose_images_go_away_saves_what_it_has_and_can_go_on(image_root, tmp_path):
    photos, away, run = tmp_path / "photos", tmp_path / "away", tmp_path / "run"
    shutil.copytree(image_root / "train", photos)
    config = dataclasses.replace(QUICK, memory_gib=0, workers=0)

    def move_away(row):
        if row["step"] == 5:
            photos.rename(away)

    said = rf"cannot be opened.*; saved at step 5, `cgh resume {run}`$"
    with pytest.raises(InputError, match=said):
        pretrain(build(config=config), photos, config, run, on_log=move_away)
    away.rename(photos)
    pretrain(build(config=config), photos, config, run, resume=True)
    whole = build(config=config)
    pretrain(whole, photos, config, tmp_path / "whole")
    assert lines(run) == lines(tmp_path / "whole")


def test_class_folders_without_eval_data_are_measured_among_themselves(image_root, tmp_path):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    assert "knn_train" in lines(tmp_path / "run")[-1]


class Exploding:
    """A method whose loss is not finite at a chosen step; otherwise ReSSL."""

    def __new__(cls, step: int):
        method = build("ressl")
        real, taken = method.forward, []

        def forward(views, progress):
            taken.append(1)
            losses = real(views, progress)
            return {"loss": losses["loss"] * (float("nan") if len(taken) == step else 1)}

        method.forward = forward
        return method


def test_a_non_finite_loss_names_the_step_and_the_files_and_saves_nothing_of_it(
    image_root, tmp_path
):
    config = dataclasses.replace(QUICK, log_every=5, checkpoint_every=5, eval_every=9.0)
    with pytest.raises(
        InputError, match=r"step 7: loss or gradient is not finite .* lower --base-lr"
    ):
        pretrain(Exploding(7), image_root / "train", config, tmp_path / "run")
    named = (tmp_path / "run" / "nonfinite_batches.txt").read_text().splitlines()
    assert len(named) == 4 * 16 and named[0].startswith("7\tclass") and named[-1].startswith("10\t")
    assert [row["step"] for row in lines(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6]
    assert checkpoint.read_index(tmp_path / "run")[0].step == 5
    assert all(torch.isfinite(t.float()).all() for t in final(tmp_path / "run").values())


def test_a_run_folder_in_use_or_already_used_is_refused(image_root, tmp_path):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run; `cgh resume"):
        pretrain(build(), image_root / "train", QUICK, tmp_path / "run")


HOLDER = """
import fcntl, sys
held = open(sys.argv[1], "r+")
held.write("process 42 on elsewhere")
held.truncate()
held.flush()
fcntl.lockf(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="file locks")
def test_a_second_trainer_on_a_run_folder_is_refused_naming_the_first(image_root, tmp_path):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run" / LOCK)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="process 42 on elsewhere is training here"):
            pretrain(build(), image_root / "train", QUICK, tmp_path / "run", resume=True)


def test_files_that_are_not_a_runs_are_never_touched(image_root, tmp_path):
    """A folder with anything else in it is refused, whatever its files are called."""
    for name in (
        "checkpoint-best.safetensors",
        "metrics.jsonl",
        "notes.txt",
        "config.json",
        "lock",
    ):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(InputError, match="not an empty folder|the keys .* are missing"):
            pretrain(build(), image_root / "train", QUICK, folder)
        assert (folder / name).read_text() == "{}"
        assert [file.name for file in folder.iterdir()] == [name]


def test_the_log_of_a_run_whose_checkpoints_are_lost_is_not_removed(image_root, tmp_path):
    run = tmp_path / "run"
    config = dataclasses.replace(QUICK, epochs=1)
    pretrain(build(), image_root / "train", config, run)
    for path in run.glob("checkpoint*"):
        path.unlink()
    log = (run / "metrics.jsonl").read_bytes()
    lost = "its log goes to step 4, but its checkpoints are lost; put them back, or give"
    for use in (
        lambda: pretrain(build(), image_root / "train", config, run),
        lambda: pretrain(build(), image_root / "train", config, run, resume=True),
        lambda: load_run(run),
    ):
        with pytest.raises(InputError, match=f"^{run}: {lost} `cgh pretrain` another --out$"):
            use()
    assert (run / "metrics.jsonl").read_bytes() == log
    (run / "metrics.jsonl").write_bytes(log.splitlines(True)[0])  # killed before a checkpoint
    pretrain(build(), image_root / "train", config, run)
    assert [row["step"] for row in lines(run)] == [0, 1, 2, 3, 4]
    for path in run.glob("checkpoint*"):
        path.unlink()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl" / "mine").mkdir(parents=True)
    pretrain(build(), image_root / "train", config, run)
    (aside,) = run.glob("metrics.jsonl.*")
    assert (aside / "mine").is_dir() and len(lines(run)) == 5


def test_an_image_that_was_mended_is_good_when_the_command_is_given_again(tmp_path, capsys):
    make_images(tmp_path / "set", 64)
    path = tmp_path / "set" / "class1" / "00013.png"
    whole = path.read_bytes()
    path.write_bytes(b"no image")
    config = dataclasses.replace(QUICK, epochs=1)
    with pytest.raises(InputError, match="1 of 64 images cannot be read, more than 1 %"):
        pretrain(build(), tmp_path / "set", config, tmp_path / "run")
    with pytest.raises(InputError, match="1 of 64 images cannot be read, more than 1 %"):
        pretrain(build(), tmp_path / "set", config, tmp_path / "run")
    with pytest.raises(InputError, match="remove them, or give --max-bad 0.02, which replaces"):
        pretrain(build(), tmp_path / "set", config, tmp_path / "run")
    more = dataclasses.replace(config, max_bad=0.02)
    pretrain(build(), tmp_path / "set", more, tmp_path / "with_others")
    assert (tmp_path / "with_others" / "bad_files.txt").read_text().startswith("class1/00013.png")
    path.write_bytes(whole)
    pretrain(build(), tmp_path / "set", config, tmp_path / "run")
    assert "bad_files.txt: 1 of the images that it names can be read now" in capsys.readouterr().err


def test_a_run_is_resumed_when_its_bad_images_were_mended_and_no_other_changed(
    tmp_path, monkeypatch
):
    make_images(tmp_path / "set", 120)
    path = tmp_path / "set" / "class1" / "00077.png"
    whole = path.read_bytes()
    path.write_bytes(b"no image")
    config = dataclasses.replace(QUICK, epochs=1)
    for resume in (
        False,
        True,
    ):  # mended at the second start; the third finds the list of the first
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            with pytest.raises(Interrupted):
                pretrain(build(), tmp_path / "set", config, tmp_path / "run", resume=resume)
        path.write_bytes(whole)
    images = load(tmp_path / "set")
    pretrain(build(), images, config, tmp_path / "run", resume=True)
    assert not images.bad and lines(tmp_path / "run")[-1]["step"] == 7
    (tmp_path / "set" / "class1" / "00001.png").write_bytes(whole)
    with pytest.raises(InputError, match="data: 120 -> 120 images, and not the same files"):
        pretrain(build(), tmp_path / "set", config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("gib, workers", [(1, 0), (0, 2)])
def test_a_few_bad_files_do_not_stop_a_run(tmp_path, gib, workers):
    make_images(tmp_path / "set", 120)
    (tmp_path / "set" / "class1" / "00077.png").write_bytes(b"no image")
    config = dataclasses.replace(QUICK, epochs=1, memory_gib=gib, workers=workers)
    pretrain(build(), tmp_path / "set", config, tmp_path / "run")
    assert (
        (tmp_path / "run" / "bad_files.txt")
        .read_text()
        .startswith("class1/00077.png\tnot readable")
    )
    assert "knn_train" in lines(tmp_path / "run")[-1]


def test_weights_that_are_not_finite_are_not_saved(image_root, tmp_path):
    method = build()
    with torch.no_grad():
        method.teacher.projector[2].bias[0] = float("inf")
    with pytest.raises(
        InputError, match="step 0: the weights are not finite and were not saved; start anew"
    ):
        pretrain(method, image_root / "train", QUICK, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_a_full_disk_for_the_log_loses_no_line(image_root, tmp_path, monkeypatch, capsys):
    real, failed = MetricLogger._write, []

    class Full:
        """The log's file, with no room for three writes in the middle."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if len(failed) < 3 and b'"step": 4' in data:
                failed.append(1)
                written = self.file.write(data[:5])
                if len(failed) < 3:  # the kernel says either this or how little it took
                    raise OSError(28, "No space left on device")
                return written
            return self.file.write(data)

    def write(self, row):
        if not isinstance(self._file, Full):
            self._file = Full(self._file)
        real(self, row)

    monkeypatch.setattr(MetricLogger, "_write", write)
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    assert len(failed) == 3 and [row["step"] for row in lines(tmp_path / "run")] == list(range(13))
    assert (
        capsys.readouterr().err.count("metrics.jsonl: cannot be written (No space left on device)")
        == 1
    )


def test_a_batch_larger_than_the_set_is_refused_before_anything_starts(image_root, tmp_path):
    config = dataclasses.replace(QUICK, batch_size=65)
    with pytest.raises(
        InputError,
        match="batch size 65: larger than the set of 64 images .* give --batch-size 64 or less",
    ):
        pretrain(build(), image_root / "train", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_old_checkpoint_and_training_goes_on(
    image_root, tmp_path, monkeypatch, capsys
):
    real = tensors.save_file

    def full(state, path, metadata):
        if "00000004" in str(path) or "00000008" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(state, path, metadata)

    monkeypatch.setattr(tensors, "save_file", full)
    pretrain(
        build(),
        image_root / "train",
        dataclasses.replace(QUICK, checkpoint_every=4),
        tmp_path / "run",
    )
    said = capsys.readouterr().err
    assert "bytes are needed" in said and "are free: make room; training goes on" in said
    assert [entry.step for entry in checkpoint.read_index(tmp_path / "run")] == [12, 0]
    monkeypatch.setattr(
        tensors, "save_file", lambda *a: full(a[0], a[1].with_name("00000004"), a[2])
    )
    with pytest.raises(DiskError):
        pretrain(build(), image_root / "train", QUICK, tmp_path / "other")


def test_a_users_own_method_needs_no_registration(image_root, tmp_path):
    class Mine(type(build("ressl"))):
        name = "mine"

    torch.manual_seed(0)
    pretrain(
        Mine(create("resnet18_cifar_w16"), Mine.Config(**small("ressl"))),
        image_root / "train",
        QUICK,
        tmp_path / "run",
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == "mine"


def test_images_may_be_given_as_a_set(image_root, tmp_path):
    images = load(image_root / "train")
    pretrain(build(), images, QUICK, tmp_path / "run")
    assert images.pixels is not None


def test_a_folder_without_file_locks_is_said_and_used(image_root, tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl", reason="file locks")

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    pretrain(build(), image_root / "train", dataclasses.replace(QUICK, epochs=1), tmp_path / "run")
    assert (
        "no file locks there (No locks available): do not start two trainers on it"
        in capsys.readouterr().err
    )


def test_bad_files_that_cannot_be_named_do_not_end_a_run(tmp_path, capsys):
    make_images(tmp_path / "set", 120)
    (tmp_path / "set" / "class1" / "00077.png").write_bytes(b"no image")
    images = load(tmp_path / "set")
    images.bad_file = tmp_path / "gone" / "bad_files.txt"
    images.record_bad_files([BadFile(images.names.index("class1/00077.png"), "not readable")])
    assert (
        len(images.bad) == 1
        and "bad files cannot be named in it (No such file" in capsys.readouterr().err
    )
