"""Safetensors files: written atomically, read with a hash of the very bytes that become tensors."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import DiskError, InputError, IntegrityError, os_error_as, printable
from .files import atomic
from .progress import bar

MAX_HEADER = 2**20  # bytes
MAX_TENSORS = 10_000
_FLOATS = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)
_INTEGERS = dict(I64=torch.int64, I32=torch.int32, I16=torch.int16, I8=torch.int8, U8=torch.uint8)
_DTYPES = _FLOATS | _INTEGERS | dict(BOOL=torch.bool)
Tensors = dict[str, Tensor]  # by name


class Entry(NamedTuple):
    """What a header says of one tensor; ``start`` and ``end`` are its bytes in the data."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    start: int
    end: int


@contextlib.contextmanager
def plain_defaults() -> Iterator[None]:
    """Within it, new tensors are float32 and on the CPU, whatever defaults the caller has set."""
    dtype = torch.get_default_dtype()
    on_cpu = torch.get_default_device().type == "cpu"  # a device context slows every call
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.nullcontext() if on_cpu else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Writes a safetensors file atomically; equal tensors give equal bytes. Raises DiskError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path, sum(tensor.nbytes for tensor in plain.values())) as temporary:
        try:
            save_file(plain, temporary, {"format": "pt"})
        except SafetensorError as error:  # its text ends in "(os error 28)"
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another floating-point type, or as it is where that would lose 1 % or more.

    float16 has no numbers above 65,504 and none between 0 and 6e-8. Variances and scales (vectors
    without negative elements) are judged one by one, weights and maps as a whole; biases and means
    may lose what is below 6e-8.
    """
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    lost = (cast.to(tensor.dtype) - tensor).abs()
    most = 0.01 * tensor.abs()
    if tensor.ndim > 1:
        lost, most = lost.norm(), most.norm()
    elif (tensor < 0).any():
        most += 2**-24
    return cast if (lost <= most).all() else tensor


def read_tensors(path: Path, sha256: str | None = None, *, ours: bool = False) -> Tensors:
    """Reads all tensors of a safetensors file, each into memory of its own.

    Args:
        sha256: expected hash of the file; bytes are hashed as they are read, not before or after.
        ours: it is a checkpoint of ours, whose header and number of tensors have no limit.

    Raises:
        InputError: the file is missing.
        IntegrityError: it is damaged, or has another hash.
        DiskError: the system cannot read it.
    """
    name = printable(path)
    if not path.is_file():
        raise InputError(f"{name}: not found; expected a safetensors file")
    digest = hashlib.sha256()
    with _readable(path):
        size = path.stat().st_size
        with open(path, "rb", buffering=0) as file, bar(size, f"reading {path.name}", "B") as shown:
            if sha256 is None:
                return _read(file, lambda block: shown.update(len(block)), ours)

            def update(block: bytes | memoryview) -> None:
                digest.update(block)
                shown.update(len(block))

            with ThreadPoolExecutor(1) as hasher:  # hashes while more is read
                tensors = _read(file, partial(hasher.submit, update), ours)
    found = digest.hexdigest()
    if found != sha256:
        reason = f"sha256 differs: expected {sha256}, found {found}; get it again"
        raise IntegrityError(f"{name}: {reason}")
    return tensors


def read_shapes(path: Path) -> Tensors:
    """Tensors without values (meta). Raises IntegrityError for a damaged header, or DiskError."""
    with _readable(path), open(path, "rb", buffering=0) as file:
        _, entries = _read_header(file, ours=False)
    return {e.name: torch.empty(e.shape, dtype=e.dtype, device="meta") for e in entries}


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        with os_error_as(DiskError, path, "cannot be read", "check disk and permissions"):
            yield
    except (ValueError, RecursionError) as error:
        reason = f"not a readable safetensors file ({error}); get it again"
        raise IntegrityError(f"{printable(path)}: {reason}") from error


def _read(file: FileIO, on_block: Callable[[bytes | memoryview], object], ours: bool) -> Tensors:
    """Reads the tensors, or raises ValueError; ``on_block`` gets every block of bytes, in order."""
    header, entries = _read_header(file, ours)
    on_block(header)
    tensors = {}
    for entry in entries:
        tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        block = tensor.reshape(-1).view(torch.uint8).numpy().data
        filled = 0
        while filled < len(block):  # the system may give fewer bytes than asked for
            received = file.readinto(block[filled:])
            if not received:
                raise ValueError("it ends too early")
            filled += received
        on_block(block)
        tensors[entry.name] = tensor
    return tensors


def _read_header(file: FileIO, ours: bool) -> tuple[bytes, list[Entry]]:
    """Returns the header's bytes, its length before it, and what it says."""
    size = os.fstat(file.fileno()).st_size - 8
    length = file.read(8)
    count = int.from_bytes(length, "little")
    largest = size if ours else min(MAX_HEADER, size)
    if not 2 <= count <= largest:
        raise ValueError(f"a header of {count} bytes")
    header = file.read(count)
    return length + header, layout(header, size - count, ours)


def layout(header: bytes, size: int, ours: bool = False) -> list[Entry]:
    """Returns the entries of a header in the order of the data, which has ``size`` bytes.

    Raises ValueError if the format does not allow it or, unless it is ``ours``, for more than
    `MAX_TENSORS` tensors. Source: the format's description in the safetensors README.
    """
    described = json.loads(header)
    if not isinstance(described, dict):
        raise ValueError("its header is not a JSON object")
    described.pop("__metadata__", None)
    if len(described) > MAX_TENSORS and not ours:
        raise ValueError(f"{len(described)} tensors, more than {MAX_TENSORS}")
    entries = [_entry(name, value) for name, value in described.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    position = 0
    for entry in entries:
        nbytes = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != position or entry.end - entry.start != nbytes:
            raise ValueError(f"the place of {printable(entry.name)[:60]!r}")
        position = entry.end
    if position != size:
        raise ValueError(f"{size} bytes of data where the header says {position}")
    return entries


def _entry(name: str, value: object) -> Entry:
    """Checks one entry of a header. Raises ValueError if it cannot be one of a tensor."""
    shown = repr(printable(name)[:60])
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {shown} is not one of a tensor")
    dtype = _DTYPES.get(str(value["dtype"]))
    shape = value["shape"]
    offsets = value["data_offsets"]
    if (
        dtype is None
        or not _are_counts(shape)
        or not _are_counts(offsets)
        or len(offsets) != 2
        or len(shape) > 32
        or math.prod(max(side, 1) for side in shape) > 2**48
    ):
        raise ValueError(f"dtype, shape or offsets of {shown}")
    return Entry(name, dtype, shape, *offsets)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def refuse_mismatch(
    ours: Tensors, given: Tensors, source: object, advice: str, model: str = "the model"
) -> None:
    """Raises IntegrityError, which names their ``source``, unless ``given`` can fill ``ours``."""
    if mismatch := describe_mismatch(ours, given):
        raise IntegrityError(f"{printable(source)}: does not fit {model}: {mismatch}; {advice}")


def describe_mismatch(ours: Tensors, given: Tensors) -> str:
    """Why ``given`` cannot fill ``ours``, as part of a sentence; "" if it can."""
    mismatched = []
    for key in sorted(ours.keys() | given.keys()):
        if key not in ours or key not in given or ours[key].shape != given[key].shape:
            mismatched.append(printable(key)[:60])
    if not mismatched:
        return ""
    found = f"{len(mismatched)} of {len(ours)} tensors are missing, unknown or of another shape"
    return f"{found}, the first are {', '.join(mismatched[:3])}"
