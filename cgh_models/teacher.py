"""The teacher: a copy of the student that follows it."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Branch = TypeVar("Branch", bound=nn.Module)


def make_teacher(student: Branch) -> Branch:
    """A copy of the student that takes no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, one kernel per dtype, no scratch memory.

    Parameters only: batch-norm statistics stay the teacher's own (CGH, ReSSL). A step whose gradient was not finite
    moves nothing but the teacher, which then goes towards a student that stood still.
    """
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        targets, sources = pairs.setdefault(mine.dtype, ([], []))
        targets.append(mine)
        sources.append(theirs)
    for targets, sources in pairs.values():
        torch._foreach_lerp_(targets, sources, 1 - momentum)
