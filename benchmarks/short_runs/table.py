"""Markdown tables of results.jsonl, one for each set of images, length of run and kind of device.

python benchmarks/short_runs/table.py
"""

import json
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Result = dict[str, Any]
HEAD = (
    "| method | settings | batch | base_lr | warm-up | CPU s | kNN %, by seed | mean | standard "
    "error |\n|---|---|---|---|---|---|---|---|---|"
)
NAMES = {"cifar10": "CIFAR-10", "tiny-imagenet-200": "Tiny ImageNet"}


def title_of(result: Result) -> str:
    where = NAMES.get(result["data"], result["data"])
    what = "test images" if result["on"] == "test" else "held-out training images"
    kind = "CPU" if result["device"] == "cpu" else "GPU"
    return (
        f"{where}, `{result['arch']}`, recipe `{result['recipe']}`, {result['image_size']} pixels, "
        f"{result['epochs']} epochs of {result['images']:,} images on a {kind}, kNN of "
        f"{result['n']:,} {what}"
    )


def settings_of(result: Result) -> tuple[Any, ...]:
    """What a row of a table is: all that runs of other seeds have in common."""
    flags = ["--paper-faithful"] if result["paper_faithful"] else []
    if result.get("optimizer", "sgd") != "sgd":
        flags.append(f"--optimizer {result['optimizer']}")
    if result.get("size_schedule"):
        flags.append(f"--size-schedule {result['size_schedule']}")
    flags += [f"--view {change}" for change in result.get("view", ())]
    settings = " ".join(f"`{setting}`" for setting in [*flags, *result["set"]])
    numbers = [result[name] for name in ("batch_size", "base_lr", "warmup_epochs")]
    return result["method"], settings or "-", *numbers


def row_of(settings: tuple[Any, ...], results: list[Result]) -> tuple[float, str]:
    """The mean, by which rows are sorted, and the row."""
    values = [result["knn"] for result in sorted(results, key=lambda result: result["seed"])]
    average = mean(values)
    error = f"{stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    seeds = ", ".join(f"{value:.2f}" for value in values)
    timed = [result.get("cpu_seconds") for result in results]
    seconds = f"{mean(timed):.0f}" if all(timed) else ""
    cells = [*map(str, settings), seconds, seeds, f"{average:.2f}", error]
    return average, "| " + " | ".join(cells) + " |"


def tables(results: list[Result]) -> str:
    results = sorted(results, key=lambda result: (title_of(result), settings_of(result)))
    parts = []
    for title, group in groupby(results, key=title_of):
        rows = [row_of(key, list(runs)) for key, runs in groupby(group, key=settings_of)]
        lines = [line for _, line in sorted(rows, reverse=True)]
        parts.append("\n".join([f"{title}:", "", HEAD, *lines]))
    return "\n\n".join(parts)


def read(file: Path) -> list[Result]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    print(tables(read(Path(__file__).parent / "results.jsonl")))
