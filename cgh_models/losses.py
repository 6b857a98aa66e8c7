"""Losses against a queue of unit vectors, streamed over it: nothing of size batch x queue is kept.

With unit vectors s (student), Q (queue) and a target distribution p over Q's rows,

    H(p, softmax(s.Q / t)) = logsumexp(s.Q / t) - s.c / t,    c = sum_j p_j Q_j,
    d/ds                   = (sum_j softmax(s.Q / t)_j Q_j - c) / t,

so one pass over chunks of the queue yields loss and gradient, and backward has nothing left to do. Similarities are at
most 1, hence exp((s.Q - 1) / t) cannot overflow; `MIN_TEMPERATURE` keeps it from vanishing in float32.
"""

import torch
from torch import Tensor
from torch.autograd import Function

CHUNK = 4096  # queue rows a pass; bounds the memory: batch x CHUNK scores
MIN_TEMPERATURE = 0.02  # exp(-2 / 0.023) is float32's smallest normal number; below 0.02 sums could lose all terms


def _weighted_rows(query: Tensor, keys: Tensor, values: Tensor, temperature: float, sums: Tensor, rows: Tensor) -> None:
    """Adds sum_j w_j to ``sums`` (N, 1) and sum_j w_j values_j to ``rows`` (N, P), w_j = exp((query.keys_j - 1) / t).

    In-place and out= operators: autocast leaves them alone, so this runs in the tensors' own precision.
    """
    bound = query.new_full((), -1 / temperature)
    buffer = query.new_empty(query.shape[0] * min(CHUNK, keys.shape[0]))
    for key, value in zip(keys.split(CHUNK), values.split(CHUNK), strict=True):
        scores = buffer[: query.shape[0] * key.shape[0]].view(query.shape[0], key.shape[0])  # (N, chunk)
        torch.addmm(bound, query, key.t(), alpha=1 / temperature, out=scores).exp_()
        sums.add_(scores.sum(1, keepdim=True))
        rows.addmm_(scores, value)


@torch.no_grad()
def soft_target(teacher: Tensor, teacher_queue: Tensor, student_queue: Tensor, temperature: float) -> Tensor:
    """c = softmax(teacher.teacher_queue / t) @ student_queue: (N, P) and two (K, P) -> (N, P).

    The queues are index-aligned; the same queue twice gives ReSSL's target.
    """
    sums = teacher.new_zeros(teacher.shape[0], 1)
    rows = torch.zeros_like(teacher)
    _weighted_rows(teacher, teacher_queue, student_queue, temperature, sums, rows)
    return rows.div_(sums)


class _StreamedCrossEntropy(Function):
    @staticmethod
    def forward(ctx, student: Tensor, target: Tensor, queue: Tensor, temperature: float, positive: bool) -> Tensor:
        agreement = (student * target).sum(1, keepdim=True)  # (N, 1)
        if positive:
            sums = ((agreement - 1) / temperature).exp()
            rows = sums * target
        else:
            sums, rows = torch.zeros_like(agreement), torch.zeros_like(student)
        _weighted_rows(student, queue, queue, temperature, sums, rows)
        ctx.save_for_backward(rows.div_(sums).sub_(target).div_(temperature * student.shape[0]))
        return (sums.log() + (1 - agreement) / temperature).mean()

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None


def relation_loss(student: Tensor, target: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy, in nats, of the student's relations to the queue against a soft target.

    Args:
        student: (N, P) unit vectors.
        target: (N, P) from `soft_target`.
        queue: (K, P) unit vectors, the one the target was mixed from.
        temperature: of the student, at least `MIN_TEMPERATURE`.

    Source: ReSSL (arXiv 2107.09282) eq. 4-6; crossed queues: CGH (arXiv 2308.13392).
    """
    return _StreamedCrossEntropy.apply(student, target, queue, temperature, False)  # pyright: ignore


def info_nce(student: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE in nats, meaned over the batch: the positive against it and the K rows of the queue.

    Args:
        student, positive: (N, P) unit vectors; only the student takes a gradient.
        queue: (K, P) unit vectors, negatives; the positive is not among them.
        temperature: at least `MIN_TEMPERATURE`.

    Source: MoCo (arXiv 1911.05722) eq. 1.
    """
    return _StreamedCrossEntropy.apply(student, positive, queue, temperature, True)  # pyright: ignore
