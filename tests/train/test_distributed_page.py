"""docs/distributed.md is true: its tables are computed, its commands run or at least parse."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import benchmark, cgh
from processes import in_processes
from small_runs import small
from torch.distributed.run import get_args_parser

from cgh_models.cli.main import parse
from cgh_models.errors import InputError
from cgh_models.methods import METHODS
from cgh_models.one_process import ALONE
from cgh_models.train.distributed import joined
from cgh_models.train.launch import take_from_slurm
from cgh_models.train.liveness import Watch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "distributed.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
LINES = "".join(BLOCKS).replace("\\\n", " ").splitlines()
# Those of cgh, whatever starts it, and those of torchrun.
COMMANDS = [shlex.split(line) for line in LINES if re.search(r"\bcgh(_models)? ", line)]
STARTED = [command for command in COMMANDS if "torchrun" in command]


def between(name: str) -> str:
    return PAGE.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


@pytest.mark.slow
def test_what_processes_hand_over_is_what_the_formulas_say(tmp_path):
    cost = benchmark("cost")
    runs = []
    for name in METHODS:
        settings = {k: v for k, v in small(name).items() if k.endswith("_width")}
        runs.append((name, name, 3, 32, "test_resnet", settings))
    assert in_processes(2, cost.count_told, runs, tmp_path / "told") == [0, 0]
    counted = json.loads((tmp_path / "told").read_text())
    for key, *how, settings in runs:
        assert counted[key] == +cost.told(*how, **settings).bytes, key
    assert {kind for found in counted.values() for kind in found} == {*cost.KINDS}


@pytest.mark.slow
def test_the_counts_of_a_resnet50_are_kept_and_are_those_of_the_formulas():
    cost = benchmark("cost")
    kept = json.loads(cost.COUNTED.read_text())
    assert kept.keys() == METHODS.keys() == cost.VECTORS.keys()
    for name, found in kept.items():
        assert found == +cost.told(name, cost.SHARE, cost.SIDE).bytes, name


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_script_prints():
    cost = benchmark("cost")
    assert between("bytes") == cost.bytes_table()
    assert between("scaling") == cost.scaling_table()


def test_numbers_of_the_text_are_those_of_the_model():
    cost = benchmark("cost")
    byol = cost.told("byol", 16, 224)
    norms = [cost.sent(byol, count)["synchronized norms"] / 1e6 for count in cost.GPUS]
    said = "{:.0f} MB on 8 GPUs, {:.0f} on 64, {:.0f} on 256".format(*norms)
    text = " ".join(PAGE.split())
    assert said in text
    assert f"{len(byol.passes)} such passes" in text
    assert f"{sum(ways for _, ways in byol.passes)} waits" in text
    assert f"{4 * 3 * 224**2:,} bytes each" in text
    assert f"nothing for {Watch.SILENT} s" in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_each_command_of_the_page_parses(command):
    words = command[command.index("cgh") + 1 :] if "cgh" in command else []
    if "cgh_models" in command:
        words = command[command.index("cgh_models") + 1 :]
    parse(words)
    if "torchrun" in command:
        given = get_args_parser().parse_args(command[command.index("torchrun") + 1 :])
        assert given.module and given.training_script == "cgh_models"


def test_the_files_for_slurm_are_bash(tmp_path):
    assert len(COMMANDS) == 7 and len(STARTED) == 4
    for block in BLOCKS:
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
    assert sum(block.startswith("#!/bin/bash\n#SBATCH ") for block in BLOCKS) == 1


def test_words_of_srun_are_taken_where_an_address_is_set(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # is removed again
        monkeypatch.delenv(name)
    words = {"PROCID": "9", "NTASKS": "16", "LOCALID": "1", "NTASKS_PER_NODE": "8", "STEP_ID": "0"}
    for name, value in words.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    take_from_slurm()
    assert "RANK" not in os.environ
    monkeypatch.setenv("MASTER_ADDR", "node0")
    take_from_slurm()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["9", "16", "1", "8", "29500"]


@pytest.mark.parametrize("step", [None, "4294967290", "4294967291"], ids=["none", "shell", "batch"])
def test_a_process_of_the_jobs_script_is_none_of_sruns(step, monkeypatch):
    """SLURM_PROCID is 0 there, too."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, step or "")
        if name != "SLURM_STEP_ID" or not step:
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("MASTER_ADDR", "node0")
    for tasks in (None, "1"):
        if tasks:
            monkeypatch.setenv("SLURM_NTASKS", tasks)
        with joined() as processes:
            assert processes is ALONE
    monkeypatch.setenv("SLURM_NTASKS", "16")
    with pytest.raises(
        InputError, match="job of 16 tasks, but .* type srun before .* `unset MASTER"
    ):
        take_from_slurm()
    monkeypatch.setenv("RANK", "3")  # torchrun's, in such a shell
    take_from_slurm()


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if "\n" in line]


def wait_until(true, process: subprocess.Popen) -> None:
    until = time.monotonic() + 200
    while not true():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.1)


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(number) for number in found.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_run_of_torchrun_starts_again_stops_and_goes_on_with_one_process(image_root, tmp_path):
    shutil.copytree(image_root / "train", tmp_path / "photos")
    start, resume = (command for command in COMMANDS if "runs/shared" in command)
    run = tmp_path / "runs" / "shared"
    words = [sys.executable, "-m", "torch.distributed.run", *start[1:]]
    how = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, **how) as launcher:
        try:
            wait_until(lambda: len(rows(run)) > 12, launcher)
            os.kill(children(launcher.pid)[-1], signal.SIGKILL)
            wait_until(lambda: any("resumed" in row for row in rows(run)), launcher)
            launcher.terminate()
            _, said = launcher.communicate(timeout=60)
        finally:
            launcher.kill()
    assert launcher.returncode == 1
    assert "another process of the run has ended" in said
    assert "SIGTERM at step" in said and "saved; go on with `cgh resume runs/shared`" in said
    done = cgh(*resume[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "processes 2 -> 1" in done.stderr
    found = rows(run)
    assert [row["step"] for row in found] == list(range(81))
    assert sum("resumed" in row for row in found) == 2
    assert json.loads((run / "config.json").read_text())["versions"]["processes"] == 2


@pytest.mark.slow
def test_processes_that_srun_starts_find_each_other(image_root, tmp_path):
    words = ["pretrain", "--data", image_root / "train", "--out", "run", "--device", "cpu"]
    words += ["--recipe", "cifar", "--arch", "resnet18_cifar_w16", "--batch-size", "16"]
    words += ["--set", "queue_length=64", "--dry-run"]
    done = {}

    def start(rank: int) -> None:
        env = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "MASTER_ADDR": "127.0.0.1"}
        env |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_ID": 0}
        env |= {"MASTER_PORT": port}
        env = {name: str(value) for name, value in env.items()}
        done[rank] = cgh(*words, cwd=tmp_path, env=env)

    with benchmark("cost").socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done[rank].returncode for rank in range(2)] == [0, 0], done
    assert "queue    64 images" in done[0].stderr and done[1].stderr == ""
