"""Losses against a queue of unit vectors, streamed over it, and within a batch: nothing of size batch x queue is kept.

With unit vectors s (student), Q (queue) and a target distribution p over Q's rows,

    H(p, softmax(s.Q / t)) = logsumexp(s.Q / t) - s.c / t,    c = sum_j p_j Q_j,
    d/ds                   = (sum_j softmax(s.Q / t)_j Q_j - c) / t,

so one pass over chunks of the queue yields loss and gradient, and backward has nothing left to do. Similarities are at
most 1, hence exp((s.Q - 1) / t) cannot overflow; `MIN_TEMPERATURE` keeps it from vanishing in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

CHUNK = 4096  # queue rows a pass, at most
_SCORES = 2**20  # scores a pass, 4 MiB: what many query rows leave of CHUNK
MIN_TEMPERATURE = 0.02  # exp(-2 / 0.023) is float32's smallest normal number; below 0.02 sums could lose all terms


def _chunk(rows: int) -> int:
    """Queue rows that are compared with so many query rows at once."""
    return max(128, min(CHUNK, _SCORES // rows))


def _weighted_rows(query: Tensor, keys: Tensor, values: Tensor, temperature: float, sums: Tensor, rows: Tensor) -> None:
    """Adds sum_j w_j to ``sums`` (N, 1) and sum_j w_j values_j to ``rows`` (N, P), w_j = exp((query.keys_j - 1) / t).

    In-place and out= operators: autocast leaves them alone, so this runs in the tensors' own precision.
    """
    bound = query.new_full((), -1 / temperature)
    chunk = _chunk(query.shape[0])
    buffer = query.new_empty(query.shape[0] * min(chunk, keys.shape[0]))
    for key, value in zip(keys.split(chunk), values.split(chunk), strict=True):
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


def nearest(query: Tensor, queue: Tensor) -> Tensor:
    """The row of the queue (K, P) with the largest dot product with each unit vector of ``query``: (N, P).

    Of equal ones the first. Streamed, in the tensors' own precision.
    """
    best = query.new_full((query.shape[0],), -torch.inf)
    place = torch.zeros(query.shape[0], dtype=torch.int64, device=query.device)
    chunk = _chunk(query.shape[0])
    buffer = query.new_empty(query.shape[0] * min(chunk, queue.shape[0]))
    with torch.no_grad():
        for start, keys in zip(range(0, queue.shape[0], chunk), queue.split(chunk), strict=True):
            scores = buffer[: query.shape[0] * keys.shape[0]].view(query.shape[0], keys.shape[0])  # (N, chunk)
            value, index = torch.mm(query, keys.t(), out=scores).max(1)
            place = torch.where(value > best, index + start, place)
            best = torch.maximum(best, value)
    return queue.index_select(0, place)


class _BatchCrossEntropy(Function):
    """Cross-entropy of softmax(anchors @ candidates^T / t) against one label a row; both gradients in one pass."""

    @staticmethod
    def forward(ctx, anchors: Tensor, candidates: Tensor, labels: Tensor, temperature: float, others_only: bool):
        groups, count = anchors.shape[:2]
        scores = anchors.new_empty(groups, count, candidates.shape[1])
        torch.bmm(anchors, candidates.transpose(1, 2), out=scores).div_(temperature)
        if others_only:  # anchors are the candidates: none is compared with itself
            scores.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        places = labels.expand(groups, count).unsqueeze(2)
        scores.sub_(scores.amax(2, keepdim=True))  # before the logarithm: digits that the difference needs
        scores.sub_(scores.exp().sum(2, keepdim=True).log_())
        positive = scores.gather(2, places)  # (G, N, 1)
        scores.exp_().scatter_add_(2, places, torch.full_like(positive, -1))  # softmax - one-hot
        scores.div_(temperature * groups * count)
        to_anchors, to_candidates = torch.empty_like(anchors), torch.empty_like(candidates)
        torch.bmm(scores, candidates, out=to_anchors)
        torch.bmm(scores.transpose(1, 2), anchors, out=to_candidates)
        ctx.save_for_backward(to_anchors, to_candidates)
        return -positive.mean()

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        to_anchors, to_candidates = ctx.saved_tensors
        return to_anchors * grad_output, to_candidates * grad_output, None, None, None


def batch_info_nce(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """InfoNCE within a batch, in nats: each anchor's candidate is the one in its own row, the other rows are negatives.

    Args:
        anchors, candidates: (N, P) unit vectors, or (G, N, P) for a mean over G batches; gradients go to both.

    Source: NNCLR (arXiv 2104.14548) eq. 2.
    """
    if anchors.ndim == 2:
        anchors, candidates = anchors[None], candidates[None]
    labels = torch.arange(anchors.shape[1], device=anchors.device)
    anchors, candidates = anchors.contiguous(), candidates.contiguous()
    return _BatchCrossEntropy.apply(anchors, candidates, labels, temperature, False)  # pyright: ignore


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss in nats: each of 2N unit vectors is an anchor with one positive and 2N - 2 negatives.

    Args:
        first, second: (N, P) unit vectors, row i of both from the same image.

    Source: SimCLR (arXiv 2002.05709) eq. 1.
    """
    rows, count = torch.cat([first, second])[None], first.shape[0]
    labels = torch.arange(2 * count, device=rows.device).roll(count)
    return _BatchCrossEntropy.apply(rows, rows, labels, temperature, True)  # pyright: ignore


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 2 - 2 cos: (N, P) twice, of any length -> 0 to 4.

    Source: BYOL (arXiv 2006.07733) eq. 2.
    """
    return (2 - 2 * (F.normalize(student, dim=-1) * F.normalize(teacher, dim=-1)).sum(-1)).mean()
