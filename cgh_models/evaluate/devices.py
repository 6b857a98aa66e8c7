"""The device and the floating-point type that a network runs in."""

import torch

from ..errors import InputError


def pick_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of this name; "auto" is bfloat16 where the processor has instructions for it."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    supported = False
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "_is_avx512_bf16_supported"):
        supported = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if supported else torch.float32
