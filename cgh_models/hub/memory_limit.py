"""A limit on the memory that building a network of an unchecked description may take."""

import contextlib
import weakref
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import IntegrityError, printable
from .row import Row

_BYTES = 2**29  # beside what the tensor files justify
_NEW_QUEUES = 2**29  # for queues that no file holds: in all, two of 200,000 x 512 float32 have room
_MOST_CALLS = 100_000  # the most that building a network of timm takes is a quarter


def limit_of_method(row: Row, folder: Path | None) -> contextlib.AbstractContextManager[object]:
    """The limit of a method that a folder's row describes; a published row has none."""
    if folder is None:
        return contextlib.nullcontext()
    tensor_files = [folder / file for file in row.files]
    if row.heads_file is None or row.has_queues:
        return MemoryLimit(folder, tensor_files)
    length = printable((row.method_config or {}).get("queue_length"))[:60]
    lacks = f"it is without its queues, of queue_length={length}"
    advice = f"{lacks}; `cgh export --with-queue` adds them"
    return MemoryLimit(folder, tensor_files, _NEW_QUEUES, advice)


class MemoryLimit(TorchDispatchMode):
    """Within it, tensors take at most 512 MiB, ``asked`` bytes and four times the tensor files.

    The size of a result is found on the meta device before it is computed. A description asks for
    sizes (of images, queues, layers) that need not be those of the tensors it comes with.

    Raises:
        IntegrityError: from the call that would exceed it.
    """

    def __init__(
        self,
        what: object,
        tensor_files: Iterable[Path],
        asked: int = 0,
        advice: str = "it is not what was written with them, get it again",
    ):
        super().__init__()
        self.what = printable(what)
        self.advice = advice
        self.files = sum(path.stat().st_size for path in tensor_files if path.is_file())
        self.rest = _BYTES + asked + 4 * self.files
        self.calls = 0
        self.counted: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.calls += 1
        makes_tensors = not func.is_view and not func._schema.is_mutable
        needed = self._needed(func, args, kwargs) if makes_tensors else 0
        if needed > self.rest or self.calls > _MOST_CALLS:
            justified = f"its {self.files} bytes of tensors justify"
            what = f"{self.what}: its description asks for more memory than {justified}"
            raise IntegrityError(f"{what}; {self.advice}")
        out = func(*args, **kwargs)
        if makes_tensors:
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor) and not tensor.is_meta:
                    self._count(tensor)
        return out

    def _needed(self, func, args, kwargs) -> int:
        """Bytes of the tensors that the call returns."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in given) or str(kwargs.get("device")) == "meta":
            return 0
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        if any(argument.name == "device" for argument in func._schema.arguments):
            kwargs = {**kwargs, "device": "meta"}
        try:
            out = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):  # its size depends on values, or it will fail
            return 0
        return sum(t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor))

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.counted:
            self.counted.add(key)
            self.rest -= storage.nbytes()
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.rest += size
