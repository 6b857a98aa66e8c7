"""The teacher: a copy of the student that follows it, and how its batch norms see a batch."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Branch = TypeVar("Branch", bound=nn.Module)


def make_teacher(student: Branch) -> Branch:
    """A copy of the student that takes no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float, buffers: bool = False) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, one kernel per dtype, no scratch memory.

    What the student has and the teacher has not (a predictor) stays the student's. A step whose gradient was not
    finite moves nothing but the teacher, which then goes towards a student that stood still.

    Args:
        buffers: batch-norm statistics follow too (EMAN, arXiv 2101.08482), for a teacher in eval mode; without it they
            are the teacher's own (CGH, ReSSL, MoCo, BYOL).
    """
    theirs = dict(student.named_parameters()) | (dict(student.named_buffers()) if buffers else {})
    mine = dict(teacher.named_parameters()) | (dict(teacher.named_buffers()) if buffers else {})
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, tensor in mine.items():
        if tensor.is_floating_point():
            targets, sources = pairs.setdefault(tensor.dtype, ([], []))
            targets.append(tensor)
            sources.append(theirs[name])
        else:  # a count of batches
            tensor.copy_(theirs[name])
    for targets, sources in pairs.values():
        torch._foreach_lerp_(targets, sources, 1 - momentum)


@torch.no_grad()
def teach(branch: Callable[[Tensor, int], Any], images: Tensor, splits: int) -> Any:
    """The teacher's output, a tensor or a tuple of them; split batch statistics are taken over shuffled parts.

    In student and teacher the same images would share a part's statistics otherwise, which leaks which belongs to which
    (MoCo, arXiv 1911.05722, section 3.3).
    """
    if splits == 1:
        return branch(images, splits)
    order = torch.randperm(images.shape[0], device=images.device)
    back = order.argsort()
    outputs = branch(images[order], splits)
    return outputs[back] if isinstance(outputs, Tensor) else tuple(output[back] for output in outputs)
