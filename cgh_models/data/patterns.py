"""Patterns that name several files: {000..099}, {a,b} and those of a shell."""

import glob
import re
from collections.abc import Iterator

from ..errors import InputError, printable

PATTERN = re.compile(r"[*?[{]")  # how one is told from a name


def expanded(pattern: str) -> Iterator[str]:
    """The texts that the braces of a pattern stand for: {000..099} and {a,b}."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        yield pattern
        return
    parts = (found[3] or "").split(",")
    if found[1]:
        numbers = range(int(found[1]), int(found[2]) + 1)
        parts = (str(number).zfill(len(found[1])) for number in numbers)
    for part in parts:
        yield from expanded(pattern[: found.start()] + part + pattern[found.end() :])


def matches(pattern: str) -> list[str]:
    """The files that a pattern of a shell stands for, sorted. Raises InputError without any."""
    names = sorted(glob.glob(pattern))
    if not names:
        what = f"{printable(pattern)}: there is no such file"
        raise InputError(f"{what}; put it there, or mend the pattern of --data")
    return names
