"""A run that was stopped continues with the same result, or is refused with a reason."""

import dataclasses
import json
import os
import shutil
import signal
import time

import pytest
import torch
from conftest import CGH, Forked, make_images
from small_runs import QUICK, build, final, lines, small, stop_at

from cgh_models.backbone import create
from cgh_models.cli.pretrain import Resume
from cgh_models.data.image_set import ImageSet, load
from cgh_models.errors import InputError, Interrupted
from cgh_models.evaluate.devices import pick_precision
from cgh_models.methods import METHODS, build_method, preprocessing
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain
from cgh_models.train.monitor import Monitor
from cgh_models.train.run_folder import LOCK, settle
from cgh_models.version import __version__

CASES = {
    **{name: (name, {}, {}) for name in METHODS},  # measured after each epoch; the others are not
    "streamed": ("cgh", {"memory_gib": 0, "eval_every": -1}, {}),
    "exact": ("cgh", {"views": "exact", "eval_every": -1}, {}),
    "two workers": ("mnclglf", {"memory_gib": 0, "workers": 2, "eval_every": -1}, {}),
    "smaller views": ("cgh", {"size_schedule": "20:0.7,32"}, {}),  # until step 8
    "smaller views, streamed": ("ressl", {"size_schedule": "20:0.7,32", "memory_gib": 0}, {}),
    "lars": ("lewel", {"optimizer": "lars", "eval_every": -1}, {}),
    "muon": ("cgh", {"optimizer": "muon", "eval_every": -1}, {}),
    "adamw": ("cgh", {"optimizer": "adamw", "eval_every": -1}, {}),
    "multi-crop": ("ressl", {"eval_every": -1}, {"multi_crop": True, "arch": "resnet18_cifar_w16"}),
    "symmetric": ("moco_v2", {"eval_every": -1}, {"symmetric": True}),
    "batch negatives": ("lewel_m", {"clip_norm": 0.1, "eval_every": -1}, {"negatives": "batch"}),
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
        InputError, match="arch: test_resnet -> resnet18_cifar_w16 changes the model"
    ):
        pretrain(
            build(arch="resnet18_cifar_w16"),
            image_root / "train",
            QUICK,
            tmp_path / "run",
            resume=True,
        )
    with pytest.raises(InputError, match="data: 64 -> 20 images, and not the same files"):
        pretrain(build(), image_root / "val", QUICK, tmp_path / "run", resume=True)
    shutil.copytree(image_root / "val", tmp_path / "val")
    shutil.copytree(image_root / "train", tmp_path / "val" / ".ipynb_checkpoints")
    said = r"data: 64 -> 20 images \(1 hidden or system entries are left out now\), and not"
    with pytest.raises(InputError, match=said):
        pretrain(build(), tmp_path / "val", QUICK, tmp_path / "run", resume=True)
    shutil.copytree(image_root / "train", tmp_path / "more")
    for name in ("a.gif", "b.GIF", "c.psd"):
        shutil.copy(image_root / "train" / "class0" / "00000.png", tmp_path / "more" / name)
    said = (
        r"data: 64 -> 67 images \(2 x .gif, 1 x .psd are read, as earlier versions did not\), and"
    )
    with pytest.raises(InputError, match=said):
        pretrain(build(), tmp_path / "more", QUICK, tmp_path / "run", resume=True)
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
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_bytes(log.read_bytes().splitlines(True)[0])
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


def as_the_command_does():
    """A method as `cgh pretrain` and `cgh resume` build it."""
    torch.manual_seed(0)
    return build_method("cgh", "resnet18_cifar_w16", preprocessing(QUICK), small("cgh"))


@pytest.fixture(scope="module")
def measured_run(image_root, tmp_path_factory):
    """Settings with a measurement every four steps, and a run that was not stopped."""
    config = dataclasses.replace(QUICK, eval_every=1.0)
    out = tmp_path_factory.mktemp("measured") / "run"
    pretrain(as_the_command_does(), image_root / "train", config, out)
    return config, out


