"""What the measurements of a run say, in words: is it learning?

docs/health.md has the rules in prose; benchmarks/health how often they were right.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..config import TrainConfig
from ..dataclass_json import from_older
from ..evaluate.collapse import COLLAPSED

Row = dict[str, float]

ADVICE = "start anew with a lower --base-lr, or with --precision float32"

ALARMS = ("collapsed", "collapsing", "diverging", "not learning")
FEW_IN_BATCH = 16
QUERIES = 2_000  # images whose kNN is measured, at most: what chance can change
VIEWS = 128  # images whose views are matched, at most
_SPREADS = {
    "feature_std": "all images have nearly one embedding",
    "teacher_std": "the teacher projects all images to nearly one point",
    "projection_std": "the student projects all images to nearly one point",
}
# Beyond these a sign is an alarm.
NORMAL = {
    "feature_std": (COLLAPSED, 1.1),
    "projection_std": (0.02, 1.1),
    "teacher_std": (0.02, 1.1),
    "queue_std": (0.01, 1.1),
    "relation_entropy": (0.0, 0.9999),
    "order_jump": (0.1, 1.0),  # a third, where images are shuffled
    "view_difference": (0.01, 100.0),
    "view_mean": (-3.0, 3.0),
    "view_std": (0.2, 5.0),
    "flat_images": (0.0, 0.2),
}
# What the first measurement alone has.
OF_THE_VIEWS = {"view_difference", "view_std", "view_mean", "flat_images"}
_STILL = 1e-5  # of the norm of the weights, over the root of the steps: as good as nothing
_WILD = 1.6e-3  # of it a step; more is too much where images are drawn together by it
_NOTHING = 1e-3  # a spread that is none, whatever it was at the start


@dataclass(frozen=True)
class Verdict:
    """A word of learning, not yet, warm-up still on, or ALARMS; and the reason, for people."""

    word: str
    reason: str

    @property
    def alarm(self) -> bool:
        """Whether something is wrong."""
        return self.word in ALARMS

    @property
    def collapsed(self) -> bool:
        """Whether there is nothing left to train."""
        return self.word == "collapsed"

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


def verdict(rows: list[Row], run: dict[str, Any]) -> Verdict | None:
    """What the last of the measured rows says beside those before; None if nothing can be said.

    Args:
        rows: lines of metrics.jsonl that have a ``feature_std``, in order, from step 0 on.
        run: the run's config.json, of which "train" and "method_config" are read.
    """
    if not rows:
        return None
    return (
        _of_collapse(rows)
        or _of_settings(run)
        or _of_views(rows)
        or _of_teacher(rows)
        or _of_queue(rows[-1])
        or _of_weights(rows, run)
        or _of_learning(rows, run)
    )


def verdict_at(step: int, log: list[Row], run: dict[str, object]) -> Verdict | None:
    """The verdict of a whole log until ``step``; ``run`` is as for `verdict`."""
    return verdict([row for row in log if "feature_std" in row and row["step"] <= step], run)


def _is_normal(row: Row, name: str) -> bool:
    low, high = NORMAL[name]
    return name not in row or low <= row[name] <= high


def _wrong(reason: str) -> Verdict:
    return Verdict("not learning", reason)


def _of_settings(run: dict[str, Any]) -> Verdict | None:
    if swapped := swapped_temperatures(run["method_config"]):
        return _wrong(swapped)
    if run["method_config"].get("teacher_momentum") == 0:
        return _wrong("teacher_momentum=0 makes the teacher the student; 0.99 is usual")
    if run["train"]["batch_size"] < FEW_IN_BATCH:
        found = f"{run['train']['batch_size']} images a batch are too few for batch norms"
        return _wrong(f"{found}; --batch-size 64 is usual")
    return None


def swapped_temperatures(settings: dict[str, Any]) -> str:
    """A warning if a method's teacher has a higher temperature than its student; else empty."""
    for name, teacher in settings.items():
        student = settings.get(name.replace("teacher", "student"))
        if name.endswith("teacher_temperature") and student is not None and teacher > student:
            said = f"{name}={teacher} is above the student's {student}"
            return f"{said}, and its relations less sharp: nothing is learned; exchange them"
    return ""


def _of_views(rows: list[Row]) -> Verdict | None:
    """Of what the networks see, which is measured once."""
    row = next((row for row in rows if row.keys() >= OF_THE_VIEWS), None)
    if row is None:
        return None
    if not _is_normal(row, "view_difference"):
        return _wrong("both views of an image are the same picture; the views must differ")
    if not (_is_normal(row, "view_std") and _is_normal(row, "view_mean")):
        found = f"a mean of {row['view_mean']:.3g} and a deviation of {row['view_std']:.3g}"
        return _wrong(f"the pixels have {found}, expected about 0 and 1; mend --mean and --std")
    if not _is_normal(row, "flat_images"):
        share = 100 * row["flat_images"]
        return _wrong(f"{share:.0f} % of the images are of one colour; `cgh check` names them")
    if rows[0]["step"] == 0 and rows[0]["feature_std"] < 1e-4:
        return _wrong("before the first step all images look the same; are they one picture?")
    return None


