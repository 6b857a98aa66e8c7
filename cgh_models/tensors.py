"""Safetensors files: written atomically, read with the hash of the very bytes that become tensors."""

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import DiskError, InputError, IntegrityError, printable
from .files import atomic

MAX_HEADER, MAX_TENSORS = 2**20, 10_000
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Atomic safetensors file; equal tensors give equal bytes."""
    with atomic(path, sum(v.nbytes for v in tensors.values())) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, {"format": "pt"})
        except SafetensorError as error:  # its text ends in "(os error 28)"
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error


def read_tensors(path: Path, sha256: str | None = None, *, ours: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, each with memory of its own.

    Args:
        sha256: what the bytes have to hash to; they are hashed while they are read, not before or after.
        ours: a checkpoint, whose header may be larger than a stranger's file's.

    Raises:
        InputError: it is not there.
        IntegrityError: it is damaged, or its hash is another.
        DiskError: the system cannot read it.
    """
    if not path.is_file():
        raise InputError(f"{printable(path)}: not found; expected a safetensors file")
    try:
        with open(path, "rb", buffering=0) as file:
            if sha256 is None:
                return _read(file, lambda block: None, ours)
            tensors, found = _read_and_hash(file, ours)
    except OSError as error:
        raise DiskError(f"{printable(path)}: cannot be read ({error.strerror}); check disk and permissions") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{printable(path)}: not a readable safetensors file ({error}); get it again") from error
    if found != sha256:
        raise IntegrityError(f"{printable(path)}: sha256 differs: expected {sha256}, found {found}; get it again")
    return tensors


def _read_and_hash(file: Any, ours: bool) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the sha256 of all bytes; hashing goes on in a second thread while more are read."""
    total, blocks = hashlib.sha256(), SimpleQueue()

    def work() -> None:
        while (block := blocks.get()) is not None:
            total.update(block)

    thread = Thread(target=work)
    thread.start()
    try:
        tensors = _read(file, blocks.put, ours)
    finally:
        blocks.put(None)
        thread.join()
    return tensors, total.hexdigest()


def _read(file: Any, seen: Callable[[Any], None], ours: bool) -> dict[str, Tensor]:
    """Raises ValueError for anything that the format does not allow; ``seen`` gets every block of bytes in order."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    if len(length) < 8:
        raise ValueError(f"{size} bytes are too few")
    count = int.from_bytes(length, "little")
    if not 2 <= count <= min(size - 8 if ours else MAX_HEADER, size - 8):
        raise ValueError(f"a header of {count} bytes")
    header = file.read(count)
    seen(length)
    seen(header)
    tensors = {}
    for name, dtype, shape, nbytes in layout(header, size - 8 - count, ours):
        tensors[name] = torch.empty(shape, dtype=dtype)
        block = memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy())
        done = 0
        while done < nbytes:
            step = file.readinto(block[done:])
            if not step:
                raise ValueError("it ends too early")
            done += step
        seen(block)
    return tensors


def layout(header: bytes, size: int, ours: bool = False) -> list[tuple[str, torch.dtype, list[int], int]]:
    """Name, dtype, shape and bytes of each tensor in the order of the file, whose data has ``size`` bytes.

    Raises:
        ValueError: a header that the format does not allow, or one of more than MAX_TENSORS tensors.

    Source: the format's description in the safetensors README.
    """
    entries = json.loads(header)
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS and not ours:
        raise ValueError(f"{len(entries)} tensors, more than {MAX_TENSORS}")
    found, position = [], 0
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entry of {printable(name)[:60]!r} is not one of a tensor")
        shape, offsets = entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= 32
        if (
            not whole
            or any(type(n) is not int or n < 0 for n in shape + offsets)
            or math.prod(max(n, 1) for n in shape) > 2**48
            or str(entry["dtype"]) not in _DTYPES
        ):
            raise ValueError(f"dtype, shape or offsets of {printable(name)[:60]!r}")
        found.append((*offsets, name, _DTYPES[entry["dtype"]], shape))
    found.sort(key=lambda e: e[:2])
    for start, end, name, dtype, shape in found:
        if start != position or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the place of {printable(name)[:60]!r}")
        position = end
    if position != size:
        raise ValueError(f"{size} bytes of data where the header says {position}")
    return [(name, dtype, shape, end - start) for start, end, name, dtype, shape in found]


def read_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a file without their values, on the meta device. Raises IntegrityError for a damaged header."""
    try:
        with open(path, "rb") as file:
            count = int.from_bytes(file.read(8), "little")
            header, size = file.read(min(count, MAX_HEADER)), os.fstat(file.fileno()).st_size
        return {k: torch.empty(shape, dtype=t, device="meta") for k, t, shape, _ in layout(header, size - 8 - count)}
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{printable(path)}: not a readable safetensors file ({error}); get it again") from error


def misfit(ours: dict[str, Tensor], given: dict[str, Tensor], spare: tuple[str, ...] = ()) -> str:
    """What keeps ``given`` from filling ``ours``, as part of a sentence; "" if nothing does.

    Args:
        spare: beginnings of keys that may be absent from ``given``.
    """
    odd = sorted(
        k for k in ours.keys() | given.keys()
        if not k.startswith(spare or ("\0",))
        and (k not in ours or k not in given or ours[k].shape != given[k].shape)
    )  # fmt: skip
    if not odd:
        return ""
    return (
        f"{len(odd)} of {len(ours)} tensors are missing, unknown or of another shape, the first are "
        f"{', '.join(printable(key)[:60] for key in odd[:3])}"
    )
