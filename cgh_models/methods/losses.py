"""Losses against a queue of unit vectors, and within a batch. None keeps a batch x queue matrix.

With unit vectors s (student), Q (queue) and a target distribution p over Q's rows,

    H(p, softmax(s.Q / t)) = logsumexp(s.Q / t) - s.c / t,    c = sum_j p_j Q_j,
    d/ds                   = (sum_j softmax(s.Q / t)_j Q_j - c) / t,

so one pass over chunks of the queue yields loss and gradient, which backward only has to scale.
Rows of a queue that has nearly collapsed differ little from their mean, and two mixtures of them
still less: what is summed up is p_j (Q_j - r), where r is the mean of every 16th row.
Similarities are at most 1, so from `MIN_TEMPERATURE` on exp(s.Q / t) neither overflows nor vanishes
in float32. Autocast leaves in-place and out= operators in the tensors' own precision.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

CHUNK = 1024  # queue rows a pass, at most: they stay in a processor's cache
_SCORES = 2**20  # scores a pass, 4 MiB: many query rows make chunks shorter
_GPU_SCORES = 2**21  # on a GPU, where a pass costs the same launches whatever its length
MIN_TEMPERATURE = 0.02  # exp(1 / 0.02) is 5e21; float32 ends at 3e38
_REFERENCE_STEP = 16  # every 16th row of a queue enters the reference


def chunk_length(rows: int, device_type: str = "cpu") -> int:
    """Queue rows that are compared with so many query rows at once."""
    if device_type == "cuda":
        return max(128, _GPU_SCORES // rows)
    return max(128, min(CHUNK, _SCORES // rows))


def _chunks(queue: Tensor, rows: int, length: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields chunks of a queue (K, P), each with the same memory for the scores (rows, chunk)."""
    length = length or chunk_length(rows, queue.device.type)
    memory = queue.new_empty(rows * min(length, len(queue)))
    for keys in queue.split(length):
        yield keys, memory[: rows * len(keys)].view(rows, len(keys))