def _of_collapse(rows: list[Row]) -> Verdict | None:
    last = rows[-1]
    if len(rows) < 2:
        return None
    for name, found in _SPREADS.items():
        # Deep networks begin below the usual limit: half their start, then.
        least = max(_NOTHING, min(NORMAL[name][0], 0.5 * rows[0].get(name, math.inf)))
        if name in last and not last[name] >= least:
            return Verdict("collapsed", f"{found} ({name} {last[name]:.1e})")
    for name in ("feature_std", "effective_rank"):
        highest = max(row.get(name, 0.0) for row in rows)
        if last.get(name, highest) < 0.25 * highest:
            found = f"{name} has fallen from {highest:.3g} to {last[name]:.3g}"
            return Verdict("collapsing", f"{found}; a lower --base-lr may help")
    return None


def _of_teacher(rows: list[Row]) -> Verdict | None:
    last = rows[-1]
    if last.get("teacher_gradient"):
        return _wrong("the teacher takes gradients; only its student may")
    if last.get("teacher_moved", 1.0) == 0 and last.get("moved", 0.0) > 0:
        return _wrong("the teacher stands still; give a teacher_momentum below 1")
    if len(rows) > 1 and not _is_normal(last, "relation_entropy"):
        return _wrong("to the teacher all images of the queue are alike; lower its temperature")
    return None


def _of_queue(last: Row) -> Verdict | None:
    if not _is_normal(last, "queue_std"):
        return Verdict("collapsed", "all rows of the queue are nearly the same")
    if last.get("queue_moved", 1.0) == 0:
        return _wrong("the queue is not renewed")
    return None


def _of_weights(rows: list[Row], run: dict[str, object]) -> Verdict | None:
    """How far they moved since the measurement before, and whether it did any good."""
    last = rows[-1]
    if len(rows) < 2 or not {"moved", "weight_norm"} <= last.keys():
        return None
    before = rows[-2]
    steps = max(1.0, last["step"] - before["step"])
    norm = last["weight_norm"] / (before.get("weight_norm") or last["weight_norm"] or 1.0)
    if not 0.5 < norm < 2:
        found = f"the norm of the weights is {norm:.2g} times that of the measurement before"
        return Verdict("diverging", f"{found}; lower --weight-decay or --base-lr")
    moved = last["moved"] / steps
    spread = "projection_std" if "projection_std" in rows[0] else "feature_std"
    if moved > _WILD and last.get(spread, 1.0) < rows[0][spread]:
        now = f"{spread} is {last[spread]:.2g}, {rows[0][spread]:.2g} untrained"
        found = f"weights move by {moved:.1e} of their norm a step, and {now}"
        return Verdict("diverging", f"{found}; lower --base-lr")
    slow = last.get("lr", 0.0) <= 0.1 * _trainer(run).lr
    if last["moved"] / math.sqrt(steps) < _STILL and not slow:
        found = f"the backbone's weights move by {moved:.1e} of their norm a step"
        return _wrong(f"{found}; raise --base-lr, and see that it is not frozen")
    return None


def _of_learning(rows: list[Row], run: dict[str, object]) -> Verdict | None:
    """By kNN where there are labels, else by the views nearest to each other, once shuffled."""
    first, last = rows[0], rows[-1]
    if not _is_normal(last, "order_jump"):
        return _wrong("the images come in the order of their names; they must be shuffled")
    queries = last.get("knn_queries", QUERIES)
    of_classes = "kNN {:.1f} % of a sample, {:.1f} untrained"
    for name, count, text in (
        ("knn", queries, of_classes),
        ("knn_train", queries, of_classes),
        ("view_match", VIEWS, "{:.0f} % of views find their other half, {:.0f} untrained"),
    ):
        if name in first and name in last and len(rows) > 1:
            shown = text.format(last[name], first[name])
            if last[name] > first[name] + _chance(last[name], count):
                return Verdict("learning", shown)
            in_warmup = last.get("progress", 0.0) < _trainer(run).warmup
            return Verdict("warm-up still on" if in_warmup else "not yet", shown)
    return None


def _chance(percent: float, count: float) -> float:
    """Two standard errors of the difference of two such percentages of ``count`` images."""
    count = max(1.0, count)
    share = min(max(percent / 100, 0.01), 0.99)
    return 100 * 2 * math.sqrt(2 * share * (1 - share) / count)


def _trainer(run: dict[str, Any]) -> TrainConfig:
    return from_older(TrainConfig, run["train"])
