"""CGH's step as it is published, for comparison.

Float32, NCHW, whole loss matrices, a loop over parameters.

Written from the paper's equations (arXiv 2308.13392) and the order of operations of its release.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def losses(
    student: Tensor, hyper: Tensor, taught: Tensor, taught_hyper: Tensor, queues: list[Tensor]
) -> Tensor:
    """Both crossed losses of four (N, P) projections and two queues (P, K), which are copied."""
    first, second = queues
    of_student = student @ first.clone().detach()  # (N, K), as the other three
    of_teacher = taught @ first.clone().detach()
    of_hyper = hyper @ second.clone().detach()
    of_hyper_teacher = taught_hyper @ second.clone().detach()
    target, hyper_target = F.softmax(of_teacher / 0.04, 1), F.softmax(of_hyper_teacher / 0.08, 1)
    to_hyper = -(target * F.log_softmax(of_hyper / 0.08, 1)).sum(1).mean()
    to_global = -(hyper_target * F.log_softmax(of_student / 0.1, 1)).sum(1).mean()
    return 0.5 * to_hyper + 0.5 * to_global


class Published:
    """Student, teacher and queues of a `CGH` method, stepped the published way.

    Args:
        student: images -> (whole (N, P), hypercolumn (N, P)), unit vectors.
        rows: of the queues, (2, K, P).
    """

    def __init__(self, student: nn.Module, rows: Tensor):
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.queues, self.place = [queue.t().contiguous() for queue in rows], 0
        self.optimizer = torch.optim.SGD(
            student.parameters(), 0.05, momentum=0.9, weight_decay=1e-4
        )

    def step(self, weak: Tensor, strong: Tensor) -> None:
        """Losses, gradients, student, teacher, queues."""
        whole, hyper = self.student(strong, 1)
        with torch.no_grad():
            for mine, theirs in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                mine.data = mine.data * 0.99 + theirs.data * 0.01
            taught, taught_hyper = self.teacher(weak, 1)
        loss = losses(whole, hyper, taught, taught_hyper, self.queues)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        count = len(weak)
        for queue, new in zip(self.queues, (taught, taught_hyper), strict=True):
            queue[:, self.place : self.place + count] = new.t()
        self.place = (self.place + count) % (self.queues[0].shape[1] // count * count)
