"""Memory that networks on a CPU free stays with the process, for their next tensors."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # what glibc's mallopt sets: malloc.h
_blocks = 0  # that are entered now


@contextlib.contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Within it, what is freed is used again; after the outermost, the system gets it back.

    Else glibc asks the system for the memory of each large tensor and returns it: in every step
    thousands of pages are cleared anew. Nothing changes where there is no glibc, or on a GPU, whose
    memory torch itself keeps.
    """
    global _blocks
    malloc = ctypes.CDLL(None) if device.type == "cpu" and os.name == "posix" else None
    if malloc is None or not hasattr(malloc, "mallopt"):
        yield
        return
    _blocks += 1
    malloc.mallopt(_MMAP_THRESHOLD, 2**30)
    malloc.mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        _blocks -= 1
        if not _blocks:  # the thresholds that glibc itself has after large tensors
            malloc.mallopt(_MMAP_THRESHOLD, 2**25)
            malloc.mallopt(_TRIM_THRESHOLD, 2**26)
            malloc.malloc_trim(0)
