"""The README is true: two set-up commands, every command runs, every number was measured."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import CGH, cgh, new_environment, python, unpack_photographs
from loopback_hub import TOKEN

from cgh_models.config import TrainConfig

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))
from benchmarks.zoo import tables  # noqa: E402

README = (REPO / "README.md").read_text("utf-8")
SHELL, PYTHON = (
    re.findall(rf"```{language}\n(.*?)```", README, re.S) for language in ("sh", "python")
)
SETUP = [
    line for block in SHELL for line in block.splitlines() if line.startswith("python3 -m venv")
]
COMMANDS = [
    line
    for block in SHELL
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith("cgh ")
]


def test_there_are_exactly_two_set_up_commands_and_ci_runs_what_they_run():
    assert len(SETUP) == 2
    ci = (REPO / ".ci" / "run").read_text()
    assert SETUP[0].endswith("/cgh demo") and 'bin/cgh" demo' in ci
    assert SETUP[1].endswith("python -m pytest") and "\npython -m pytest\n" in ci


KNOWN = "import sys, timm; print('cgh_models' in sys.modules)"


@pytest.mark.slow
def test_every_command_and_every_python_block_works_as_written(tmp_path, loopback):
    # A third of the photographs are enough to see whether a command works.
    unpack_photographs(tmp_path / "cgh-demo" / "images", train=80, val=25)
    assert len(COMMANDS) == 23 and loopback.repos == {}
    knn, known = {}, []
    own = new_environment(tmp_path / "environment", REPO)

    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([own, *words], capture_output=True, text=True, cwd=tmp_path)

    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if words[0] == "autoload":
            done = call("-c", CGH, *words)
            known.append(call("-c", KNOWN).stdout)
        else:
            done = cgh(*words, cwd=tmp_path, env={"HF_TOKEN": TOKEN})
        assert done.returncode == 0, f"{command}: {done.stderr[-500:]}"
        if command.startswith("cgh evaluate knn "):
            knn[command.split()[3]] = json.loads(done.stdout.splitlines()[-1])["value"]
    assert knn["runs/mine"] > knn["resnet18_cifar_w16"], knn  # pretrained and untrained
    assert list(loopback.repos) == ["your-name/your-weights"] and known == ["True\n", "False\n"]
    assert len(PYTHON) == 4
    for number, block in enumerate(PYTHON):
        done = python(block, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-800:]
        assert number or README.split("```\n\n```\n")[1].startswith(
            f"{done.stdout}```\n"
        )  # what a reader will see
    shutil.rmtree(tmp_path / "cgh-demo")


NAMES = {
    "random backbone": "resnet18_cifar_w16",
    "ReSSL": "ressl",
    "MoCo v2": "moco_v2",
    "NNCLR": "nnclr",
    "BYOL": "byol",
    "MNCLGLF": "mnclglf",
    "LEWEL": "lewel",
    "LEWEL_M (our reconstruction)": "lewel_m",
    "CGH": "cgh",
    "CGH, `--set warmup=0.5`": "cgh_warmup",
}


def measured_table() -> str:
    """What the README says about small runs, from their recorded results."""
    folder = REPO / "benchmarks" / "cifar10_cpu"
    kept = [
        json.loads(line) for file in ("knn", "linear") for line in (folder / f"{file}.jsonl").open()
    ]
    found = {(r["metric"], Path(r["weights"]).name, r.get("k")): r["value"] for r in kept}
    lines = [
        "| | kNN, k = 20, T = 0.07 | kNN, k = 200, T = 0.1 | linear (L-BFGS) |",
        "|---|---|---|---|",
    ]
    for name, run in NAMES.items():
        values = [found["knn", run, 20], found["knn", run, 200], found["linear_lbfgs", run, None]]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def test_fast_views_are_the_default_because_runs_with_both_modes_agree():
    folder = REPO / "benchmarks" / "cifar10_cpu"
    kept = [json.loads(line) for line in (folder / "views.jsonl").open()]
    found = {
        Path(r["weights"]).name: r["value"] for r in kept if r["metric"] == "knn" and r["k"] == 20
    }
    modes = {mode: [found[f"{mode}_{seed}"] for seed in range(3)] for mode in ("fast", "exact")}
    rows = {mode: (*values, mean(values), stdev(values) / 3**0.5) for mode, values in modes.items()}
    difference = rows["fast"][3] - rows["exact"][3]
    error = math.hypot(rows["fast"][4], rows["exact"][4])
    for run in found:
        last = json.loads((folder / f"views_{run}.metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 780 and last["knn"] > 30
    assert len(kept) == 6 and abs(difference) <= 2 * error
    assert TrainConfig().views == "fast"
    lines = [
        f"| {mode} | " + " | ".join(f"{value:.2f}" for value in row) + " |"
        for mode, row in rows.items()
    ]
    lines.append(f"| difference | | | | {difference:.2f} | {error:.2f} |")
    table = (
        (folder / "README.md")
        .read_text()
        .split("<!-- views -->\n")[1]
        .split("\n<!-- /views -->")[0]
    )
    assert table.splitlines()[2:] == lines


def test_the_measured_numbers_are_those_of_the_kept_results():
    folder = REPO / "benchmarks" / "cifar10_cpu"
    table = README.split("<!-- measured -->\n")[1].split("\n<!-- /measured -->")[0]
    assert table == measured_table() and len(table.splitlines()) > 6
    for run in NAMES.values():
        if run != NAMES["random backbone"]:
            log = [
                json.loads(line)
                for line in (folder / f"{run}.metrics.jsonl").read_text().splitlines()
            ]
            assert log[-1]["step"] == 12 * (50_000 // 256) and log[-1]["knn"] > 0


def test_the_table_of_weights_is_the_manifest():
    assert README.split("<!-- weights -->\n")[1].split("\n<!-- /weights -->")[0] == tables.weights()
