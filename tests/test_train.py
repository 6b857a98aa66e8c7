"""The loop: exact resume, finite or stopped, one trainer a folder, what is left behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import make_images

from cgh_models import checkpoint, tensors
from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.data import load
from cgh_models.errors import DiskError, InputError, Interrupted
from cgh_models.methods import METHODS
from cgh_models.optim import create_optimizer
from cgh_models.train import pretrain, train_step

SMALL = {"projection_width": 8, "hidden_width": 16, "queue_length": 40}
QUICK = TrainConfig(image_size=32, batch_size=16, epochs=3, warmup_epochs=1, device="cpu")  # 64 images: 12 steps


def build(name="cgh", config=QUICK, arch="resnet18_cifar_w16", **settings):
    torch.manual_seed(config.seed)
    return METHODS[name](create(arch), METHODS[name].Config(**(SMALL | settings)))


def lines(run):
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "waiting")} for row in rows]


def final(run):
    _, path = checkpoint.newest(run, print)
    return tensors.read_tensors(path)


def stop_at(monkeypatch, step):
    """Sends this process SIGTERM while step ``step`` is taken."""
    import cgh_models.train as train

    real, taken = train.train_step, []

    def counting(*args):
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(train, "train_step", counting)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("gib, workers", [(1, 0), (0, 0), (0, 2)], ids=["memory", "streamed", "two workers"])
def test_five_and_seven_steps_equal_twelve_to_the_bit(image_root, tmp_path, monkeypatch, name, gib, workers):
    """Every tensor of the state and every logged number; stopped in the middle of an epoch of four steps."""
    config = dataclasses.replace(QUICK, memory_gib=gib, workers=workers)
    data = image_root / "train"
    pretrain(build(name, config), data, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted, match="SIGTERM at step 5 of 12, saved; go on with `cgh resume"):
            pretrain(build(name, config), data, config, tmp_path / "parts")
    torch.manual_seed(99)  # what resumes starts with other weights and another random state
    pretrain(
        METHODS[name](create("resnet18_cifar_w16"), METHODS[name].Config(**SMALL)),
        data,
        config,
        tmp_path / "parts",
        resume=True,
    )
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert whole.keys() == parts.keys() and len(whole) > 100
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_signal_while_the_images_are_read_changes_nothing_of_the_run(image_root, tmp_path, monkeypatch):
    from cgh_models.data import ImageSet

    real = ImageSet.keep_pixels

    def signalled(self, gib, stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        real(self, gib, stopped)
        assert self.pixels is None

    pretrain(build(), image_root / "train", QUICK, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "keep_pixels", signalled)
        for resume in (False, True):
            with pytest.raises(Interrupted, match="SIGTERM at step 0 of 12, saved"):
                pretrain(build(), image_root / "train", QUICK, tmp_path / "parts", resume=resume)
    pretrain(build(), image_root / "train", QUICK, tmp_path / "parts", resume=True)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_resume_is_exact_with_random_depth_and_shuffled_split_statistics(image_root, tmp_path, monkeypatch):
    """What draws from torch's own random state is saved with it."""

    def make():
        torch.manual_seed(0)
        backbone = create("resnet18_cifar_w16", drop_path_rate=0.5)
        return METHODS["cgh"](backbone, METHODS["cgh"].Config(**SMALL, batch_norm_splits=4))

    pretrain(make(), image_root / "train", QUICK, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            pretrain(make(), image_root / "train", QUICK, tmp_path / "parts")
    pretrain(make(), image_root / "train", QUICK, tmp_path / "parts", resume=True)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_one_line_per_step_with_named_losses_and_measurements(image_root, tmp_path):
    config = dataclasses.replace(QUICK, eval_data=str(image_root), eval_every=1.0)
    pretrain(build(config=config), image_root / "train", config, tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(13))
    assert rows[1]["lr"] == 0 and rows[1].keys() >= {
        "loss",
        "global_to_hyper",
        "hyper_to_global",
        "info_nce",
        "grad_norm",
        "epoch",
    }
    assert [row["step"] for row in rows if "knn" in row] == [0, 4, 8, 12]
    assert all(0 <= row["knn"] <= 100 and row["effective_rank"] > 1 for row in rows if "knn" in row)


def test_tensorboard_files_are_written_when_asked_for(image_root, tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(build(), image_root / "train", dataclasses.replace(QUICK, tensorboard=True), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 13))
    logged = [row["loss"] for row in lines(tmp_path / "run")[1:]]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged)


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


