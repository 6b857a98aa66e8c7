"""Runs the scripts of this folder: `python tests/faults/run.py [--quick] [NAME ...]`.

Prints how many tries held, and each that did not. Without ``--quick`` the counts are the large
ones, kept in results/NAME.json, and the table of docs/reliability.md is written anew.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
RESULTS = HERE / "results"
DOCUMENT = REPO / "docs" / "reliability.md"
NAMES = ("kills", "file_calls", "full_disks", "stop_signals", "odd_images", "mutated_images",
         "mutated_files", "command_lines", "launched_runs")  # fmt: skip
MOST_KEPT = 100  # tries that did not hold
sys.path[:0] = [str(HERE), str(REPO)]


def commit() -> str:
    """The commit of this checkout; "+" after it: the package has changes since."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=REPO, text=True).strip()

    return git("rev-parse", "--short=10", "HEAD") + "+" * bool(git("status", "-s", "cgh_models"))


def measure(name: str, quick: bool) -> dict[str, Any]:
    """The result of a script: tries, how many held, and those that did not."""
    script: ModuleType = importlib.import_module(name)
    result = {"what": script.WHAT, "law": script.LAW}
    skipped = script.why_not() if hasattr(script, "why_not") else ""
    if skipped:
        return result | {"skipped": skipped}
    start = time.monotonic()
    tried = 0
    failures = []
    for how, problem in script.tries(script.QUICK if quick else script.MANY):
        tried += 1
        if problem:
            failures.append({"try": how, "problem": problem})
            print(f"{name}: {how}: {problem}", file=sys.stderr, flush=True)
    return result | {
        "tried": tried,
        "held": tried - len(failures),
        "failures": failures[:MOST_KEPT],
        "seconds": round(time.monotonic() - start),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "command": f"make faults FAULTS={name}",
    }


def table() -> str:
    """The rows of docs/reliability.md, of the kept results."""
    lines = [
        "| what is tried | what has to hold | held | seconds | date, commit | command |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        if "skipped" in result:
            held = measured = f"not tried: {result['skipped']}"
        else:
            held = f"**{result['held']:,} of {result['tried']:,}**"
            measured = f"{result['seconds']} | {result['date']}, {result['commit']}"
        words = f"`make faults FAULTS={name}`"
        lines.append(f"| {result['what']} | {result['law']} | {held} | {measured} | {words} |")
    return "\n".join(lines)


def write_table() -> None:
    """Puts the table into docs/reliability.md."""
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition("<!-- counts -->\n")
    _, _, after = rest.partition("<!-- /counts -->")
    DOCUMENT.write_text(f"{before}<!-- counts -->\n{table()}\n<!-- /counts -->{after}", "utf-8")


def main(words: list[str]) -> int:
    """Returns the exit code: 1 if a try did not hold."""
    # What the scripts start imports this checkout, too.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    quick = "--quick" in words
    code = 0
    for name in [word for word in words if word != "--quick"] or NAMES:
        with open(os.devnull, "w") as nowhere:  # what the tries themselves say
            kept = os.dup(1)
            os.dup2(nowhere.fileno(), 1)
            with contextlib.redirect_stdout(nowhere):
                result = measure(name, quick)
            os.dup2(kept, 1)
            os.close(kept)
        counts = f"skipped: {result['skipped']}" if "skipped" in result else ""
        counts = counts or f"{result['held']} of {result['tried']} in {result['seconds']} s"
        print(f"{name}: {counts}", flush=True)
        code |= "skipped" not in result and result["held"] < result["tried"]
        if not quick:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if not quick and all((RESULTS / f"{name}.json").exists() for name in NAMES):
        write_table()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
