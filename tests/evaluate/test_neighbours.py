"""Extraction keeps the order, kNN is the formula, spread sees a collapse."""

import numpy as np
import pytest
import timm
import torch
from conftest import make_images
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from cgh_models.backbone import create
from cgh_models.data.image_set import load, load_splits
from cgh_models.errors import InputError
from cgh_models.evaluate import extract, knn, knn_accuracy, neighbours, pick_device, spread


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


def test_embeddings_are_timms_in_the_sets_order(image_root, model):
    images = load(image_root / "val")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        model.eval()
        expected = [model(transform(images.image(i))[None])[0].numpy() for i in range(len(images))]
        model.train()
    embeddings = extract(model, image_root / "val", batch_size=7, workers=0)
    assert embeddings.shape == (20, 128) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(extract(model, images, indices=np.array([5, 2])), embeddings[[5, 2]], atol=1e-5)
    assert model.training and all(m.training for m in model.modules())


def test_a_bad_image_is_named_instead_of_embedded_as_another(tmp_path, model):
    make_images(tmp_path, 4)
    (tmp_path / "class2" / "00002.png").write_bytes(b"no")
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"^\S*class2/00002.png: not readable .*mend or remove it$"):
            extract(model, tmp_path, workers=workers)


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
def test_knn_is_the_formula_for_any_number_of_queries_and_in_chunks(k, temperature, count, monkeypatch):
    rng = np.random.default_rng(0)
    memory, queries = rng.normal(size=(300, 16)), rng.normal(size=(count, 16))
    labels = rng.integers(0, 7, 300)
    expected = naive_knn(memory, labels, queries, k, temperature)
    assert (knn(memory, labels, queries, k=k, temperature=temperature) == expected).all()
    monkeypatch.setattr(neighbours, "_SCORES", 300 * 10)
    monkeypatch.setattr(neighbours, "_LEAST", 1)
    assert (knn(memory, labels, queries, k=k, temperature=temperature) == expected).all()


@pytest.mark.parametrize("spread_, unsure", [(1.0, False), (1e-2, True), (1e-6, True)])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_the_search_in_bfloat16_finds_what_float32_finds(k, spread_, unsure, monkeypatch):
    """Also where all keys are nearly alike, so that bfloat16 cannot tell them apart."""
    torch.manual_seed(0)
    keys, queries = (torch.nn.functional.normalize(1 + spread_ * 30 * torch.randn(n, 64)) for n in (5000, 70))
    whole = []
    monkeypatch.setattr(Tensor, "nonzero", lambda x, plain=Tensor.nonzero: whole.append(plain(x)) or whole[-1])
    for scores in (neighbours._SCORES, 64 * 8 * k * 7):  # the second look in one part, and in parts
        monkeypatch.setattr(neighbours, "_SCORES", scores)
        cosine, places = neighbours._Rough(3 * keys, torch.full((len(keys),), 3.0)).nearest(queries, k)
        torch.testing.assert_close(cosine, (queries @ keys.t()).topk(k).values, atol=2e-6, rtol=0)
        torch.testing.assert_close((keys[places] * queries[:, None]).sum(2), cosine, atol=2e-6, rtol=0)
    assert (sum(map(len, whole)) > 0) == unsure


def test_knn_with_a_tiny_temperature_neither_overflows_nor_underflows():
    memory = np.eye(4, dtype=np.float32)
    for queries in (memory, 0.6 * memory + 0.5):  # themselves, and of cosine 0.87
        for temperature in (1e-3, 1e-6):
            assert (knn(memory, np.arange(4), queries, k=4, temperature=temperature) == np.arange(4)).all()


@pytest.mark.parametrize("k", [0, 5, -1])
def test_an_impossible_k_is_one_sentence(k):
    with pytest.raises(InputError, match=f"k={k}: expected 1 to 4, the number of training images"):
        knn(np.eye(4), np.arange(4), np.eye(4), k=k)


def test_accuracy_uses_the_common_numbering_of_classes(image_root, model):
    train, val = load_splits(image_root)
    assert knn_accuracy(model, train, train, k=1) == 100
    assert 0 <= knn_accuracy(model, train, val, k=5, workers=0) <= 100


def test_spread_tells_collapsed_from_even_embeddings():
    rng = np.random.default_rng(0)
    even = rng.normal(size=(2000, 32))
    flat = even @ np.diag([1.0] * 4 + [0.0] * 28)
    same = np.ones((2000, 32)) + 1e-6 * even
    assert spread(even)["feature_std"] == pytest.approx(1, abs=0.02) and spread(even)["effective_rank"] > 31
    assert spread(flat)["effective_rank"] == pytest.approx(4, abs=0.1)
    assert spread(same)["feature_std"] < 1e-4


def test_a_device_that_is_not_there_is_one_sentence():
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(InputError, match=f"--device {name}: cannot be used .*; try --device cpu"):
            pick_device(name)


def test_a_model_that_makes_no_embeddings_is_one_sentence(image_root):
    for settings, message in (
        ({"num_classes": 10}, "ends in a classifier of 10 classes; build it with num_classes=0"),
        ({"features_only": True}, "a FeatureListNet makes no embeddings; build the model without features_only"),
    ):
        with pytest.raises(InputError, match=message):
            extract(timm.create_model("test_resnet", **settings), image_root / "val", workers=0)
