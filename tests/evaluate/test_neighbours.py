"""kNN is the formula, for any number of queries, in float32 and in bfloat16."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cgh_models.errors import InputError
from cgh_models.evaluate import knn, neighbours

CPU = torch.device("cpu")


def naive_knn(memory, labels, queries, k, temperature):
    memory, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (memory, queries))
    out = []
    for q in queries:
        cosine = memory @ q
        votes = np.zeros(labels.max() + 1)
        for i in np.argsort(-cosine)[:k]:
            votes[labels[i]] += np.exp(cosine[i] / temperature)
        out.append(votes.argmax())
    return np.array(out)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (200, 0.1)])
@pytest.mark.parametrize("count", [1, 77])
def test_knn_is_the_formula_for_any_number_of_queries_and_in_chunks(
    k, temperature, count, monkeypatch
):
    rng = np.random.default_rng(0)
    memory, queries = rng.normal(size=(300, 16)), rng.normal(size=(count, 16))
    labels = rng.integers(0, 7, 300)
    expected = naive_knn(memory, labels, queries, k, temperature)
    assert (knn(memory, labels, queries, k=k, temperature=temperature) == expected).all()
    for precision in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(neighbours, "pick_precision", lambda *_, p=precision: p)
        for name, value in (("SCORES", 300 * 10), ("KEYS", 16 * 70), ("FOUND", 300), ("ROWS", 70)):
            monkeypatch.setattr(neighbours, f"_MAX_{name}", value)
        monkeypatch.setattr(neighbours, "_MIN_CHUNK", 1)
        assert (knn(memory, labels, queries, k=k, temperature=temperature) == expected).all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "count, width, asked, k",
    [
        *((20_000, 1024, 900, k) for k in (1, 20, 200)),  # 78 MiB of keys, and 39 in bfloat16
        (1_280_000, 2, 80, 20),  # 390 MiB of scores
        (2_000, 256, 40_000, 20),  # 305 MiB of scores
    ],
)
def test_64_mib_beside_the_keys_are_enough(
    count, width, asked, k, precision, counters, monkeypatch
):
    """Whatever memory x queries is: what grows are 12 bytes a key and 8 a query."""
    monkeypatch.setattr(neighbours, "pick_precision", lambda *_: precision)
    torch.manual_seed(0)
    keys = torch.randn(count, width)
    keys += torch.randn(width)
    queries = keys[torch.arange(asked) % count].numpy()
    with counters.LiveBytes() as live:
        knn(keys.numpy(), np.arange(count) % 1000, queries, k=k)
    assert live.peak < 2**26


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_the_cpu_finds():
    rng = np.random.default_rng(0)
    memory, queries = (rng.normal(size=(n, 256)).astype(np.float32) for n in (70_000, 500))
    labels = rng.integers(0, 9, 70_000)
    before = torch.cuda.max_memory_allocated()
    found = knn(memory, labels, queries, device="cuda")
    assert (found == knn(memory, labels, queries)).mean() > 0.99
    assert torch.cuda.max_memory_allocated() - before < 2**26 + 2**25  # cuBLAS has its own space


@pytest.mark.parametrize("spread_, unsure", [(1.0, False), (1e-2, True), (1e-6, True)])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_the_search_in_bfloat16_finds_what_float32_finds(k, spread_, unsure, monkeypatch):
    """Also where all keys are nearly alike, so that bfloat16 cannot tell them apart."""
    torch.manual_seed(0)
    keys, queries = (
        torch.nn.functional.normalize(1 + spread_ * 30 * torch.randn(n, 64)) for n in (5000, 70)
    )
    whole = []
    monkeypatch.setattr(
        Tensor, "nonzero", lambda x, plain=Tensor.nonzero: whole.append(plain(x)) or whole[-1]
    )
    for scores in (
        neighbours._MAX_SCORES,
        64 * 8 * k * 7,
    ):  # the comparison in float32 in one part, and in parts
        monkeypatch.setattr(neighbours, "_MAX_SCORES", scores)
        norms = torch.full((len(keys),), 3.0)
        cosine, places = neighbours._nearest_by_candidates(3 * keys, norms, queries, k, CPU)
        torch.testing.assert_close(cosine, (queries @ keys.t()).topk(k).values, atol=2e-6, rtol=0)
        torch.testing.assert_close(
            (keys[places] * queries[:, None]).sum(2), cosine, atol=2e-6, rtol=0
        )
    assert (sum(map(len, whole)) > 0) == unsure


def test_knn_with_a_tiny_temperature_neither_overflows_nor_underflows():
    memory = np.eye(4, dtype=np.float32)
    for queries in (memory, 0.6 * memory + 0.5):  # themselves, and of cosine 0.87
        for temperature in (1e-3, 1e-6):
            assert (
                knn(memory, np.arange(4), queries, k=4, temperature=temperature) == np.arange(4)
            ).all()


@pytest.mark.parametrize("k", [0, 5, -1])
def test_an_impossible_k_is_one_sentence(k):
    with pytest.raises(InputError, match=f"k={k}: expected 1 to 4, the number of training images"):
        knn(np.eye(4), np.arange(4), np.eye(4), k=k)


@pytest.mark.parametrize(
    "labels, given",
    [
        ([0, 1, 2, -1], "int64 of shape .4,., values from -1 to 2"),
        ([0, 1, 2, 10**12], "int64 of shape .4,., values from 0 to 1000000000000"),
        (["a", "b", "c", "d"], "<U1 of shape .4,."),
        ([0.0, 1.0, 2.0, np.nan], "float64 of shape .4,."),
        ([0, 1, 2], "int64 of shape .3,., values from 0 to 2"),
        ([[0, 1, 2, 3]], "int64 of shape .1, 4., values from 0 to 3"),
        ([0, 1, 2, 3, 4], "int64 of shape .5,., values from 0 to 4"),
        ([], "float64 of shape .0,."),
    ],
)
def test_labels_that_are_none_of_the_memory_are_one_sentence(labels, given):
    expected = "expected 4 whole numbers from 0 to 1048575, the class of each training image"
    with pytest.raises(InputError, match=f"^labels: {given}; {expected}$"):
        knn(np.eye(4), np.array(labels), np.eye(4), k=1)


@pytest.mark.parametrize(
    "memory, queries",
    [
        (np.eye(4), np.eye(3)),
        (np.eye(4)[0], np.eye(4)),
        (np.eye(4), np.eye(4)[0]),
        (np.eye(4)[:, :0], np.eye(4)[:, :0]),
        (np.array([["a"]] * 4), np.eye(4)[:, :1]),
    ],
)
def test_embeddings_of_different_widths_are_one_sentence(memory, queries):
    with pytest.raises(
        InputError, match=r"^memory \(4,.*\), queries \(.*\): expected .* \(M, D\)$"
    ):
        knn(memory, np.arange(4), queries, k=1)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, bool])
def test_classes_may_be_whole_numbers_of_any_kind(kind):
    labels = np.array([0, 1, 0, 1]).astype(kind)
    assert knn(np.eye(4).tolist(), list(labels), np.eye(4), k=1).tolist() == [0, 1, 0, 1]
