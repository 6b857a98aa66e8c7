"""The zoo: its commands are what its driver does, and a row is made from end to end."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

from cgh_models import manifest
from cgh_models.__main__ import _parse
from cgh_models.methods import METHODS
from cgh_models.recipes import method_config

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))
from benchmarks.zoo.__main__ import known, wanted  # noqa: E402
from benchmarks.zoo.rows import ROWS  # noqa: E402

# A machine without network has none of these.
DRIVER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tyro", "fastjsonschema", "wrapt", "simplejpeg", "datasets", "tensorboard"}:
            raise ModuleNotFoundError(name, name=name)
bare = sys.argv.pop(1) == "bare"
sys.meta_path[:0] = [Missing()] if bare else []
from pathlib import Path
from benchmarks.zoo import __main__ as zoo
zoo.ROWS = (zoo.Wanted("resnet18_cifar_w16", "cgh", "cgh_tried", "cifar10", epochs=2, least=1, shipped=False),)
zoo.HERE = zoo.REPO = Path.cwd()
zoo.NUMBERS = Path("numbers.json")
zoo.main()
"""


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_the_command_of_a_row_is_what_the_driver_trains(row):
    words = shlex.split(row.command(77))
    assert words[:2] == ["cgh", "pretrain"]
    args = _parse("pretrain", words[2:])
    train, method = row.configs(77)
    assert args.train == train and (args.method, args.arch, args.recipe) == (row.method, row.arch, row.recipe)
    assert method_config(METHODS[args.method], args.recipe, args.train, args.set) == method


def test_names_are_unique_and_what_is_published_is_wanted():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert known().keys() <= {row.name for row in ROWS} and wanted().name not in known()


def test_a_kept_log_is_the_one_its_row_names():
    for name, row in known().items():
        log = REPO / row["training"]["log"]
        assert hashlib.sha256(log.read_bytes()).hexdigest() == row["training"]["log_sha256"], name
        assert json.loads(log.read_text().splitlines()[-1])["step"] == row["steps"]


@pytest.mark.slow
def test_a_row_is_trained_on_a_bare_machine_and_measured_and_added_on_another(tmp_path):
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(tmp_path / "data" / "cifar10")
    (tmp_path / "numbers.json").write_text('{"schema": 1, "weights": []}')
    (tmp_path / "logs").mkdir()

    def zoo(*words):
        return subprocess.run(
            [sys.executable, "-c", DRIVER, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    places = ["--data", "data", "--out", "out", "--device", "cpu", "--workers", "0"]
    done = zoo("bare", "next", "--minutes", "0.01", *places, "--only", "train")
    assert done.returncode == 2 and "1 are worth it; give --minutes" in done.stderr
    done = zoo("bare", "next", "--minutes", "5", *places, "--only", "train")
    assert done.returncode == 0 and "fastjsonschema is not installed" in done.stderr, done.stderr[-800:]
    done = zoo("full", "measure", "resnet18_cifar_w16.cgh_tried", *places, "--no-linear")
    assert done.returncode == 0 and "tiny-imagenet-200: not there" in done.stderr, done.stderr[-800:]
    (row,) = manifest.read(tmp_path / "numbers.json")
    assert row["command"] == (
        "cgh pretrain --data cifar10/train --out runs/resnet18_cifar_w16.cgh_tried --method cgh "
        "--arch resnet18_cifar_w16 --recipe cifar --epochs 2"
    )
    knn, random = row["metrics"]["knn"], row["metrics"]["knn_random"]
    assert knn["n"] == random["n"] == 500 and knn["value"] != random["value"] and row["training"]["hours"] > 0
    assert knn["command"] == "cgh evaluate knn resnet18_cifar_w16.cgh_tried --data cifar10"
    assert random["command"] == "cgh evaluate knn resnet18_cifar_w16.cgh_tried --random --data cifar10"
    assert (row["data"]["name"], row["license"]) == ("CIFAR-10 (JPEG)", "apache-2.0")
    log = tmp_path / row["training"]["log"]
    assert json.loads(log.read_text().splitlines()[-1])["step"] == row["steps"] == 18
    done = zoo("full")
    assert "| resnet18_cifar_w16.cgh_tried | cifar10 | 2 |" in done.stdout, done.stderr[-800:]
