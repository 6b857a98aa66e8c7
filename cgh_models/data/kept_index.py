"""The index of a large folder, kept beside a run, which then goes on without listing all files.

The file: a line with the sha256 of the rest; a line of JSON; ends of names and sizes, 8 bytes each;
the names.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DiskError, printable, say
from ..files import atomic
from ..version import __version__
from .names import Names
from .walk import Walked, walk

FILE = "images.index"
FEWEST = 100_000  # images: fewer are listed within a second, and then every size is compared
_IMAGES_A_FOLDER = 10  # to ask fewer for the time of their folder's change saves little
_SETTLED = 2 * 10**9  # ns after which a change has another time, on the coarsest file systems
_SAMPLE = 1000  # files whose sizes are compared


def walk_or_kept(
    kept: Path | None, root: Path, follow_links: bool, endings: Collection[str] | None
) -> Walked:
    """`walk`, or what it found before, if a file ``kept`` has it and it still holds.

    It holds if no folder was changed, which files that come, go or get another name do, and if some
    of the files have their sizes. A damaged file is said on stderr.
    """
    sorted_endings = None if endings is None else sorted(endings)
    how = [__version__, sys.byteorder, str(root.resolve()), follow_links, sorted_endings]
    began = time.time_ns()
    found = _read(kept, how) if kept else None
    if found and _holds(root, found):
        return found
    return walk(root, follow_links, endings)._replace(how=how, began=began)


def keep(path: Path, images: Any) -> None:
    """Writes the index of an `ImageSet` for `walk_or_kept`, if it is large, new and settled.

    A folder changed just before it was listed may change again in the same tick of its file system.
    """
    walked = images.walked
    if walked is None or walked.digest or len(walked.names) < FEWEST:
        return
    newest = max(walked.folders.values())
    few_folders = _IMAGES_A_FOLDER * len(walked.folders) <= len(walked.names)
    if not few_folders or newest > walked.began - _SETTLED:
        return
    fields = {name: getattr(walked, name) for name in ("how", "skipped", "folders")}
    fields |= {"digest": images.digest, "count": len(walked.names)}
    parts = [json.dumps(fields).encode() + b"\n", walked.names.ends, walked.sizes]
    parts.append(walked.names.data)
    try:
        with atomic(path) as temporary, temporary.open("wb") as file:
            file.write(_sha256(parts))
            file.writelines(parts)
    except DiskError as error:
        say(f"warning: {error}; without it, the next start lists all files again")


def _read(path: Path, how: list[Any]) -> Walked | None:
    try:
        with path.open("rb") as file:
            return _read_parts(file, how)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = f"damaged ({printable(error)[:80]}), so all files are listed again"
        say(f"{printable(path)}: {reason}; it is then written anew")
        return None


def _read_parts(file: IO[bytes], how: list[Any]) -> Walked | None:
    total = file.readline()
    head = file.readline()
    fields = json.loads(head)
    count = fields["count"]
    if not 0 < count < os.fstat(file.fileno()).st_size / 16:
        raise ValueError(f"not of {count} images")
    names = Names()
    names.ends = array("q", file.read(8 * (count + 1)))
    sizes = array("q", file.read(8 * count))
    names.data = bytearray(file.read())
    if total != _sha256([head, names.ends, sizes, names.data]):
        raise ValueError("its sha256 is another")
    if fields["how"] != how:
        return None
    parts = (names, sizes, Counter(fields["skipped"]), fields["folders"])
    return Walked(*parts, how, digest=fields["digest"])


def _sha256(parts: list[Any]) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return f"{total.hexdigest()}\n".encode()


def _holds(root: Path, found: Walked) -> bool:
    count = len(found.names)
    places = np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int).tolist()
    with contextlib.suppress(OSError):
        times = (os.stat(root / folder).st_mtime_ns == t for folder, t in found.folders.items())
        sizes = (os.stat(root / found.names[i]).st_size == found.sizes[i] for i in places)
        return all(times) and all(sizes)
    return False
