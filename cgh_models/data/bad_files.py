"""The bad files of a run: bad_files.txt names them, a line for each, and how many there may be."""

import math
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from .listing import size_of


def named_in(path: Path, images: Any) -> dict[int, int]:
    """Images of an ImageSet, by index, that a list of bad files names, and their bytes then."""
    lines = path.read_text("utf-8", "replace").split("\n") if path.exists() else []
    rows = [line.split("\t") for line in lines if line]
    wanted = {name for name, *_ in rows}
    if not wanted:
        return {}
    shown = (name if name.isprintable() else printable(name) for name in images.names)
    index_of = {name: index for index, name in enumerate(shown) if name in wanted}
    named = {}
    for name, *rest in rows:
        if name in index_of:
            size = rest[-1].removesuffix(" bytes") if rest else ""
            index = index_of[name]
            known = size.removeprefix("-").isdecimal()
            named[index] = int(size) if known else size_of(images.path(index))
    return named


def too_many(images: Any) -> InputError:
    """The error of an ImageSet with more bad files than it may have."""
    index, reason = next(iter(images.bad.items()))
    found = f"{len(images.bad)} of {len(images)} images cannot be read"
    found += f", more than {100 * images.max_bad:g} %"
    hint = "remove them"
    if images.bad_file:  # of a run
        most = math.ceil(100 * len(images.bad) / len(images)) / 100
        named = f"all are named in {printable(images.bad_file)}"
        hint = f"{named}; remove them, or give --max-bad {most:g}, which replaces them"
    return InputError(f"{printable(images.where(index))}: {reason}; {found}; {hint}")
