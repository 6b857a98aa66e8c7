"""A hundred odd image files: each is read with exactly these pixels, or refused with a reason."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from children import Problem, stated, watched
from odd_image_table import CASES, Case

from cgh_models.data.image_set import load
from cgh_models.errors import BadImage, InputError

WHAT = "odd image files (formats, depths, bands, orientations, animations, damage)"
LAW = "read with exactly the pixels that are stated for it, or refused with a sentence that says so"
QUICK = MANY = len(CASES)
_ROOM = {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink("nowhere", path)}


def problem_of(case: Case, folder: Path) -> Problem:
    """What is wrong with how the only file of a folder is read."""
    path = folder / case.name
    if isinstance(case.content, str):
        _ROOM[case.content](path)
    else:
        path.write_bytes(case.content)
    try:
        images = load(folder)
        pixels = np.array(images.image(0))
    except Exception as error:
        problem = stated(error, (BadImage, InputError))
        text = str(error).replace(str(folder), "FOLDER")
        if not problem and (len(text) > 400 or "\n" in text):
            problem = f"a reason of {len(text)} characters or several lines"
        if not problem and case.refused is None:
            problem = f"refused: {text[:150]}"
        if not problem and (case.refused or "") not in text:
            problem = f"the reason lacks {case.refused!r}: {text[:150]}"
        return problem
    if case.pixels is None:
        return f"read, though it is to be refused: {pixels.shape}, mean {pixels.mean():.1f}"
    if pixels.shape != case.pixels.shape:
        return f"{pixels.shape} where {case.pixels.shape} is right"
    difference = np.abs(pixels.astype(int) - case.pixels.astype(int)).max()
    if difference > case.tolerance:
        means = f"mean {pixels.mean():.1f}, right is {case.pixels.mean():.1f}"
        return f"pixels differ by up to {difference}: {means}"
    return ""


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """The first ``count`` of the table."""

    def try_one(number: int) -> Problem:
        with tempfile.TemporaryDirectory() as folder:
            return problem_of(CASES[number], Path(folder))

    for number, problem in watched(range(min(count, len(CASES))), try_one):
        yield f"{CASES[number].name} ({CASES[number].what})", problem
