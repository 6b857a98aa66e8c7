"""Groups of images that are there more than once."""

import numpy as np
import pytest

from cgh_models.report import duplicates


def planted(count=400, width=64):
    """Random hashes, a third of them earlier ones with up to six bits turned."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
    for place in range(1, count, 3):
        bits = rng.choice(width, rng.integers(7), replace=False).astype(np.uint64)
        turned = np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
        hashes[place] = hashes[rng.integers(place)] ^ turned
    return hashes


def distance(a, b):
    return (int(a) ^ int(b)).bit_count()


def test_members_are_near_the_first_of_their_group_and_firsts_are_not_near_each_other():
    hashes = planted()
    groups = duplicates.near_hashes(hashes, 4)
    assert len(groups) > 50
    followers = {place for group in groups for place in group[1:].tolist()}
    for group in groups:
        assert all(distance(hashes[group[0]], hashes[place]) <= 4 for place in group)
    firsts = [place for place in range(len(hashes)) if place not in followers]
    for number, place in enumerate(firsts):
        assert all(distance(hashes[place], hashes[other]) > 4 for other in firsts[:number])
    assert len(followers) == sum(len(group) - 1 for group in groups)  # each in one group


@pytest.mark.parametrize("block", [1, 1000])
def test_groups_do_not_depend_on_how_many_pairs_are_compared_at_once(monkeypatch, block):
    hashes = planted()
    whole = duplicates.near_hashes(hashes, 4)
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    parts = duplicates.near_hashes(hashes, 4)
    assert [group.tolist() for group in parts] == [group.tolist() for group in whole]


def test_groups_are_the_same_without_the_bit_count_of_numpy_2(monkeypatch):
    hashes = planted()
    counted = duplicates.near_hashes(hashes, 4)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    looked_up = duplicates.near_hashes(hashes, 4)
    assert [group.tolist() for group in looked_up] == [group.tolist() for group in counted]


def test_no_chain_of_images_becomes_a_group():
    chain = np.array([0, 0b111, 0b111111, 0b111111111], np.uint64)  # each 3 bits from the next
    assert [g.tolist() for g in duplicates.near_hashes(chain, 3)] == [[0, 1], [2, 3]]


def test_embeddings_are_near_by_their_angle_whatever_their_length():
    embeddings = np.array([[1, 0], [0, 1], [50, 1], [0, 0], [0, 0.1]], np.float32)
    groups = duplicates.near_embeddings(embeddings, 0.99)
    assert [group.tolist() for group in groups] == [[0, 2], [1, 4]]


def test_equal_keys_are_groups_in_the_order_of_their_first_images():
    keys = np.array([b"b", b"a", b"c", b"a", b"b"], "V1")
    assert [group.tolist() for group in duplicates.equal(keys)] == [[0, 4], [1, 3]]
