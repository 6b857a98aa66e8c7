"""Up to 2**24 images an order is sorted as always; of more it is computed, part by part."""

import hashlib
import tracemalloc

import numpy as np
import pytest

from cgh_models.data import loader
from cgh_models.data.loader import BigOrder, ResumableBatchSampler, order


def test_an_order_is_what_it_was_before_it_was_made_in_blocks(monkeypatch):
    expected = "7860aed09f19"
    assert hashlib.sha256(order(3, 2, 1000).astype("<i8").tobytes()).hexdigest()[:12] == expected
    monkeypatch.setattr(loader, "_AT_ONCE", 7)
    assert hashlib.sha256(order(3, 2, 1000).astype("<i8").tobytes()).hexdigest()[:12] == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 255, 1000, 65_537])
def test_a_computed_order_is_a_permutation_whatever_the_count(count):
    found = BigOrder(1, 2, count)
    assert sorted(found[:].tolist()) == list(range(count)) and len(found) == count
    assert (found[count // 3 : count // 2] == found[:][count // 3 : count // 2]).all()


def test_a_computed_order_depends_on_seed_and_epoch_and_is_spread_like_chance():
    count = 100_000
    orders = [BigOrder(seed, epoch, count)[:] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for found in orders:
        # Of neighbours in the order, the images lie as far apart as those of a random order do.
        assert abs(np.abs(np.diff(found)).mean() / count - 1 / 3) < 0.005
        counts = np.histogram2d(np.arange(count), found, bins=20)[0]
        chi_square = ((counts - 250) ** 2 / 250).sum()  # 361 degrees of freedom, deviation 27
        assert abs(chi_square - 361) < 135
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[other]).sum() < 20
        assert abs(np.corrcoef(orders[one], orders[other])[0, 1]) < 0.02


def test_a_run_on_a_hundred_million_images_holds_a_batch_of_its_order(monkeypatch):
    assert isinstance(order(0, 0, 2**24 + 1), BigOrder)
    tracemalloc.start()
    try:
        sampler = ResumableBatchSampler(10**8, 256, 0, 390_620, 390_630)
        batches = list(sampler)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == 2560 and {epoch for epoch, _ in keys} == {0, 1}
    later = list(ResumableBatchSampler(10**8, 256, 0, 390_627, 390_630))
    assert later == batches[7:]  # whatever a resumed run begins with
