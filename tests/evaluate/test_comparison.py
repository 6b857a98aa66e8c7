"""Two networks on the same images: what must be equal, opposite, or covered."""

import numpy as np
import pytest
import torch

from cgh_models.backbone import create
from cgh_models.data.image_set import load_splits
from cgh_models.errors import InputError
from cgh_models.evaluate import comparison, knn_accuracy
from cgh_models.evaluate.comparison import compare, interval
from cgh_models.evaluate.measurement import knn
from cgh_models.evaluate.neighbours import common_share
from cgh_models.evaluate.probes import probe
from cgh_models.evaluate.protocols import EvalSettings

SETTINGS = EvalSettings(workers=0, device="cpu")


def network(seed):
    torch.manual_seed(seed)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


@pytest.fixture(scope="module")
def splits(image_root):
    return load_splits(image_root)


def test_a_network_does_not_differ_from_itself(splits):
    found = compare(network(0), network(0), *splits, SETTINGS, k=5)
    for difference in (found.knn, found.linear):
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert (found.common.value, found.common.low, found.common.high) == (100, 100, 100)
    assert found.a.parameters == found.b.parameters > 0 and found.a.bytes >= 4 * found.a.parameters


def test_its_accuracies_are_those_of_the_evaluate_commands_and_swapping_turns_the_difference(
    splits,
):
    a, b = network(0), network(1)
    found, swapped = compare(a, b, *splits, SETTINGS, k=5), compare(b, a, *splits, SETTINGS, k=5)
    assert found.a.knn.value == round(knn(a, *splits, SETTINGS, k=5).value, 3)
    assert found.b.linear.value == round(probe("ridge", b, *splits, SETTINGS).value, 3)
    assert found.knn.value == pytest.approx(found.b.knn.value - found.a.knn.value)
    assert found.knn.value == -swapped.knn.value and found.common == swapped.common
    assert 0 < found.common.value < 100
    assert (found.train, found.val) == (64, 20)


def test_embeddings_are_made_once_for_each_network(splits, tmp_path):
    settings = EvalSettings(workers=0, device="cpu", cache_dir=tmp_path)
    compare(network(0), network(1), *splits, settings, k=5)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert knn_accuracy(network(1), *splits, k=5, cache_dir=tmp_path, device="cpu") >= 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_the_interval_is_that_of_resampled_images():
    values = np.random.default_rng(0).integers(-1, 2, 400) * 100.0
    rng = np.random.default_rng(1)
    means = [values[rng.integers(0, 400, 400)].mean() for _ in range(10_000)]
    low, high = np.quantile(means, (0.025, 0.975))
    found = interval(values, seed=0)
    assert found.value == round(values.mean(), 3)
    assert abs(found.low - low) < 0.5 and abs(found.high - high) < 0.5  # it is 16 points long
    assert interval(values, seed=0) == found


def test_nineteen_of_twenty_intervals_hold_the_truth(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        found = interval(100.0 * (rng.random(500) < 0.6), seed)
        held += found.low <= 60 <= found.high
    assert 0.91 < held / 300 < 0.985


def test_the_common_share_counts_neighbours_in_any_order():
    first = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    second = np.array([[4, 3, 2, 1], [9, 1, 8, 7], [5, 6, 7, 8]])
    assert common_share(first, second).tolist() == [1, 0.25, 0]


def test_more_neighbours_than_images_are_refused(splits):
    with pytest.raises(InputError, match="--k 65: expected 1 to 64, the number of training images"):
        compare(network(0), network(1), *splits, SETTINGS, k=65)