@pytest.mark.parametrize("step, when", [(0, "in"), (4, "in"), (8, "before"), (12, "in")])
def test_a_measurement_that_a_signal_left_out_is_made_by_the_resumed_run(
    image_root, tmp_path, monkeypatch, measured_run, step, when
):
    """After the last step, too; the log is that of a run without a stop."""
    config, whole_run = measured_run
    data, run = image_root / "train", tmp_path / "run"
    real, measured = Monitor._measure, []

    def measure(self, backbone):
        measured.append(1)
        if len(measured) == 1 + step // 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, backbone)

    with monkeypatch.context() as patch:
        if when == "before":
            stop_at(patch, step)
        else:
            patch.setattr(Monitor, "_measure", measure)
        with pytest.raises(Interrupted, match=f"SIGTERM at step {step} of 12, saved"):
            pretrain(as_the_command_does(), data, config, run)
    assert "feature_std" not in lines(run)[step]
    pretrain(as_the_command_does(), data, config, run, resume=True)
    assert lines(run) == lines(whole_run)
    whole, parts = final(whole_run), final(run)
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]


@pytest.fixture(scope="module")
def stopped_run(image_root, tmp_path_factory):
    """A run folder that was stopped at step 7 of 12, its checkpoints those of steps 4 and 7."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    config = dataclasses.replace(QUICK, eval_every=1.0, checkpoint_every=4)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            pretrain(as_the_command_does(), image_root / "train", config, run)
    return run


def edit(run, change):
    """Changes the config.json of a run."""
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def resume(run, *words):
    Resume(str(run), {}, *map(str, words)).run()


def equals(run, whole):
    """Whether state and log are those of a run without a stop."""
    expected, found = final(whole), final(run)
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    return lines(run) == lines(whole)


def test_a_copy_goes_on_elsewhere_without_lock_and_index_and_with_moved_images(
    stopped_run, image_root, tmp_path, measured_run, capsys
):
    run, images = tmp_path / "sp ace" / "renamed", tmp_path / "moved"
    shutil.copytree(stopped_run, run, ignore=lambda *_: [LOCK, "checkpoints.json"])
    shutil.copytree(image_root / "train", images)
    edit(run, lambda config: config["data"].update(path=str(tmp_path / "gone")))
    with pytest.raises(InputError, match="gone: .*"):
        resume(run)
    resume(run, images)
    assert equals(run, measured_run[1])


def cut_the_newest(run):
    newest = run / "checkpoint-00000007.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])


def edit_the_index(run):
    rows = json.loads((run / "checkpoints.json").read_text())["checkpoints"]
    rows[0]["bytes"] += 1
    (run / "checkpoints.json").write_text(json.dumps({"checkpoints": rows[::-1]}))


def forget_what_older_versions_had_not(run):
    def change(config):
        for key in ("cgh_models", "versions", "command"):
            del config[key]
        for key in ("lr_in_momentum", "accumulate", "compile", "follow_links"):
            del config["train"][key]
        config["train"]["precision"] = "auto"  # as they stored it
        del config["method_config"]["multi_crop"]

    edit(run, change)


@pytest.mark.parametrize(
    "fault",
    [
        cut_the_newest,
        edit_the_index,
        forget_what_older_versions_had_not,
        lambda run: (run / "checkpoints.json").write_text('{"checkpoints": [{"file": "check'),
        lambda run: (run / "metrics.jsonl").write_bytes(
            bytes(range(256)) + (run / "metrics.jsonl").read_bytes() + b'5\n{"a": 1}\nNaN'
        ),
        lambda run: (run / "bad_files.txt").unlink(missing_ok=True),
    ],
)
def test_a_run_goes_on_to_the_bit_whatever_befell_its_folder(
    stopped_run, tmp_path, measured_run, fault
):
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    fault(run)
    resume(run)
    found = lines(run)
    if found and found[0]["step"]:  # the first line stood behind what was not a line
        found = lines(measured_run[1])[:1] + found
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert equals(run, measured_run[1])


@pytest.mark.parametrize("fault", ["missing", "a folder"])
def test_a_run_without_its_log_goes_on_with_a_new_one(stopped_run, tmp_path, fault, measured_run):
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    (run / "metrics.jsonl").rename(run / "mine")
    if fault == "a folder":
        (run / "metrics.jsonl").mkdir()
    resume(run)
    assert lines(run) == lines(measured_run[1])[8:]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: c["train"].update(gone=1), "TrainConfig: there is no key 'gone', the keys are "),
        (lambda c: c["train"].update(epoch=1), "there is no key 'epoch', did you mean epochs?"),
        (lambda c: c["train"].update(epochs="x"), "epochs='x': expected int"),
        (lambda c: c["method_config"].update(gone=1), "CGH.Config: there is no key 'gone'"),
        (lambda c: c.update(gone=1), "RunDescription: there is no key 'gone'"),
        (lambda c: c["data"].update(gone=1), "RunImages: there is no key 'gone'"),
        (lambda c: c["data"].pop("digest"), "RunImages: the keys digest are missing"),
        (lambda c: c.pop("arch"), "RunDescription: the keys arch are missing"),
        (lambda c: c.update(train=[]), r"RunDescription: train=\(\): expected dict"),
    ],
)
def test_a_key_that_is_gone_unknown_or_wrong_is_named_in_one_sentence(
    stopped_run, tmp_path, change, said
):
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    edit(run, lambda config: (change(config), config.update(cgh_models="9.9")))
    with pytest.raises(InputError, match=f"^{run}/config.json: .*{said}") as caught:
        resume(run)
    assert len(str(caught.value)) < 400 + len(str(run)) and "\n" not in str(caught.value)
    if "CGH.Config" not in said:
        assert f"cgh pretrain of {__version__}, not 9.9: use that" in str(caught.value)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_to_be_started(stopped_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(stopped_run / "config.json", run)
    # A queue of half a GiB: more than is allowed without tensor files.
    edit(run, lambda config: config["method_config"].update(queue_length=2**24))
    with pytest.raises(InputError, match="holds no checkpoint; start it with `cgh pretrain --out"):
        resume(run)


def test_precision_is_stored_as_what_auto_was_and_kept_where_auto_is_another(
    stopped_run, tmp_path, monkeypatch, image_root
):
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    stored = json.loads((run / "config.json").read_text())["train"]["precision"]
    assert stored == str(pick_precision("auto", torch.device("cpu"))).removeprefix("torch.")
    other = torch.bfloat16 if stored == "float32" else torch.float32
    monkeypatch.setattr("cgh_models.train.run_folder.pick_precision", lambda *_: other)
    config = dataclasses.replace(QUICK, eval_every=1.0, checkpoint_every=4)
    settled = settle(config, torch.device("cpu"), run, resume=True)
    assert settled == dataclasses.replace(config, precision=stored)
    explicit = dataclasses.replace(config, precision=str(other).removeprefix("torch."))
    with pytest.raises(InputError, match=f"precision: {stored} -> .* changes the arithmetic"):
        pretrain(build(), image_root / "train", explicit, run, resume=True)


def test_other_versions_are_said(stopped_run, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(stopped_run, run)
    edit(run, lambda c: c["versions"].update(torch="1.0", timm="0.1", device="Abacus"))
    monkeypatch.setattr("cgh_models.train.loop.checkpoint.resume_point", lambda *_: (12, None))
    resume(run)
    said = capsys.readouterr().err
    assert f"other versions, which may change results: torch 1.0 -> {torch.__version__}, " in said
    assert "device Abacus -> cpu" in said and "python" not in said


def test_a_run_on_a_list_resumes_from_another_folder(image_root, tmp_path, monkeypatch):
    names = [f"train/{name}" for name in load(image_root / "train").names[:40]]
    (image_root / "forty.txt").write_text("\n".join(names))
    monkeypatch.chdir(image_root)
    config = dataclasses.replace(QUICK, eval_data=".")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            pretrain(build(), "forty.txt", config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    Resume(str(tmp_path / "run"), {}).run()
    assert checkpoint.read_index(tmp_path / "run")[0].step == 6


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_the_whole_process_group_saves_and_exits_75(tmp_path, name):
    """As a terminal's Ctrl-C does: trainer and workers all get it."""
    make_images(tmp_path / "set", 64)
    command = "pretrain --data set --out run --arch resnet18_cifar_w16 --recipe cifar"
    command += " --batch-size 16 --epochs 2000"
    words = (*command.split(), "--memory-gib", "0")
    process = Forked(f"import os; os.setsid(); {CGH}", *words, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (
        metrics.exists() and metrics.read_text().count("\n") > 3
    ):
        time.sleep(0.2)
    os.killpg(process.pid, getattr(signal, name))
    done = process.end(120)
    err = done.stderr
    assert done.returncode == 75, err
    assert err.splitlines()[-1].startswith("saved: run: " + name) and "Traceback" not in err
    assert checkpoint.newest(tmp_path / "run", print)[0] >= 3
