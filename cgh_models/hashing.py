"""The sha256 of a file, with progress for large ones."""

import hashlib
from pathlib import Path

from .progress import bar


def sha256(path: Path) -> str:
    """Returns the hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file, bar(path.stat().st_size, f"hash of {path.name}", "B") as shown:
        while block := file.read(2**20):
            digest.update(block)
            shown.update(len(block))
    return digest.hexdigest()
