"""Queues: first in, first out, aligned, gated."""

import pytest
import torch

from cgh_models.methods.feature_queue import FeatureQueue


def test_rows_start_as_unit_vectors():
    queue = FeatureQueue(50, 8, count=2)
    torch.testing.assert_close(queue.rows.norm(dim=2), torch.ones(2, 50))


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [7, 1, 6], [10, 10], [4, 25, 2]])
def test_the_newest_rows_are_kept_whatever_the_batch_sizes(sizes):
    queue, seen = FeatureQueue(10, 2), []
    for size in sizes:
        batch = (
            torch.arange(sum(map(len, seen)), sum(map(len, seen)) + size)
            .float()[:, None]
            .expand(-1, 2)
        )
        queue.collect(batch)
        queue.enqueue()
        seen.append(batch)
    everything = torch.cat(seen)
    assert set(queue.rows[0, :, 0].tolist()) >= set(
        everything[-min(10, len(everything)) :, 0].tolist()
    )


def test_queues_of_one_kind_stay_aligned():
    queue = FeatureQueue(5, 3, count=2)
    for size in (2, 4, 3):
        batch = torch.randn(size, 3)
        queue.collect(batch, -batch)
        queue.enqueue()
    torch.testing.assert_close(queue.rows[0], -queue.rows[1])


def test_a_non_finite_batch_is_not_written():
    queue = FeatureQueue(5, 3)
    before = queue.rows.clone()
    queue.collect(torch.full((2, 3), float("nan")))
    queue.enqueue(torch.tensor(False))
    assert torch.equal(queue.rows, before) and queue.position == 0
    queue.collect(torch.ones(2, 3))
    queue.enqueue(torch.tensor(True))
    assert torch.equal(queue.rows[0, :2], torch.ones(2, 3)) and queue.position == 2


def test_collected_batches_are_written_together_and_once():
    queue, other = FeatureQueue(9, 3), FeatureQueue(9, 3)
    other.rows.copy_(queue.rows)
    first, second = torch.randn(4, 3), torch.randn(2, 3)
    queue.collect(first)
    queue.collect(second)
    assert queue.pending == 6
    other.collect(torch.cat([first, second]))
    for each in (queue, other, queue):
        each.enqueue()
    assert (
        torch.equal(queue.rows, other.rows)
        and queue.position == other.position == 6
        and queue.pending == 0
    )


def test_nothing_is_collected_where_no_step_will_follow():
    queue = FeatureQueue(9, 3)
    with torch.no_grad():
        queue.collect(torch.ones(2, 3))
    assert queue.pending == 0
