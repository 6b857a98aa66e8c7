"""Losses against a queue of unit vectors, streamed over it, and within a batch: nothing of size batch x queue is kept.

With unit vectors s (student), Q (queue) and a target distribution p over Q's rows,

    H(p, softmax(s.Q / t)) = logsumexp(s.Q / t) - s.c / t,    c = sum_j p_j Q_j,
    d/ds                   = (sum_j softmax(s.Q / t)_j Q_j - c) / t,

so one pass over chunks of the queue yields loss and gradient, and backward has nothing left to do. Similarities are at
most 1, hence exp((s.Q - 1) / t) cannot overflow; `MIN_TEMPERATURE` keeps it from vanishing in float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

CHUNK = 2048  # queue rows a pass, at most
_SCORES = 2**20  # scores a pass, 4 MiB: what many query rows leave of CHUNK
MIN_TEMPERATURE = 0.02  # exp(-2 / 0.023) is float32's smallest normal number; below 0.02 sums could lose all terms


def _chunk(rows: int) -> int:
    """Queue rows that are compared with so many query rows at once."""
    return max(128, min(CHUNK, _SCORES // rows))


class _RelationLosses(Function):
    """In-place and out= operators: autocast leaves them alone, so this runs in the tensors' own precision."""

    @staticmethod
    def forward(ctx, teachers: Sequence[Tensor], queues: Tensor, hot, cold, *students: Tensor):
        places, count = range(len(students)), len(teachers[0])
        inverse, queries, sums, mixed = [], [], [], []
        for teacher, student, t, t_teacher in zip(teachers, students, hot, cold, strict=True):
            scale = student.new_full((count + len(student), 1), 1 / t)
            scale[:count] = 1 / t_teacher
            inverse.append(scale)
            queries.append(torch.cat([teacher, student]).mul_(scale))
            sums.append(torch.zeros_like(scale))
            mixed.append(torch.zeros_like(queries[-1]))  # the other teacher's and the own student's mixtures of rows
        chunk = _chunk(max(map(len, queries)))
        buffers = [query.new_empty(len(query) * min(chunk, queues.shape[1])) for query in queries]
        for keys in zip(*(queue.split(chunk) for queue in queues), strict=True):
            weights = []
            for i in places:  # exp((query.key - 1) / t)
                weight = buffers[i][: len(queries[i]) * len(keys[i])].view(len(queries[i]), -1)
                weights.append(torch.addmm(-inverse[i], queries[i], keys[i].t(), out=weight).exp_())
                sums[i].add_(weights[i].sum(1, keepdim=True))
            for i in places:
                other = weights[-1 - i][:count]
                mixed[i].addmm_(weights[i] if len(places) == 1 else torch.cat([other, weights[i][count:]]), keys[i])
        losses, gradients = [], []
        for i, (student, t) in enumerate(zip(students, hot, strict=True)):
            target = mixed[i][:count].div_(sums[-1 - i][:count]).repeat(len(student) // count, 1)
            agreement = (student * target).sum(1, keepdim=True)
            losses.append((sums[i][count:].log() + (1 - agreement) / t).mean())
            gradients.append(mixed[i][count:].div(sums[i][count:]).sub_(target).div_(t * len(student)))
        ctx.save_for_backward(*gradients)
        return tuple(losses)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, None, *(g * o for g, o in zip(ctx.saved_tensors, grad_outputs, strict=True))


def relation_losses(
    students: Sequence[Tensor], teachers: Sequence[Tensor], queues: Tensor, hot: Sequence[float], cold: Sequence[float]
) -> tuple[Tensor, ...]:  # fmt: skip
    """For each context the mean cross-entropy, in nats, of the student's relations to its queue.

    The target is the teacher's relations to the queue of the other context, row j of both queues being the same image
    (CGH); a single context has its own for a target (ReSSL).

    Args:
        students: a context each, (N, P) unit vectors, or (M N, P) of M views of the N images, view after view.
        teachers: a context each, (N, P) unit vectors.
        queues: (contexts, K, P) unit vectors, one or two contexts.
        hot, cold: temperatures of students and teachers, at least `MIN_TEMPERATURE`.

    Source: ReSSL (arXiv 2107.09282) eq. 4-6; crossed queues: CGH (arXiv 2308.13392).
    """
    return _RelationLosses.apply(teachers, queues, hot, cold, *students)  # pyright: ignore


class _InfoNCE(Function):
    """The positive is one more key."""

    @staticmethod
    def forward(ctx, student: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
        agreement = (student * positive).sum(1, keepdim=True)  # (N, 1)
        sums = ((agreement - 1) / temperature).exp()
        rows = sums * positive
        bound = student.new_full((), -1 / temperature)
        chunk = _chunk(len(student))
        buffer = student.new_empty(len(student) * min(chunk, len(queue)))
        for keys in queue.split(chunk):
            weights = buffer[: len(student) * len(keys)].view(len(student), len(keys))  # (N, chunk)
            torch.addmm(bound, student, keys.t(), alpha=1 / temperature, out=weights).exp_()
            sums.add_(weights.sum(1, keepdim=True))
            rows.addmm_(weights, keys)
        ctx.save_for_backward(rows.div_(sums).sub_(positive).div_(temperature * len(student)))
        return (sums.log() + (1 - agreement) / temperature).mean()

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None


def info_nce(student: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE in nats, meaned over the batch: the positive against it and the K rows of the queue.

    Args:
        student, positive: (N, P) unit vectors; only the student takes a gradient.
        queue: (K, P) unit vectors, negatives; the positive is not among them.
        temperature: at least `MIN_TEMPERATURE`.

    Source: MoCo (arXiv 1911.05722) eq. 1.
    """
    return _InfoNCE.apply(student, positive, queue, temperature)  # pyright: ignore


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
