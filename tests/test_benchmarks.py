"""The benchmarks run, and all are listed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import benchmark, python

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = re.search(r"^SCRIPTS = (.*)$", (REPO / "Makefile").read_text(), re.M)[1].split()


def test_make_bench_runs_every_benchmark_and_the_readme_describes_each():
    measure = {
        file.stem
        for file in (REPO / "benchmarks").glob("*.py")
        if "from side_by_side import" in file.read_text()
    }
    assert set(SCRIPTS) == measure
    described = re.findall(r"^## (\w+)\.py", (REPO / "benchmarks" / "README.md").read_text(), re.M)
    assert described == SCRIPTS


@pytest.mark.slow
def test_a_step_on_a_cpu_is_timed_in_each_way_and_its_operators_too():
    script = benchmark("cpu_step")
    operators = []
    for way in (*script.WAYS, script.OURS):
        found = script.one_way(way, "resnet18_cifar", 16, 8)
        assert found["step"] > 0 and max(found["operators"].values()) > 0
        operators.append(found["operators"].keys())
    assert all("convolution" in names for names in operators)
    assert "constant_pad_nd" in operators[-1] - operators[0]  # of patches, for products


def test_the_page_of_flags_has_a_row_for_each_way_that_is_measured():
    page = (REPO / "docs" / "performance.md").read_text("utf-8")
    table = page.split("<!-- flags -->\n")[1].split("\n<!-- /flags -->")[0].splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in table[2:]] == [*benchmark("flags").WAYS]


def test_the_tables_of_short_runs_are_those_of_their_results():
    folder = REPO / "benchmarks" / "short_runs"
    table = benchmark("short_runs.table")
    written = (folder / "NOTES.md").read_text("utf-8")
    kept = written.split("<!-- results -->\n")[1].split("\n<!-- /results -->")[0]
    assert kept == table.tables(table.read(folder / "results.jsonl"))


def test_the_table_of_peers_is_that_of_their_results():
    folder = REPO / "benchmarks"
    written = (folder / "README.md").read_text("utf-8")
    kept = written.split("<!-- peers -->\n")[1].split("\n<!-- /peers -->")[0]
    lines = (folder / "peers.jsonl").read_text("utf-8").splitlines()
    assert kept == benchmark("peers").tables([json.loads(line) for line in lines])


def test_as_many_epochs_are_planned_as_fit_the_time_and_a_loop_until_the_limit_has_its_last_begun():
    fit = benchmark("peers").epochs_that_fit
    assert fit(limit=1000, start_up=100, epoch=100, until_the_limit=False) == 8  # 9 without spare
    assert fit(limit=1000, start_up=100, epoch=80, until_the_limit=True) == 12  # 11.25 of them
    assert fit(limit=50, start_up=100, epoch=80, until_the_limit=True) == 1
    with pytest.raises(SystemExit, match="give more --minutes"):
        fit(limit=1000, start_up=100, epoch=890, until_the_limit=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_of_peers_probes_trains_and_measures_ours(image_root, tmp_path, monkeypatch):
    out = tmp_path / "peers.jsonl"
    words = (
        f"peers {image_root} --only moco_v2 --arch test_resnet --batch-size 16 --probe-seconds 1"
    )
    monkeypatch.setattr(sys, "argv", [*words.split(), "--out", str(out)])
    peers = benchmark("peers")
    monkeypatch.setattr(peers, "THREADS", 1)
    given = peers.arguments()
    images, train, val = peers.folder_of(given, tmp_path / "images")
    assert len(train) == 58 == len(list(images.rglob("*.png"))) and len(val) == 6
    start_up, steps = peers.probe(given, "moco_v2", images)
    assert start_up > 0 and steps > 0
    result = peers.run(given, "moco_v2", 0, 10, images, [train, val])
    assert result["epochs"] == 10 and result["images"] == 58 and not result["killed"]
    assert result["images_per_second"] > 0 and result["memory"] > 0 and 0 <= result["knn"] <= 100
    row = peers.tables([result]).splitlines()[-1].strip("| ").split(" | ")
    assert row[0] == "moco_v2" and row[3] == "10" and row[-1] == f"{result['knn']:.2f}"


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_prints_a_row_on_a_processor_too(tmp_path):
    script = REPO / "benchmarks" / "bench_gpu.py"
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = python(code, "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-500:]
    cells = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert len(cells) == 6 and all(float(cell.replace(",", "")) > 0 for cell in cells[1:5])


def test_the_limit_of_an_operator_is_the_longer_of_what_its_bytes_and_its_products_take():
    machine = SimpleNamespace(bandwidth=lambda size: 1e9, flops={torch.float32: 1e9})
    many, few, other = torch.ones(1000, 64), torch.arange(10), torch.ones(10, 64)
    room, scale = torch.empty_like(many), torch.ones(1000, 1).expand_as(many)
    ways = {
        "bytes": (lambda: many.add_(many), 3 * 1000 * 64 * 4),
        "of lists": (lambda: torch._foreach_lerp_([many], [many], 0.5), 3 * 1000 * 64 * 4),
        "of what is picked": (lambda: many[few], 2 * 10 * 64 * 4),
        "of what is put": (lambda: many.index_copy_(0, few, other), 2 * 10 * 64 * 4),
        "of what is written alone": (lambda: torch.exp(many, out=room), 2 * 1000 * 64 * 4),
        "of what is copied": (lambda: room.copy_(many), 2 * 1000 * 64 * 4),
        "of what is expanded": (lambda: many.mul(scale), 2 * 1000 * 64 * 4 + 1000 * 4),
        "products": (lambda: many[:64] @ many[:64].t(), 2 * 64**3),
    }
    for name, (way, nanoseconds) in ways.items():
        with benchmark("roofline").Roofline(machine) as roofline:
            way()
        assert roofline.least == pytest.approx(nanoseconds / 1e6), name


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("script, rows", [("folder", 3), ("views", 3), ("load", 6)])
def test_a_benchmark_prints_a_table_of_ratios(script, rows):
    if script != "views" and "CGH_LONG" not in os.environ:
        pytest.skip("half a minute: set CGH_LONG=1; views is run as they are")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    done = subprocess.run(
        ["make", "bench", f"SCRIPTS={script}"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert f"## {script}.py" in done.stdout
    ratios = [
        float(line.split("|")[3])
        for line in done.stdout.splitlines()
        if re.match(r"\|.*\| [\d.e+]+ \|$", line)
    ]
    assert len(ratios) >= rows and ratios[0] == 1 and min(ratios) > 0
