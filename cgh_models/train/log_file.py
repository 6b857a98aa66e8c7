"""The file metrics.jsonl: a JSON object of numbers a line. Read whatever else has got into it."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .. import files
from ..errors import DiskError, InputError, os_error_as, printable, say

LONGEST_LINE = 2**20  # bytes


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, none if it is not there; says how many lines are damaged."""
    found = list(lines(path))
    rows = [row for _, row in found if row is not None]
    _say_damaged(path, len(found) - len(rows))
    return rows


def refuse_lost_checkpoints(run_dir: Path) -> None:
    """Raises InputError if the log of a run without checkpoints goes beyond step 0."""
    last = max((row["step"] for _, row in lines(run_dir / "metrics.jsonl") if row), default=0)
    if last > 0:
        reason = f"its log goes to step {last}, but its checkpoints are lost"
        advice = "put them back, or give `cgh pretrain` another --out"
        raise InputError(f"{printable(run_dir)}: {reason}; {advice}")


def lines(path: Path, most: int = 2**62) -> Iterator[tuple[bytes, dict[str, float] | None]]:
    """The lines in the last ``most`` bytes of a metrics.jsonl, whatever it holds, with their rows.

    A row has a step, and nothing but numbers. A line that is none of ours has None.
    """
    if not path.is_file():
        return
    readable = os_error_as(DiskError, path, "cannot be read", "check disk and permissions")
    with readable, open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        while line := file.readline(LONGEST_LINE):
            row = None
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(str(_clean(line), "utf-8-sig"))
            yield line, row if _is_row(row) else None


def _clean(line: bytes) -> bytes:
    """The line without what a crash (zeros) or another system leaves around it."""
    return line.strip(b"\0 \t\r\n") + b"\n"


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return False
    return all(type(v) is float or (type(v) is int and abs(v) < 2**62) for v in row.values())


def _say_damaged(path: Path, count: int) -> None:
    if count:
        say(f"{printable(path)}: {count} damaged lines left out")


def drop_lines(path: Path, done: int) -> None:
    """Drops the lines of steps after ``done`` from a metrics.jsonl, and those that are damaged.

    What is not a file gets another name.
    """
    if path.exists() and not path.is_file():
        aside = path.with_name(f"{path.name}.{time.time_ns()}")
        path.rename(aside)
        say(f"{printable(path)}: not a file; renamed to {aside.name}")
    damaged = 0
    is_ours = True
    for line, row in lines(path):
        damaged += row is None
        is_ours = is_ours and row is not None and row["step"] <= done and line == _clean(line)
    _say_damaged(path, damaged)
    if is_ours:
        return
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        for line, row in lines(path):
            if row is not None and row["step"] <= done:
                file.write(_clean(line))
