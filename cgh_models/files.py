"""Files that a kill, a full disk or a damaged byte cannot spoil in silence: atomic writing, JSON, sha256."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DiskError, InputError, IntegrityError, printable

_MAX_JSON = 2**20


@contextlib.contextmanager
def atomic(path: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary path in the same folder; once the block ends well it is on disk under ``path``, else it is gone.

    Raises:
        DiskError: no room or no permission, naming needed and free bytes; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.token_hex(2)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            room = f"{needed} bytes are needed, {free} are free" if needed else f"{free} bytes are free"
            raise DiskError(f"{printable(path)}: not written ({error}); {room}: make room") from error
        raise DiskError(
            f"{printable(path)}: cannot be written ({error.strerror}); choose a folder you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system says so even of a file that is not there
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some mounts sync no folders
                raise
        finally:
            os.close(handle)


def make_folder(path: Path, spare: frozenset[str] = frozenset()) -> None:
    """A new folder, or an empty one but for the names in ``spare``. Raises InputError if it is neither."""
    try:
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - spare):
            raise InputError(f"{printable(path)}: exists and is not an empty folder; give another --out")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be made ({error.strerror}); give another --out") from error


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, ends in a newline."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object of at most 1 MiB; ``kind`` says in the error what was looked for.

    Raises:
        InputError: it is not there.
        IntegrityError: it is not what was written.
    """
    if not path.is_file():
        raise InputError(f"{printable(path)}: not found; expected {kind}")
    try:
        if path.stat().st_size > _MAX_JSON:
            raise IntegrityError(f"{printable(path)}: larger than {_MAX_JSON} bytes; expected {kind}")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_json)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{printable(path)}: not valid JSON ({error}); expected {kind}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{printable(path)}: not a JSON object; expected {kind}")
    return value


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        total = hashlib.sha256()
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
