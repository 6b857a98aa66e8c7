"""Run folders as pages show them: where a run stands, what its log says, how runs differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import CHANGES
from ..errors import printable
from ..train.checkpoint import read_run, total_steps
from ..train.log_file import read_log
from ..train.run_folder import is_training
from ..train.verdict import NORMAL
from ..train.verdict import verdict as verdict_of_rows

Row = dict[str, float]

_CLOCK = {"step", "epoch", "progress", "resumed", "waiting"}  # of a row: not about learning


@dataclass(frozen=True)
class Run:
    """A run folder, read once."""

    folder: Path
    name: str
    described: dict[str, Any]  # config.json
    rows: list[Row]  # of metrics.jsonl
    is_training: bool

    @property
    def total(self) -> int:
        return total_steps(self.described)

    @property
    def done(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def state(self) -> str:
        """Where the run stands, in words."""
        at = f"step {self.done:,} of {self.total:,}"
        if self.done >= self.total:
            return f"done, {self.total:,} steps"
        return f"training, {at}" if self.is_training else f"stopped at {at}"

    @property
    def measured(self) -> list[Row]:
        """The rows of measurements, that of step 0 first."""
        return [row for row in self.rows if "feature_std" in row]

    @property
    def knn(self) -> str:
        """The name of its kNN accuracy in the log; empty if it has none."""
        names = {name for row in self.measured for name in row}
        return next((name for name in ("knn", "knn_train") if name in names), "")

    def points(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one name in the log."""
        per_epoch = max(1, self.total / self.described["train"]["epochs"])
        rows = [row for row in self.rows if name in row]
        return [row["step"] / per_epoch for row in rows], [row[name] for row in rows]

    def names(self, measured: bool) -> list[str]:
        """Names in the log, of measurements alone or of steps, in the order of the log."""
        of_steps = {name for row in self.rows if "feature_std" not in row for name in row}
        of_all = dict.fromkeys(name for row in self.rows for name in row)
        return [n for n in of_all if n not in _CLOCK and (n in of_steps) != measured]


def read(folder: str | Path) -> Run:
    """The run in a folder. Raises InputError if there is none."""
    path = Path(folder)
    described = read_run(path)
    goes_on = is_training(path)  # first: a run that has ended has all its rows
    rows = read_log(path / "metrics.jsonl")
    return Run(path, printable(path.resolve().name), described, rows, goes_on)


def differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs that have them, with their value in each."""
    flat = [_settings(run) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    table = []
    for name in names:
        values = [settings.get(name, "") for settings in flat]
        if len({value for value in values if value}) > 1:
            table.append((name, values))
    return table


def _settings(run: Run) -> dict[str, str]:
    described = run.described
    values = {"method": described["method"], "arch": described["arch"]}
    values["init"] = described.get("init") or "none"
    settings = described["train"].items()
    values |= {name: v for name, v in settings if not CHANGES[name].startswith("nothing")}
    values |= {f"{name} (method)": value for name, value in described["method_config"].items()}
    values |= {"images": described["data"]["path"], "number of images": described["data"]["count"]}
    return {name: printable(value) for name, value in values.items()}


def signs(run: Run) -> list[dict[str, object]]:
    """The latest measurement beside the first: name, start, now, normal range, whether it is in."""
    table = []
    for name in run.names(measured=True):
        values = [row[name] for row in run.measured if name in row]
        low, high = NORMAL.get(name, (None, None))
        inside = None if low is None or high is None else low <= values[-1] <= high
        normal = "" if inside is None else f"{low:g} to {high:g}"
        table.append(
            {"name": name, "start": values[0], "now": values[-1], "normal": normal, "good": inside}
        )
    return table


def verdict(run: Run) -> tuple[str, bool | None]:
    """What the measurements say, in words, and whether it is good; None: neither."""
    found = verdict_of_rows(run.measured, run.described)
    if found is None:
        return "", None
    return str(found), False if found.alarm else found.word == "learning" or None