class _KnownGradient(Function):
    """A loss with gradients that were computed beside it."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *(gradient * grad_output for gradient in ctx.saved_tensors)


class Relations:
    """Relations of N teacher rows and M N student rows to a queue, summed up chunk by chunk.

    ``queries`` (N + M N, P) are the teacher's rows, then the student's, over their temperatures;
    ``sums`` (N + M N, 1) of their weights for all keys; ``mixtures`` (N + M N, P) of
    weight * (key - reference), by the weights that `mix` or `add_positive` is given.
    """

    def __init__(
        self, student: Tensor, teacher: Tensor, queue: Tensor, student_t: float, teacher_t: float
    ):
        self.student = student
        self.student_t = student_t
        self.reference = queue[::_REFERENCE_STEP].mean(0)  # (P,)
        self.queries = torch.cat([teacher.detach() / teacher_t, student.detach() / student_t])
        self._sums: list[Tensor] = []
        self.mixtures = torch.zeros_like(self.queries)

    def weights(self, keys: Tensor, memory: Tensor) -> Tensor:
        """exp(query.key / t) of every query with every key, which the sums take in."""
        weights = torch.mm(self.queries, keys.t(), out=memory).exp_()
        self._sums.append(weights.sum(1, keepdim=True))
        return weights

    @property
    def sums(self) -> Tensor:
        """(N + M N, 1); summed up at the end, as a large one would swallow many small ones."""
        return torch.cat(self._sums, 1).sum(1, keepdim=True)

    def mix(self, weights: Tensor, keys: Tensor, memory: Tensor) -> None:
        """The mixtures take in keys by their weights; ``memory`` is as large as the keys."""
        self.mixtures.addmm_(weights, torch.sub(keys, self.reference, out=memory))

    def stream(self, queue: Tensor) -> None:
        """Sums and mixtures take in the queue, both by each query's own weights."""
        rows = len(self.queries)
        differences = torch.empty_like(queue[: chunk_length(rows, queue.device.type)])
        for keys, memory in _chunks(queue, rows):
            self.mix(self.weights(keys, memory), keys, differences[: len(keys)])

    def add_positive(self, positive: Tensor) -> None:
        """The student's sums and mixtures take in one more key, for each row its own (N, P)."""
        n = len(positive)
        weights = (self.queries[n:] * positive).sum(1, keepdim=True).exp()
        self._sums.append(F.pad(weights, (0, 0, n, 0)))  # 0 for the teacher's rows
        self.mixtures[n:].addcmul_(weights, positive - self.reference)

    def cross_entropy(self, target: Tensor) -> Tensor:
        """Mean H(p, softmax(s.Q / t)), where ``target`` (N, P) is the equation's c - reference."""
        n, t = len(target), self.student_t
        target = target.repeat(len(self.student) // n, 1)  # (M N, P)
        agreement = (self.student.detach() * (target + self.reference)).sum(1, keepdim=True)
        loss = ((self.sums[n:] * math.exp(-1 / t)).log() + (1 - agreement) / t).mean()
        gradient = self.mixtures[n:].div(self.sums[n:]).sub_(target).div_(t * len(target))
        return _KnownGradient.apply(loss, (gradient,), self.student)  # pyright: ignore


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Mean cross-entropy, in nats, of the student's relations to a queue with the teacher's.

    Args:
        student: (N, P) unit vectors, or (M N, P) of M views of the N images, view after view.
        teacher: (N, P) unit vectors, the target.
        queue: (K, P) unit vectors.
        student_temperature, teacher_temperature: at least `MIN_TEMPERATURE`.

    Source: ReSSL (arXiv 2107.09282) eq. 4-6.
    """
    n = len(teacher)
    relations = Relations(student, teacher, queue, student_temperature, teacher_temperature)
    relations.stream(queue)
    return relations.cross_entropy(relations.mixtures[:n] / relations.sums[:n])


def crossed_relation_losses(
    students: tuple[Tensor, Tensor],
    teachers: tuple[Tensor, Tensor],
    queues: Tensor,
    student_temperatures: tuple[float, float],
    teacher_temperatures: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The relation losses of two contexts, in which each teacher is the other context's target.

    Args:
        students, teachers: as in `relation_loss`, for each context.
        queues: (2, K, P) unit vectors, row j of both from the same image.

    Source: CGH (arXiv 2308.13392).
    """
    n = len(teachers[0])
    temperatures = student_temperatures, teacher_temperatures
    first, second = map(Relations, students, teachers, queues, *temperatures)
    rows = max(len(first.queries), len(second.queries))
    length = chunk_length(rows, queues.device.type)
    differences = torch.empty_like(queues[0, :length])
    chunks1 = _chunks(queues[0], len(first.queries), length)
    chunks2 = _chunks(queues[1], len(second.queries), length)
    for (keys1, memory1), (keys2, memory2) in zip(chunks1, chunks2, strict=True):
        weights1 = first.weights(keys1, memory1)
        weights2 = second.weights(keys2, memory2)
        # A teacher's weights mix the rows of the other queue: those of the same images.
        memory = differences[: len(keys1)]
        first.mix(torch.cat([weights2[:n], weights1[n:]]), keys1, memory)
        second.mix(torch.cat([weights1[:n], weights2[n:]]), keys2, memory)
    # The teacher's rows of `mixtures` hold this queue's keys by the other teacher's weights, so it
    # is the other's sums that they are divided by.
    target_of_first = first.mixtures[:n] / second.sums[:n]
    target_of_second = second.mixtures[:n] / first.sums[:n]
    return first.cross_entropy(target_of_first), second.cross_entropy(target_of_second)


def info_nce(student: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE in nats: each positive against itself and the K rows of the queue.

    Args:
        student, positive: (N, P) unit vectors; only the student takes a gradient.
        queue: (K, P) unit vectors, the negatives; the positive is not among them.
        temperature: at least `MIN_TEMPERATURE`.

    Source: MoCo (arXiv 1911.05722) eq. 1.
    """
    query = student.detach() / temperature
    agreement = (query * positive.detach()).sum(1, keepdim=True)  # (N, 1)
    reference = queue[::_REFERENCE_STEP].mean(0)
    positive = positive.detach() - reference
    sums = [agreement.exp()]  # the positive is one more key
    mixtures = sums[0] * positive
    differences = torch.empty_like(queue[: chunk_length(len(query), queue.device.type)])
    for keys, memory in _chunks(queue, len(query)):
        weights = torch.mm(query, keys.t(), out=memory).exp_()
        sums.append(weights.sum(1, keepdim=True))
        mixtures.addmm_(weights, torch.sub(keys, reference, out=differences[: len(keys)]))
    total = torch.cat(sums, 1).sum(1, keepdim=True)
    loss = ((total * math.exp(-1 / temperature)).log() + 1 / temperature - agreement).mean()
    gradient = mixtures.div_(total).sub_(positive).div_(temperature * len(query))
    return _KnownGradient.apply(loss, (gradient,), student)  # pyright: ignore


@torch.no_grad()
def nearest(query: Tensor, queue: Tensor) -> Tensor:
    """The row of the queue (K, P) with the largest dot product with each unit vector: (N, P).

    Of equal ones the first. Streamed, in the tensors' own precision.
    """
    best = query.new_full((len(query),), -torch.inf)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    start = 0
    for keys, memory in _chunks(queue, len(query)):
        score, place = torch.mm(query, keys.t(), out=memory).max(1)
        index = torch.where(score > best, place + start, index)
        best = torch.maximum(best, score)
        start += len(keys)
    return queue.index_select(0, index)


def _batch_cross_entropy(
    anchors: Tensor, candidates: Tensor, labels: Tensor, temperature: float, exclude_self: bool
) -> Tensor:
    """Mean cross-entropy of softmax(anchors @ candidates^T / t), (G, N, P) each, a label a row."""
    a, b = anchors.detach(), candidates.detach()
    groups, count = a.shape[:2]
    scores = a.new_empty(groups, count, b.shape[1])
    torch.bmm(a, b.transpose(1, 2), out=scores).div_(temperature)
    if exclude_self:
        scores.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    labels = labels.expand(groups, count).unsqueeze(2)
    scores.sub_(scores.amax(2, keepdim=True))  # before the logarithm, for precision
    scores.sub_(scores.exp().sum(2, keepdim=True).log_())
    positive = scores.gather(2, labels)  # (G, N, 1)
    scores.exp_().scatter_add_(2, labels, torch.full_like(positive, -1))  # softmax - one-hot
    scores.div_(temperature * groups * count)
    to_anchors = torch.bmm(scores, b, out=torch.empty_like(a))
    to_candidates = torch.bmm(scores.transpose(1, 2), a, out=torch.empty_like(b))
    gradients = (to_anchors, to_candidates)
    return _KnownGradient.apply(-positive.mean(), gradients, anchors, candidates)  # pyright: ignore


def batch_info_nce(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE within a batch, in nats: the positive is the candidate in the anchor's row.

    Args:
        anchors, candidates: (N, P) unit vectors, or (G, N, P) for a mean over G batches; both take
            gradients.

    Source: NNCLR (arXiv 2104.14548) eq. 2.
    """
    if anchors.ndim == 2:
        anchors, candidates = anchors[None], candidates[None]
    anchors, candidates = anchors.contiguous(), candidates.contiguous()
    labels = torch.arange(anchors.shape[1], device=anchors.device)
    return _batch_cross_entropy(anchors, candidates, labels, temperature, exclude_self=False)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss in nats: each of 2N unit vectors has one positive and 2N - 2 negatives.

    Args:
        first, second: (N, P) unit vectors, row i of both from the same image.

    Source: SimCLR (arXiv 2002.05709) eq. 1.
    """
    rows = torch.cat([first, second])[None]
    labels = torch.arange(2 * len(first), device=rows.device).roll(len(first))
    return _batch_cross_entropy(rows, rows, labels, temperature, exclude_self=True)


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of 2 - 2 cos, between 0 and 4; (N, P) each, rows of any length.

    Source: BYOL (arXiv 2006.07733) eq. 2.
    """
    return (2 - 2 * (F.normalize(student, dim=-1) * F.normalize(teacher, dim=-1)).sum(-1)).mean()