def test_a_non_finite_loss_names_the_step_and_the_files_and_saves_nothing_of_it(image_root, tmp_path):
    config = dataclasses.replace(QUICK, log_every=5, checkpoint_every=5, eval_every=9.0)
    with pytest.raises(InputError, match=r"step 7: loss or gradient is not finite .* lower --base-lr"):
        pretrain(Exploding(7), image_root / "train", config, tmp_path / "run")
    named = (tmp_path / "run" / "nonfinite_batches.txt").read_text().splitlines()
    assert len(named) == 4 * 16 and named[0].startswith("7\tclass") and named[-1].startswith("10\t")
    assert [row["step"] for row in lines(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6]
    assert checkpoint.checkpoints(tmp_path / "run")[0]["step"] == 5
    assert all(torch.isfinite(t.float()).all() for t in final(tmp_path / "run").values())


def test_a_non_finite_step_changes_neither_student_nor_optimizer_nor_queue():
    method = build("cgh").train()
    optimizer = create_optimizer(method, QUICK)
    views = list(torch.randn(2, 8, 3, 32, 32))
    train_step(method, optimizer, views, 0.5, 0.1, "cpu", torch.float32)
    student = [p.clone() for p in method.student.parameters()]
    momentum = [s["momentum_buffer"].clone() for s in optimizer.state.values()]
    queue = method.queue.rows.clone()
    views[0][0, 0, 0, 0] = float("inf")
    out = train_step(method, optimizer, views, 0.5, 0.1, "cpu", torch.float32)
    assert out["finite"] == 0
    assert all(torch.equal(a, b) for a, b in zip(student, method.student.parameters(), strict=True))
    assert all(torch.equal(a, s["momentum_buffer"]) for a, s in zip(momentum, optimizer.state.values(), strict=True))
    assert torch.equal(queue, method.queue.rows)
    assert all(torch.isfinite(p).all() for p in method.teacher.parameters())


def test_resuming_a_finished_run_says_so_and_changes_nothing(image_root, tmp_path, capsys):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "lock"}
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run", resume=True)
    assert "finished at step 12 of 12" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "lock"}


def test_a_resumed_run_refuses_what_would_change_it_and_explains_what_does_not(
    image_root, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    longer = dataclasses.replace(QUICK, epochs=6)
    with pytest.raises(InputError, match=r"epochs: 3 -> 6 changes the schedule.*cgh pretrain --init"):
        pretrain(build(), image_root / "train", longer, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="teacher_momentum: 0.999 -> 0.5 changes the model"):
        pretrain(build(teacher_momentum=0.5), image_root / "train", QUICK, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="arch: resnet18_cifar_w16 -> test_resnet changes the model"):
        pretrain(build(arch="test_resnet"), image_root / "train", QUICK, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="data: 64 -> 20 images, and not the same files"):
        pretrain(build(), image_root / "val", QUICK, tmp_path / "run", resume=True)
    pretrain(build(), image_root / "train", dataclasses.replace(QUICK, workers=1), tmp_path / "run", resume=True)
    assert "workers: 2 -> 1 changes nothing" in capsys.readouterr().err


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
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="process 42 on elsewhere is training here"):
            pretrain(build(), image_root / "train", QUICK, tmp_path / "run", resume=True)


