"""The list of bad files that a run keeps: bad_files.txt, a line for each."""

from pathlib import Path
from typing import Any

from ..errors import printable
from .listing import size_of


def named_in(path: Path, images: Any) -> dict[int, int]:
    """Images of an ImageSet, by index, that a list of bad files names, and their bytes then."""
    lines = path.read_text("utf-8", "replace").split("\n") if path.exists() else []
    rows = [line.split("\t") for line in lines if line]
    wanted = {name for name, *_ in rows}
    if not wanted:
        return {}
    index_of = {}
    for index, name in enumerate(images.names):
        shown = name if name.isprintable() else printable(name)
        if shown in wanted:
            index_of[shown] = index
    named = {}
    for name, *rest in rows:
        if name in index_of:
            size = rest[-1].removesuffix(" bytes") if rest else ""
            index = index_of[name]
            known = size.removeprefix("-").isdecimal()
            named[index] = int(size) if known else size_of(images.path(index))
    return named
