"""What is there and what is wanted, as tables; README.md and NOTES.md hold them between marks."""

import json
from pathlib import Path
from statistics import mean, stdev

from cgh_models.hub import manifest
from cgh_models.hub.row import Row

from .rows import ROWS

REPO = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
NUMBERS = HERE / "numbers.json"  # rows whose weights are not shipped
NUMERIC = {
    "kNN %": "knn",
    "kNN % on other images": "knn_transfer",
    "linear %": "linear",
    "linear, ridge %": "linear_ridge",
    "fine-tuned, 10 % of labels": "finetune_10",
}


def known() -> dict[str, Row]:
    """Rows that are there, by name."""
    return {row.name: row for path in (manifest.MANIFEST, NUMBERS) for row in manifest.read(path)}


def queue() -> str:
    """Each row's command and seed, with its cost and numbers, or what is wanted if missing."""
    done = known()
    names = "row, data, epochs, seed, hardware, hours, commit, kNN %, linear %, command"
    lines = [tuple(names.split(", "))]
    for row in ROWS:
        if there := done.get(row.name):
            cost = there.training
            made = (
                f"{there.epochs:.0f}",
                there.seed,
                cost.hardware if cost else "",
                cost.hours if cost else "",
                (there.code.commit or "")[:7],
            )
            numbers = [_cell([there], metric) for metric in ("knn", "linear")]
            lines.append((row.name, row.data, *made, *numbers, f"`{there.command}`"))
        else:
            empty = [""] * 5
            command = f"`{row.command(row.epochs)}`"
            lines.append((row.name, row.data, f"{row.epochs} wanted", row.seed, *empty, command))
    return _markdown(lines)


def weights() -> str:
    """What is published.

    Rows that differ in nothing but the seed are one line: mean and standard deviation.
    """
    same: dict[str, list[Row]] = {}
    for row in known().values():
        settings = row.train_config and {**row.train_config, "seed": None}
        alike = [row.architecture, row.method, row.method_config, settings, vars(row.data)]
        same.setdefault(json.dumps(alike), []).append(row)
    metrics = [name for metric in NUMERIC.values() for name in (metric, f"{metric}_random")]
    lines = [
        (
            "name",
            "trained on",
            "parameters",
            "seeds",
            *(f for name in NUMERIC for f in (name, "untrained")),
        )
    ]
    for group in same.values():
        first = group[0]
        epochs = "epochs not stated" if first.epochs is None else f"{first.epochs:.0f} epochs"
        shipped = first.name in {row.name for row in manifest.read(manifest.MANIFEST)}
        name = f"`{first.name}`" if shipped else f"{first.name} (numbers only)"
        made = (
            f"{first.trained_on}, {epochs}",
            f"{first.parameters / 1e6:.1f} M",
            len(group),
        )
        lines.append((name, *made, *(_cell(group, metric) for metric in metrics)))
    return _markdown(lines)


def _cell(group: list[Row], metric: str) -> str:
    found = [row.metrics[metric] for row in group if row.metrics.get(metric)]
    if not found:
        return ""
    values, data = [measured.value for measured in found if measured], found[0].data
    epochs = found[0].parameters.get("epochs")
    passes = f" in {epochs} epochs" if epochs else ""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    where = "" if data == group[0].data.name else f" on {data}"
    return f"{mean(values):.2f}{spread}{where}{passes}"


def _markdown(lines: list[tuple]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def write() -> None:
    """Into the files that hold them."""
    for path, mark, table in (
        (REPO / "README.md", "weights", weights()),
        (HERE / "NOTES.md", "rows", queue()),
    ):
        before, rest = path.read_text("utf-8").split(f"<!-- {mark} -->\n")
        after = rest.split(f"<!-- /{mark} -->")[1]
        path.write_text(f"{before}<!-- {mark} -->\n{table}\n<!-- /{mark} -->{after}", "utf-8")
