"""kNN of 2,000 queries among 50,000 embeddings: the usual code, faiss, ours in two precisions.

pip install faiss-cpu
python benchmarks/knn.py
"""

import importlib.util
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import milliseconds, table

from cgh_models.evaluate import knn, neighbours

K, TEMPERATURE, CLASSES = 20, 0.07, 10


def usual(memory: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """One-hot votes of expanded labels, in batches of 256: as many repositories do it."""
    bank = F.normalize(torch.from_numpy(memory)).t().contiguous()
    targets = torch.from_numpy(labels)
    found = []
    for feature in F.normalize(torch.from_numpy(queries)).split(256):
        weight, index = torch.mm(feature, bank).topk(K, dim=-1)
        near = torch.gather(targets.expand(len(feature), -1), -1, index)
        weight = (weight / TEMPERATURE).exp()
        one_hot = torch.zeros(len(feature) * K, CLASSES).scatter(-1, near.view(-1, 1), 1.0)
        scores = (one_hot.view(len(feature), -1, CLASSES) * weight.unsqueeze(-1)).sum(1)
        found.append(scores.argsort(-1, descending=True)[:, 0])
    return torch.cat(found).numpy()


def with_faiss(memory: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Exact inner products of an IndexFlatIP, then the votes."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    keys, asked = (F.normalize(torch.from_numpy(x)).numpy() for x in (memory, queries))
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    cosine, places = index.search(asked, K)
    votes = np.zeros((len(asked), CLASSES))
    np.add.at(votes, (np.arange(len(asked))[:, None], labels[places]), np.exp(cosine / TEMPERATURE))
    return votes.argmax(1)


def in_float32(memory: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Ours where the processor has no bfloat16."""
    with patch.object(neighbours, "pick_precision", lambda *_: torch.float32):
        return knn(memory, labels, queries, k=K, temperature=TEMPERATURE)


def clusters(count: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memory (count, width) and its labels (count,), and 2,000 queries, of overlapping classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, width))
    labels = rng.integers(0, CLASSES, count)
    memory = centres[labels] + 3 * rng.normal(size=(count, width))
    queries = centres[rng.integers(0, CLASSES, 2000)] + 3 * rng.normal(size=(2000, width))
    return memory.astype(np.float32), labels, queries.astype(np.float32)


if __name__ == "__main__":
    torch.set_num_threads(2)
    for width in (2048, 512):
        given = clusters(50_000, width)
        ways = {"usual code": lambda g=given: usual(*g)}
        if importlib.util.find_spec("faiss"):
            ways["faiss-cpu"] = lambda g=given: with_faiss(*g)
        ways["ours, float32"] = lambda g=given: in_float32(*g)
        ways["ours"] = lambda g=given: knn(*g, k=K, temperature=TEMPERATURE)
        expected = ways["usual code"]()
        same = [100 * float((way() == expected).mean()) for way in ways.values()]
        table(f"kNN, D {width}", milliseconds(ways, 3))
        shares = ", ".join(f"{share:.2f} %" for share in same)
        print(f"\nPredictions equal to those of the usual code: {shares}")