def test_files_that_are_not_a_runs_are_never_touched(image_root, tmp_path):
    """Whatever they are called: a folder with something else in it is refused."""
    for name in ("checkpoint-best.safetensors", "metrics.jsonl", "notes.txt", "config.json"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(InputError, match="not an empty folder|unknown or missing keys"):
            pretrain(build(), image_root / "train", QUICK, folder)
        assert (folder / name).read_text() == "{}"


def test_a_run_that_was_killed_before_it_saved_starts_over(image_root, tmp_path):
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    expected = lines(tmp_path / "run")
    for path in [*(tmp_path / "run").glob("checkpoint*")]:
        path.unlink()
    (tmp_path / "run" / ".checkpoint-00000000.safetensors.7.tmp").write_bytes(b"half")
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    assert lines(tmp_path / "run") == expected and not list((tmp_path / "run").glob(".*"))


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
    assert checkpoint.checkpoints(tmp_path / "run")[0]["step"] == 6


@pytest.mark.parametrize("gib, workers", [(1, 0), (0, 2)])
def test_a_few_bad_files_do_not_stop_a_run(tmp_path, gib, workers):
    make_images(tmp_path / "set", 120)
    (tmp_path / "set" / "class1" / "00077.png").write_bytes(b"no image")
    config = dataclasses.replace(QUICK, epochs=1, memory_gib=gib, workers=workers)
    pretrain(build(), tmp_path / "set", config, tmp_path / "run")
    assert (tmp_path / "run" / "bad_files.txt").read_text().startswith("class1/00077.png\tnot readable")
    assert "knn_train" in lines(tmp_path / "run")[-1]


def test_weights_that_are_not_finite_are_not_saved(image_root, tmp_path):
    method = build()
    with torch.no_grad():
        method.teacher.projector[2].bias[0] = float("inf")
    with pytest.raises(InputError, match="step 0: the weights are not finite and were not saved; start anew"):
        pretrain(method, image_root / "train", QUICK, tmp_path / "run")
    assert not checkpoint.checkpoints(tmp_path / "run")


def test_a_full_disk_for_the_log_loses_no_line(image_root, tmp_path, monkeypatch, capsys):
    from cgh_models.journal import Journal

    real, failed = Journal._write, []

    class Full:
        """The log's file, with no room for three writes in the middle."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if len(failed) < 3 and b'"step": 4' in data:
                failed.append(1)
                self.file.write(data[:5])
                raise OSError(28, "No space left on device")
            return self.file.write(data)

    def write(self, row):
        if not isinstance(self._file, Full):
            self._file = Full(self._file)
        real(self, row)

    monkeypatch.setattr(Journal, "_write", write)
    pretrain(build(), image_root / "train", QUICK, tmp_path / "run")
    assert len(failed) == 3 and [row["step"] for row in lines(tmp_path / "run")] == list(range(13))
    assert capsys.readouterr().err.count("metrics.jsonl: cannot be written (No space left on device)") == 1


def test_a_batch_larger_than_the_set_is_refused_before_anything_starts(image_root, tmp_path):
    config = dataclasses.replace(QUICK, batch_size=65)
    with pytest.raises(
        InputError, match="batch size 65: larger than the set of 64 images .* give --batch-size 64 or less"
    ):
        pretrain(build(), image_root / "train", config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_old_checkpoint_and_training_goes_on(image_root, tmp_path, monkeypatch, capsys):
    real = tensors.save_file

    def full(state, path, metadata):
        if "00000004" in str(path) or "00000008" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(state, path, metadata)

    monkeypatch.setattr(tensors, "save_file", full)
    pretrain(build(), image_root / "train", dataclasses.replace(QUICK, checkpoint_every=4), tmp_path / "run")
    said = capsys.readouterr().err
    assert "bytes are needed" in said and "are free: make room; training goes on" in said
    assert [e["step"] for e in checkpoint.checkpoints(tmp_path / "run")] == [12, 0]
    monkeypatch.setattr(tensors, "save_file", lambda *a: full(a[0], a[1].with_name("00000004"), a[2]))
    with pytest.raises(DiskError):
        pretrain(build(), image_root / "train", QUICK, tmp_path / "other")


def test_a_users_own_method_needs_no_registration(image_root, tmp_path):
    class Mine(type(build("ressl"))):
        name = "mine"

    torch.manual_seed(0)
    pretrain(Mine(create("resnet18_cifar_w16"), Mine.Config(**SMALL)), image_root / "train", QUICK, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == "mine"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_the_whole_process_group_saves_and_exits_75(tmp_path, name):
    """As a terminal's Ctrl-C does: trainer and workers all get it."""
    make_images(tmp_path / "set", 64)
    command = "pretrain --data set --out run --arch resnet18_cifar_w16 --recipe cifar --batch-size 16 --epochs 2000"
    process = subprocess.Popen(
        [sys.executable, "-m", "cgh_models", *command.split(), "--memory-gib", "0"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.2)
    os.killpg(process.pid, getattr(signal, name))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert err.splitlines()[-1].startswith("saved: run: " + name) and "Traceback" not in err
    assert checkpoint.newest(tmp_path / "run", print)[0] >= 3


def test_images_may_be_given_as_a_set(image_root, tmp_path):
    images = load(image_root / "train")
    pretrain(build(), images, QUICK, tmp_path / "run")
    assert images.pixels is not None
