"""Memory that networks on a CPU free stays with the process for their next tensors."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # what glibc's mallopt sets: malloc.h
_MIB = 2**20
_lock = threading.Lock()
_blocks = 0  # that are entered now


@contextlib.contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Within it, what is freed is used again; after the outermost, the system gets it back.

    Else glibc asks the system for the memory of each large tensor and returns it: in every step
    thousands of pages are cleared anew. Nothing changes where malloc is another library's, where
    the environment sets a threshold, or on a GPU, whose memory torch itself keeps.
    """
    malloc = ctypes.CDLL(None) if device.type == "cpu" and os.name == "posix" else None
    if not hasattr(malloc, "mallopt") or _is_set_by_user():
        yield
        return
    _count(malloc, 1)
    try:
        yield
    finally:
        _count(malloc, -1)


def _is_set_by_user() -> bool:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
    return any(map(os.environ.get, names)) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")


def _count(malloc: ctypes.CDLL, change: int) -> None:
    """Counts blocks that begin (1) and end (-1); the first and the last set what malloc does."""
    global _blocks
    with _lock:
        _blocks += change
        if (_blocks, change) == (1, 1):
            malloc.mallopt(_MMAP_THRESHOLD, 1024 * _MIB)
            malloc.mallopt(_TRIM_THRESHOLD, -1)  # never
        elif not _blocks:  # the thresholds that glibc itself has after large tensors
            malloc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
            malloc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
            malloc.malloc_trim(0)
