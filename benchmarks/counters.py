"""Counts kernels, bytes, peak live memory and host syncs of a PyTorch step, without a clock.

Build the model and inputs on torch.device("meta") to count a real-size step in seconds on any
machine.

    with FlopCounterMode(display=False) as flops, CountOps() as ops, LiveBytes() as live:
        step()
    flops.get_total_flops(), ops.kernels, ops.bytes, ops.host_syncs, live.peak

Bytes are *unfused* traffic: inputs + outputs of every non-view operator. Counts depend on the torch
version: assert upper bounds.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_FREE = {
    "aten::detach",
    "aten::empty",
    "aten::lift_fresh",
    "aten::_unsafe_view",
    "aten::empty_like",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::empty_strided",
}


def _tensors(tree):
    return [t for t in tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()


class CountOps(TorchDispatchMode):
    """Counts operators that would be kernels, the bytes they touch, and host syncs as .item()."""

    def __init__(self):
        super().__init__()
        self.kernels = self.bytes = self.host_syncs = 0
        self.by_name = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name
        if name == "aten::_local_scalar_dense":
            self.host_syncs += 1
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if not is_view and name not in _FREE:
            moved = self.moved(func, args, kwargs or {}, out)
            self.kernels += 1
            self.bytes += moved
            kernels, total = self.by_name.get(name, (0, 0))
            self.by_name[name] = (kernels + 1, total + moved)
        return out

    def moved(self, func, args, kwargs, out) -> int:
        """Bytes of an operator that is a kernel: inputs, outputs, and what it overwrites."""
        writes = [r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns]
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        moved = sum(map(_bytes, inputs)) + sum(
            _bytes(t) for t in outputs if not any(t is i for i in inputs)
        )
        return moved + (sum(map(_bytes, outputs)) if any(writes) else 0)


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes held by storages created inside the block."""

    def __init__(self):
        super().__init__()
        self.current = self.peak = 0
        self._seen = set()

    def _free(self, key, size):
        self.current -= size
        self._seen.discard(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._seen:
                self._seen.add(key)
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._free, key, storage.nbytes())
        return out
