"""The zoo: its commands are what its driver does, and a row is made from end to end."""

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import python, unpack_photographs
from small_runs import stop_at

from cgh_models.cli.main import parse
from cgh_models.cli.pretrain import Pretrain
from cgh_models.data.image_set import load
from cgh_models.errors import InputError, Interrupted
from cgh_models.hub import manifest
from cgh_models.hub.card import card_of
from cgh_models.hub.integrity import verify
from cgh_models.hub.row import BACKBONE, HEADS, STUDENT_HEADS, FileEntry

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))
from benchmarks.zoo import measuring, tables, training  # noqa: E402
from benchmarks.zoo.__main__ import wanted  # noqa: E402
from benchmarks.zoo.rows import ROWS  # noqa: E402
from benchmarks.zoo.tables import known  # noqa: E402

# A machine without network has none of these.
DRIVER = """
import sys
MISSING = {"tyro", "wrapt", "simplejpeg", "datasets", "tensorboard"}
MISSING |= {"requests"}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(name, name=name)
bare = sys.argv.pop(1) == "bare"
sys.meta_path[:0] = [Missing()] if bare else []
from pathlib import Path
from benchmarks.zoo import __main__ as zoo, tables
from cgh_models.hub import fetch as hub, manifest
row = zoo.Wanted("resnet18_cifar_w16", "cgh", "cgh_tried", "cifar10", epochs=2, least=1,
                 notes=("A trial.",), packaged=True, heads="all")
numbers = zoo.Wanted("resnet18_cifar_w16", "cgh", "b", "cifar10", epochs=9, least=9,
                     like=row.name, shipped=False)
zoo.ROWS = (row, numbers)
tables.ROWS, tables.HERE, tables.REPO = zoo.ROWS, Path.cwd(), Path.cwd()
tables.NUMBERS, manifest.MANIFEST = Path("numbers.json"), Path("package/weights_manifest.json")
manifest.PACKAGE = Path.cwd() / "package"
hub._PACKAGED, hub._CHECKOUT = Path("package/weights"), Path("weights")
zoo.main()
"""


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_command_of_a_row_is_what_the_driver_trains(row):
    words = shlex.split(row.command(77))
    assert words[:2] == ["cgh", "pretrain"]
    command = parse(words[1:])
    assert isinstance(command, Pretrain)
    assert (command.method, command.arch, command.recipe) == (row.method, row.arch, row.trained_by)
    assert command.configs() == row.configs(77)


def test_the_notes_hold_the_table_of_all_rows():
    notes = (REPO / "benchmarks" / "zoo" / "NOTES.md").read_text("utf-8")
    assert notes.split("<!-- rows -->\n")[1].split("\n<!-- /rows -->")[0] == tables.queue()


def test_names_are_unique_and_what_is_published_is_what_is_wanted():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for name, row in known().items():
        assert row.command == wanted(name).command(round(row.epochs))
        assert row.seed == wanted(name).seed
        _, config = wanted(name).configs(round(row.epochs))
        found = vars(config)
        assert {key: found[key] for key in row.method_config} == row.method_config
        assert row.heads_file == {"none": None, "student": STUDENT_HEADS}[wanted(name).heads]


def test_what_is_shipped_is_small_and_what_would_make_it_large_is_refused(monkeypatch):
    files = [
        path
        for root in (REPO, manifest.PACKAGE)
        for path in (root / "weights").rglob("*.safetensors")
    ]
    sizes = sorted(path.stat().st_size for path in files)
    assert sizes and max(sizes) <= 95e6
    assert sum(sizes) <= 170e6
    rows = manifest.read(manifest.MANIFEST)
    named = [entry.bytes for row in rows for entry in row.files.values()]
    assert sizes == sorted(named)  # so that what is counted is all that is there
    name, row = next(iter(known().items()))
    measuring._fits(row)  # it does not count twice
    large = dataclasses.replace(row.files[BACKBONE], bytes=96_000_000)
    row = dataclasses.replace(row, files={BACKBONE: large})
    with pytest.raises(
        InputError,
        match=f"{name}: model.safetensors 96 MB, with all other weights \\d+ MB; expected at",
    ):
        measuring._fits(row)
    monkeypatch.setattr(measuring, "ALL", 5)
    row = dataclasses.replace(row, name="b", files={HEADS: FileEntry(4_000_000, "0" * 64)})
    with pytest.raises(
        InputError,
        match="heads/model.safetensors 4 MB, with all other weights .* 5 in all: leave its heads",
    ):
        measuring._fits(row)


