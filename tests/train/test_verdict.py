"""The verdict: each rule on the numbers that set it off, and on runs with a real fault."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import benchmark
from small_runs import QUICK, build

from cgh_models.errors import InputError
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain
from cgh_models.train.verdict import ALARMS, Verdict, verdict, verdict_at

RUN = {
    "train": {"batch_size": 64, "base_lr": 0.06, "epochs": 10, "warmup_epochs": 1},
    "method_config": {"teacher_temperature": 0.04, "student_temperature": 0.1},
}
# As of a healthy run of CGH on 1,000 photographs (benchmarks/health).
FIRST = {"step": 0, "feature_std": 0.1, "effective_rank": 87.0, "weight_norm": 39.5}
FIRST |= {"view_mean": 0.0, "view_std": 1.2, "view_difference": 0.8, "flat_images": 0.0}
FIRST |= {"knn": 20.0, "view_match": 16.0}
LAST = {"step": 31, "progress": 0.5, "lr": 0.01, "feature_std": 0.35, "effective_rank": 100.0}
LAST |= {"weight_norm": 39.4, "moved": 0.005, "teacher_moved": 0.001, "teacher_gradient": 0.0}
LAST |= {"projection_std": 0.3, "teacher_std": 0.3, "queue_std": 0.3, "queue_moved": 0.5}
LAST |= {"relation_entropy": 0.95, "order_jump": 0.33, "knn": 24.0, "view_match": 18.0}


def test_healthy_numbers_are_learning_not_yet_or_warm_up():
    assert verdict([], RUN) is None
    assert verdict([FIRST, LAST], RUN).word == "learning"
    assert verdict([FIRST, LAST | {"knn": 21.0}], RUN).word == "not yet"
    early = LAST | {"knn": 21.0, "progress": 0.05}
    assert verdict([FIRST, early], RUN).word == "warm-up still on"


def test_without_labels_views_tell():
    first, last = ({k: v for k, v in row.items() if k != "knn"} for row in (FIRST, LAST))
    assert verdict([first, last], RUN).word == "not yet"
    found = verdict([first, last | {"view_match": 40.0}], RUN)
    assert found == Verdict("learning", "40 % of views find their other half, 16 untrained")


def test_a_difference_that_chance_makes_is_not_learning():
    for gain, queries, word in (
        (1.0, 2000, "not yet"),
        (4.0, 2000, "learning"),
        (4.0, 500, "not yet"),
        (8.0, 500, "learning"),
    ):
        last = LAST | {"knn": 20.0 + gain, "knn_queries": queries}
        assert verdict([FIRST, last], RUN).word == word


@pytest.mark.parametrize(
    "first, last, word, said",
    [
        ({}, {"feature_std": 0.005}, "collapsed", "nearly one embedding"),
        ({}, {"teacher_std": 0.01}, "collapsed", "the teacher projects all images"),
        ({}, {"projection_std": 0.01}, "collapsed", "the student projects all images"),
        ({}, {"queue_std": 0.001}, "collapsed", "rows of the queue"),
        (
            {"effective_rank": 90.0},
            {"effective_rank": 9.0},
            "collapsing",
            "has fallen from 90 to 9",
        ),
        ({"projection_std": 0.5}, {"moved": 0.1}, "diverging", "lower --base-lr"),
        ({}, {"weight_norm": 9.0}, "diverging", "--weight-decay"),
        ({}, {"moved": 1e-6}, "not learning", "raise --base-lr"),
        ({}, {"teacher_moved": 0.0}, "not learning", "stands still"),
        ({}, {"teacher_gradient": 1.0}, "not learning", "takes gradients"),
        ({}, {"queue_moved": 0.0}, "not learning", "not renewed"),
        ({}, {"relation_entropy": 0.99995}, "not learning", "alike"),
        ({}, {"order_jump": 0.02}, "not learning", "shuffled"),
        ({"view_difference": 0.0}, {}, "not learning", "same picture"),
        ({"view_std": 60.0}, {}, "not learning", "--mean and --std"),
        ({"flat_images": 0.5}, {}, "not learning", "50 % of the images"),
    ],
)
def test_an_alarm_says_what_is_wrong(first, last, word, said):
    found = verdict([FIRST | first, LAST | last], RUN)
    assert found.word == word and said in found.reason and found.alarm and word in ALARMS


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"method_config": {"teacher_temperature": 0.2, "student_temperature": 0.1}}, "exchange"),
        ({"method_config": {"teacher_momentum": 0.0}}, "teacher_momentum=0"),
        ({"train": RUN["train"] | {"batch_size": 2}}, "2 images a batch"),
    ],
)
def test_settings_that_cannot_teach_are_named_before_the_first_step(settings, said):
    found = verdict([FIRST], RUN | settings)
    assert found.word == "not learning" and said in found.reason


def test_at_the_end_of_the_schedule_still_weights_are_no_alarm():
    assert not verdict([FIRST, LAST | {"moved": 1e-9, "lr": 1e-6}], RUN).alarm


def test_large_steps_that_draw_no_images_together_are_no_alarm():
    assert verdict([FIRST, LAST | {"moved": 0.1}], RUN).word == "learning"


def test_a_deep_network_that_begins_with_little_spread_has_not_collapsed():
    """A random ResNet-101 has a feature_std of 0.016; an hour of weight decay halves no norm."""
    spreads = {"feature_std": 0.008, "projection_std": 0.015, "teacher_std": 0.015}
    first, last = FIRST | spreads, LAST | {name: 0.9 * value for name, value in spreads.items()}
    assert not verdict([first, last], RUN).alarm
    assert verdict([first, last | {"teacher_std": 0.007}], RUN).collapsed
    rows = [FIRST] + [LAST | {"step": 31 * n, "weight_norm": 39 * 0.8**n} for n in range(1, 9)]
    assert not any(verdict(rows[: n + 1], RUN).alarm for n in range(9) if n)


def test_logs_of_earlier_versions_have_a_verdict():
    old = ("step", "feature_std", "effective_rank", "knn")
    rows = [{key: row[key] for key in old} for row in (FIRST, LAST)]
    assert verdict(rows, RUN).word == "learning"


def test_whatever_numbers_a_log_has_there_is_no_traceback():
    rng = np.random.default_rng(0)
    values = [0.0, -1.0, 1e300, -1e300, float("nan"), float("inf"), 0.5, 3]
    for _ in range(2000):
        rows = []
        for row in (FIRST, LAST, LAST):
            kept = [key for key in row if rng.random() < 0.7]
            chosen = {k: values[rng.integers(8)] if rng.random() < 0.3 else row[k] for k in kept}
            chosen |= {"step": int(rng.integers(99)), "feature_std": values[rng.integers(8)]}
            rows.append(chosen)
        assert str(verdict(rows, RUN))


def test_twenty_faults_are_named_and_healthy_runs_raise_no_alarm():
    """The recorded runs of benchmarks/health."""
    table = benchmark("health.table")
    of_kind = {kind: [] for kind in ("faults", "healthy", "held_out")}
    for run in table.read():
        of_kind[run["kind"]].append((run["name"], any(v.alarm for _, v in table.verdicts(run))))
    counts = {kind: (sum(alarm for _, alarm in runs), len(runs)) for kind, runs in of_kind.items()}
    assert counts == {"faults": (20, 20), "healthy": (0, 40), "held_out": (0, 8)}
    text = (Path(table.__file__).parent / "README.md").read_text("utf-8")
    assert "Named: 20 of 20." in text and "False alarms: 0 of 40." in text


def test_a_run_with_a_still_teacher_is_told_while_it_trains(image_root, tmp_path, capsys):
    method = build("ressl", teacher_momentum=1.0)
    config = dataclasses.replace(QUICK, eval_every=1.0)
    pretrain(method, image_root / "train", config, tmp_path / "run")
    err = capsys.readouterr().err
    assert "step 4: not learning: the teacher stands still" in err
    assert "but it is not learning" in err.splitlines()[-1]


def test_a_collapsed_run_stops_saved_if_that_is_asked_for(image_root, tmp_path):
    method = build("ressl")
    with torch.no_grad():
        method.student.projector[-1].weight.zero_()
    config = dataclasses.replace(QUICK, base_lr=0.0, eval_every=1.0, stop_when_collapsed=True)
    with pytest.raises(InputError, match="step 4: collapsed: .*; saved at step 4, `cgh resume"):
        pretrain(method, image_root / "train", config, tmp_path / "run")
    assert checkpoint.read_index(tmp_path / "run")[0].step == 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 4
    described = checkpoint.read_run(tmp_path / "run")
    assert verdict_at(4, rows, described).collapsed
    assert verdict_at(0, rows, described) is None
