"""Files that are written atomically, so that no kill and no full disk leaves half of one; JSON."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DiskError, InputError, IntegrityError, os_error_as, printable

_MAX_JSON = 2**20  # bytes
_OF_SYSTEMS = ("lost+found", ".DS_Store")  # in a folder that somebody calls empty


@contextlib.contextmanager
def atomic(path: Path, needed: int = 0) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and moves it there if the block ends without error.

    Raises DiskError if it may not be written or has no room for its ``needed`` bytes.
    """
    short = path.name[:50]  # a name may have 255 bytes
    temporary = path.with_name(f".{short}.{os.getpid()}{secrets.token_hex(2)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose a folder you may write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needs = f"{needed} bytes are needed, " if needed else ""
            free = shutil.disk_usage(path.parent).free
            reason = f"not written ({error}); {needs}{free} bytes are free: make room"
        raise DiskError(f"{printable(path)}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system raises for a missing file too
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some mounts cannot sync folders
            raise
    finally:
        os.close(handle)


def make_folder(path: Path, *spare: str) -> None:
    """Creates a folder, or takes one that is empty but for names in ``spare``; else InputError."""
    name = printable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        empty = {entry.name for entry in path.iterdir()} <= {*spare, *_OF_SYSTEMS}
    except FileExistsError:  # it is a file
        empty = False
    except OSError as error:
        reason = f"cannot be made ({error.strerror}); give another --out"
        raise InputError(f"{name}: {reason}") from error
    except ValueError as error:  # half of a character, or a NUL
        raise InputError(f"{name}: has a character that no path has; give another --out") from error
    if not empty:
        raise InputError(f"{name}: exists and is not an empty folder; give another --out")


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes an object atomically as indented JSON that ends in a newline.

    Raises InputError, and writes nothing, for what `read_json` would refuse.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        reason = "not written, because a number in it is not finite; give another value"
        raise InputError(f"{printable(path)}: {reason}") from error
    if len(text) > _MAX_JSON:
        reason = f"not written, because it is larger than {_MAX_JSON} bytes; give shorter texts"
        raise InputError(f"{printable(path)}: {reason}")
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Reads a JSON object of at most 1 MiB; ``kind`` names in errors what was expected.

    Raises InputError if the file cannot be read, IntegrityError if it holds something else.
    """
    name = printable(path)
    if not path.is_file():
        raise InputError(f"{name}: not found; expected {kind}")
    try:
        with os_error_as(InputError, path, "cannot be read", "check its permissions"):
            if path.stat().st_size > _MAX_JSON:
                raise IntegrityError(f"{name}: larger than {_MAX_JSON} bytes; expected {kind}")
            value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name}: not valid JSON ({error}); expected {kind}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{name}: not a JSON object; expected {kind}")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