def test_a_row_that_is_to_have_heads_is_not_added_without(tmp_path, monkeypatch):
    name = "resnet18.cgh"
    folder = tmp_path / name
    shutil.copytree(manifest.PACKAGE / "weights" / name, folder)  # the backbone alone
    monkeypatch.setattr(tables, "REPO", tmp_path)
    monkeypatch.setattr(manifest, "PACKAGE", tmp_path)
    with pytest.raises(InputError, match="its description has no heads; give the folder that was"):
        measuring.add(folder, packaged=True, heads=True)
    with pytest.raises(InputError, match=f"{name}: its row has heads, which would be lost; give"):
        measuring.add(folder, packaged=True, heads=False)


def test_a_processor_has_epochs_of_its_own(tmp_path, monkeypatch, image_root):
    monkeypatch.setattr(training, "speed", lambda *of: 1e9)
    images, place = load(image_root / "train"), training.Place(tmp_path, tmp_path)
    for device, name, epochs in (
        ("cpu", "resnet50.cgh", 20),
        ("cuda", "resnet50.cgh", 50),
        ("cpu", "resnet18.cgh", 19),
    ):
        monkeypatch.setattr(training, "pick_device", lambda _, kind=device: torch.device(kind))
        assert training._epochs(wanted(name), images, place, 1, 0) == epochs


def test_rows_of_several_seeds_are_one_line_with_mean_and_deviation(tmp_path, monkeypatch):
    (tmp_path / "numbers.json").write_text('{"schema": 1, "weights": []}')
    monkeypatch.setattr(tables, "NUMBERS", tmp_path / "numbers.json")
    row = next(iter(known().values()))
    for seed, value in enumerate((61.0, 62.0, 63.0)):
        more = {
            "name": f"{row.architecture}.b{seed}",
            "seed": seed,
            "train_config": row.train_config | {"epochs": 9, "seed": seed},
            "metrics": {
                "knn": dataclasses.replace(row.metrics["knn"], value=value),
                "linear": None,
            },
        }
        manifest.add(tables.NUMBERS, dataclasses.replace(row, **more))
    line = tables.weights().splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == f"{row.architecture}.b0 (numbers only)"
    assert cells[3:6] == ["3", "62.00 ± 1.00", ""] and cells[-2] == ""
    assert len(tables.weights().splitlines()) == 2 + len(known()) - 2


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    row, place = ROWS[0], training.Place(tmp_path / "data", tmp_path)
    (tmp_path / row.name).mkdir()
    (tmp_path / row.name / "mine.txt").write_text("mine")
    with pytest.raises(
        InputError, match="is no row that was trained here; move it away, or change --out"
    ):
        training.train(row, place, 1, 0)
    assert (tmp_path / row.name / "mine.txt").read_text() == "mine"
    (tmp_path / row.name / "took.json").write_text("{}")
    (tmp_path / row.name / "weights.json").write_text(
        json.dumps(manifest.row(row.name).to_json() | {"epochs": 9.0, "command": row.command(9)})
    )
    assert training.train(row, place, 1, 0) == tmp_path / row.name  # that is done
    with pytest.raises(InputError, match=r"was made by `cgh pretrain .*`; move it away"):
        training.train(dataclasses.replace(row, base_lr=0.5), place, 1, 0)


