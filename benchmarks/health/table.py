"""How often verdicts were right: the tables of benchmarks/health/README.md and docs/health.md.

python benchmarks/health/table.py [FILE]   (what `runs.py` wrote; results.jsonl beside this script)
"""

import json
import sys
from pathlib import Path

from cgh_models.train.verdict import ALARMS, Verdict, verdict

RESULTS = Path(__file__).with_name("results.jsonl")
SIGNS = (
    "feature_std",
    "effective_rank",
    "dead_channels",
    "alignment",
    "uniformity",
    "view_match",
    "projection_std",
    "teacher_std",
    "teacher_distance",
    "relation_entropy",
    "context_agreement",
    "queue_std",
)


def read(file: str | Path = RESULTS) -> list[dict]:
    """The runs in a file, by kind and name."""
    runs = [json.loads(line) for line in Path(file).read_text().splitlines()]
    return sorted(runs, key=lambda run: (run["kind"], run["name"]))


def verdicts(run: dict) -> list[tuple[int, Verdict]]:
    """Step and verdict of each measurement that has one, and of an error that ended the run."""
    rows = run["rows"]
    found = [(int(rows[n]["step"]), verdict(rows[: n + 1], run)) for n in range(len(rows))]
    if run["ended"]:
        found.append((0, Verdict(ALARMS[0], run["ended"])))
    return [(step, said) for step, said in found if said]


def main(file: str | Path = RESULTS) -> None:
    runs = read(file)
    faults = [run for run in runs if run["kind"] == "faults"]
    named = 0
    print("| fault | said at step | verdict |\n|---|---|---|")
    for run in faults:
        alarms = [(step, said) for step, said in verdicts(run) if said.alarm]
        named += bool(alarms)
        step, said = alarms[0] if alarms else ("", "not named")
        print(f"| {run['name']} | {step} | {run['ended'] or said} |")
    print(f"\nNamed: {named} of {len(faults)}.\n")
    for kind in ("healthy", "held_out"):
        _false_alarms(kind, [run for run in runs if run["kind"] == kind])
    _ranges([run for run in runs if run["kind"] != "faults"])


def _false_alarms(kind: str, runs: list[dict]) -> None:
    print(f"| {kind} runs of | alarms | last verdicts |\n|---|---|---|")
    alarmed = 0
    for method in dict.fromkeys(run["name"].partition(",")[0] for run in runs):
        mine = [run for run in runs if run["name"].startswith(f"{method},")]
        false = [run["name"] for run in mine if any(said.alarm for _, said in verdicts(run))]
        alarmed += len(false)
        words = [verdicts(run)[-1][1].word for run in mine]
        counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
        print(f"| {method} ({len(mine)}) | {', '.join(false) or 'none'} | {counts} |")
    print(f"\nFalse alarms: {alarmed} of {len(runs)}.\n")


def _ranges(healthy: list[dict]) -> None:
    """Lowest and highest value of each sign after the start, by method."""
    methods = list(dict.fromkeys(run["name"].partition(",")[0] for run in healthy))
    print(f"| sign | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for sign in SIGNS:
        cells = []
        for method in methods:
            mine = [run for run in healthy if run["name"].startswith(f"{method},")]
            values = [row[sign] for run in mine for row in run["rows"][1:] if sign in row]
            cells.append(f"{min(values):.2g} to {max(values):.2g}" if values else "")
        print(f"| {sign} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
