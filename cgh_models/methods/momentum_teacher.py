"""The momentum teacher: a copy of the student that follows it and provides the targets."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..one_process import ALONE, OneProcess

Module = TypeVar("Module", bound=nn.Module)
Output = TypeVar("Output", Tensor, tuple[Tensor, Tensor])


def make_teacher(student: Module) -> Module:
    """Returns a copy of the student that takes no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, momentum: float, buffers: bool = False
) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in one kernel per dtype.

    Parts that only the student has (a predictor) are left out. After a step whose gradient was not
    finite the student has not moved; the teacher moves towards it all the same.

    Args:
        buffers: batch-norm statistics follow too (EMAN, arXiv 2101.08482), for a teacher in eval
            mode; else they are the teacher's own (CGH, ReSSL, MoCo, BYOL).
    """
    sources = dict(student.named_parameters())
    targets = dict(teacher.named_parameters())
    if buffers:
        sources |= dict(student.named_buffers())
        targets |= dict(teacher.named_buffers())
    names_of: dict[torch.dtype, list[str]] = {}
    for name, target in targets.items():
        names_of.setdefault(target.dtype, []).append(name)
    for dtype, names in names_of.items():
        mine = [targets[name] for name in names]
        theirs = [sources[name] for name in names]
        if dtype.is_floating_point:
            torch._foreach_lerp_(mine, theirs, 1 - momentum)
        else:  # counts of batches
            torch._foreach_copy_(mine, theirs)
    if not teacher.training:  # train mode drops the attention biases that LeViT, TinyViT,
        teacher.train().eval()  # EfficientFormer and EfficientViT keep while they evaluate


def move_teacher_and_queue(method: Any, progress: float, finite: Tensor | None = None) -> None:
    """Moves the teacher towards the student and its projections into the queues.

    The ``after_step`` of methods whose momentum stays the same.
    """
    update_teacher(method.teacher, method.student, method.config.teacher_momentum)
    method.queue.enqueue(finite)


@torch.no_grad()
def teacher_forward(
    branch: Callable[[Tensor, int], Output],
    images: Tensor,
    splits: int,
    processes: OneProcess = ALONE,
) -> Output:
    """The teacher's output; statistics of parts, or of processes, are taken over shuffled rows.

    Otherwise the same images would share a part's statistics in student and teacher, which leaks
    which belong together (MoCo, arXiv 1911.05722, section 3.3).
    """
    if splits == 1 and not processes.shuffles:
        return branch(images, splits)
    images = processes.gather(images)
    order = torch.randperm(images.shape[0], device=images.device)
    back = processes.own(order.argsort())
    outputs = branch(images[processes.own(order)], splits)
    if isinstance(outputs, Tensor):
        return processes.gather(outputs)[back]
    return processes.gather(outputs[0])[back], processes.gather(outputs[1])[back]