def test_a_run_in_two_parts_becomes_a_row_and_says_so(tmp_path, monkeypatch, image_root):
    small = ("queue_length=32", "projection_width=8", "hidden_width=16")
    row = training.Wanted(
        "test_resnet", "cgh", "tried", "cifar10", 2, 1, image_size=32, batch_size=16, settings=small
    )
    run, folder = tmp_path / "by hand", tmp_path / row.name
    images, (config, method_config) = load(image_root / "train"), row.configs(2, "cpu", 0)
    stop_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        training._run(row, images, config, method_config, run)
    with pytest.raises(InputError, match=r"is at step 3 of 8; `cgh resume .*` goes on with it"):
        training.export_run(row, run, folder)
    training._run(row, images, config, method_config, run)
    other = dataclasses.replace(row, base_lr=0.5)
    with pytest.raises(InputError, match=r"base_lr: 0.5 -> 0.06 .*; expected `cgh pretrain"):
        training.export_run(other, run, folder)
    training.export_run(row, run, folder)
    made = manifest.read_row(folder)
    assert made.command == row.command(2) and made.steps == 8
    assert "Its training was stopped and resumed: 2 parts." in made.notes
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "resumed" in line] == [4]
    took = json.loads((folder / "took.json").read_text())
    seconds = sum(16 / line["images_per_second"] for line in log if "images_per_second" in line)
    assert took["hours"] == pytest.approx(seconds / 3600, rel=0.01)
    assert "threads of" in took["hardware"]


def test_images_that_are_missing_are_said_before_anything_is_trained(tmp_path):
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="cifar10"):
        training.train(ROWS[0], training.Place(tmp_path, tmp_path), 1, 0)


def test_a_kept_log_is_the_one_its_row_names():
    for name, row in known().items():
        log = REPO / row.training.log
        assert hashlib.sha256(log.read_bytes()).hexdigest() == row.training.log_sha256, name
        assert json.loads(log.read_text().splitlines()[-1])["step"] == row.steps


def test_every_packaged_folder_has_its_card_and_is_a_weights_folder():
    folders = sorted((manifest.PACKAGE / "weights").iterdir())
    assert folders
    for folder in folders:
        row = manifest.read_row(folder)
        published = dataclasses.replace(manifest.row(folder.name), files=row.files)
        assert row == published and BACKBONE in row.files
        assert (folder / "README.md").read_text("utf-8") == card_of(folder, row) and (
            folder / "curve.png"
        ).is_file()
        assert verify(folder)["parameters"] == row.parameters
        assert (
            timm.create_model(f"local-dir:{folder}", pretrained=True).num_features
            == row.num_features
        )


@pytest.mark.slow
def test_a_row_is_trained_on_a_bare_machine_and_measured_and_added_on_another(tmp_path):
    unpack_photographs(tmp_path / "data" / "cifar10", train=60, val=20)
    for name in ("numbers.json", "weights_manifest.json", "package/weights_manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"schema": 1, "weights": []}')
    (tmp_path / "logs").mkdir()
    for file, mark in (("README.md", "weights"), ("NOTES.md", "rows")):
        (tmp_path / file).write_text(f"Before.\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nAfter.\n")
    name = "resnet18_cifar_w16.cgh_tried"

    def zoo(machine, *words):
        if machine == "full":
            return python(DRIVER, machine, *words, cwd=tmp_path)
        return subprocess.run(
            [sys.executable, "-c", DRIVER, machine, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            check=False,
        )

    def refused(*words):
        done = zoo("full", *words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr[-800:]
        return done.stderr

    places = ["--data", "data", "--out", "out", "--device", "cpu", "--workers", "0"]
    done = zoo("full", "train", name, "--minutes", "0.01", *places)
    assert (
        done.returncode == 2
        and "0 epochs in 0.01 minutes, expected 1; give --minutes" in done.stderr
    )
    done = zoo("bare", "train", name, "--minutes", "5", *places)
    assert done.returncode == 0, done.stderr[-800:]
    made = tmp_path / "out" / name
    names = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
    described = {"config.json", "weights.json", "README.md", "curve.png", "log.jsonl", "took.json"}
    assert names == {BACKBONE, HEADS} | described
    shutil.rmtree(tmp_path / "out" / "runs")  # the folder is all that travels
    assert "not measured" in refused("finish", name, "--out", "out")
    assert "measured on it; change --data" in refused(
        "measure", name, *places, "--data", "data/cifar10"
    )
    assert "--linear none has no epochs; leave it out" in refused(
        "measure", name, *places, "--linear", "none", "--linear-epochs", "1"
    )
    more = ["--linear-epochs", "1", "--finetune-epochs", "1"]
    done = zoo("full", "measure", name, *places, *more)
    assert done.returncode == 0 and "tiny-imagenet-200: not there" in done.stderr, done.stderr[
        -800:
    ]
    second = zoo("full", "measure", name, *places, "--linear", "none")
    assert (
        second.returncode == 0 and "knn on" not in second.stderr
    )  # what is there is not measured again
    if not manifest.read_row(made).code.commit:  # a checkout with changes has none
        assert "give its commit's 40 digits as --commit" in refused("finish", name, "--out", "out")
    done = zoo("full", "finish", name, "--out", "out", "--commit", "0" * 40)
    assert done.returncode == 0, done.stderr[-800:]
    (row,) = manifest.read(tmp_path / "weights_manifest.json")
    assert [row] == manifest.read(tmp_path / "package" / "weights_manifest.json")
    assert row.command == (
        f"cgh pretrain --data cifar10/train --out runs/{name} --method cgh "
        "--arch resnet18_cifar_w16 --recipe cifar --epochs 2"
    )
    knn, random = row.metrics["knn"], row.metrics["knn_random"]
    assert knn.n == random.n == 200 and knn.value != random.value and row.training.hours > 0
    assert knn.command == f"cgh evaluate knn {name} --data cifar10"
    assert random.command == f"cgh evaluate knn {name} --random --data cifar10"
    assert row.metrics["linear"].command == (
        f"cgh evaluate linear {name} --protocol sgd --recipe cifar --epochs 1 --fast --data cifar10"
    )
    assert row.metrics["finetune_10_random"].command == (
        f"cgh evaluate finetune {name} --random --labels 10% --recipe cifar --epochs 1 "
        "--data cifar10"
    )
    assert row.metrics["finetune_10"].parameters["labelled"] == 60
    assert (row.data.name, row.license) == ("CIFAR-10 (JPEG)", "apache-2.0")
    assert row.notes[0].startswith("Trained on photographs of 32 px")
    assert row.notes[1] == "A trial."
    log = [json.loads(line) for line in (tmp_path / row.training.log).read_text().splitlines()]
    assert log[-1]["step"] == row.steps == 4 and sum("knn_train" in line for line in log) >= 2
    package = tmp_path / "package" / "weights" / name
    assert {file.name for file in package.iterdir()} == {
        "model.safetensors",
        "config.json",
        "weights.json",
        "README.md",
        "curve.png",
    }
    assert verify(package)["files"] == ["model.safetensors"]
    assert (tmp_path / "weights" / name / HEADS).is_file()
    done = zoo("full")
    assert f"| {name} | cifar10 | 2 |" in done.stdout, done.stderr[-800:]
    assert (
        tmp_path / "NOTES.md"
    ).read_text() == f"Before.\n<!-- rows -->\n{done.stdout}<!-- /rows -->\nAfter.\n"
    assert (
        f"| `{name}` | CIFAR-10 (JPEG), 600 images, 2 epochs |"
        in (tmp_path / "README.md").read_text()
    )
    more = ["--minutes", "0.01", *places]
    said = zoo("full", "next", *more).stderr  # the next is compared with this one: as many epochs
    assert "resnet18_cifar_w16.b: 0 epochs in 0.01 minutes, expected 2; give --minutes" in said
