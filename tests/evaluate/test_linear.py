"""Linear evaluation: what is held out, the closed form, the optimum, SGD on augmented images."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_images

from cgh_models.backbone import create
from cgh_models.data.image_set import load_splits
from cgh_models.errors import InputError
from cgh_models.evaluate.classifier import accuracy, new_layer, training_steps
from cgh_models.evaluate.embedder import readable_images
from cgh_models.evaluate.linear import RATES, sgd
from cgh_models.evaluate.probes import lbfgs_path, probe, ridge_path, standardized
from cgh_models.evaluate.protocols import LINEAR, EvalSettings, LinearConfig
from cgh_models.evaluate.splits import held_out, subset

SETTINGS = EvalSettings(workers=0)
QUICK = LinearConfig(lr=1.0, epochs=2, train_batch_size=16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create("test_resnet", {"input_size": (3, 32, 32)})


@pytest.fixture
def splits(image_root):
    return load_splits(image_root)


# --- held-out images


@pytest.mark.parametrize(
    "count, expected", [(60_000, 5_000), (50_000, 5_000), (49_990, 4_999), (640, 64), (8, 1)]
)
def test_held_out_are_5000_training_images_or_a_tenth(count, expected):
    labels = np.arange(count) % 4
    rest, held = held_out(labels, 0)
    assert len(held) == expected and np.array_equal(
        np.sort(np.concatenate([rest, held])), np.arange(count)
    )


def test_held_out_images_are_each_classs_share_and_fixed_by_the_seed():
    labels = np.random.default_rng(0).choice(5, 3000, p=[0.5, 0.3, 0.1, 0.09, 0.01])
    held = held_out(labels, 7)[1]
    share = np.bincount(labels[held]) - 0.1 * np.bincount(labels)
    assert len(held) == 300 and (np.abs(share) < 1).all()
    assert np.array_equal(held, held_out(labels, 7)[1]) and not np.array_equal(
        held, held_out(labels, 8)[1]
    )
    assert not np.array_equal(held[:50], np.arange(50))


def test_a_class_of_one_image_stays_in_training():
    labels = np.array([0] * 98 + [1, 2])
    for seed in range(20):
        assert {98, 99} <= set(held_out(labels, seed)[0].tolist())
    with pytest.raises(
        InputError, match="3 training images of 3 classes: none can be held out to choose on; give"
    ):
        held_out(np.arange(3), 0)


# --- fixed embeddings


@pytest.fixture(scope="module")
def rows():
    """Standardized embeddings (300, 12) of 5 classes, dimensions correlated, one constant."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 5
    found = (
        rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12))
        + 2 * rng.normal(size=(5, 12))[labels]
        + 3
    )
    found[:, 4] = 0.1
    return standardized(found.astype(np.float32), found[:1])[0], labels


def test_standardized_takes_mean_and_deviation_of_the_fitted_images_alone():
    rng = np.random.default_rng(1)
    fitted, others = (rng.normal(5, 3, (50, 4)).astype(np.float32) for _ in range(2))
    fitted[:, 2] = others[:, 2] = 0.3
    found, tested = standardized(fitted, others)
    mean, std = fitted.astype(float).mean(0), fitted.astype(float).std(0)
    kept = [0, 1, 3]
    np.testing.assert_allclose(found[:, kept], (fitted - mean)[:, kept] / std[kept])
    np.testing.assert_allclose(tested[:, kept], (others - mean)[:, kept] / std[kept])
    assert (found[:, 2] == 0).all() and (tested[:, 2] == 0).all()


def tensors(x, labels):
    return torch.from_numpy(x), torch.from_numpy(labels)


@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_ridge_solves_the_normal_equations_at_every_strength(rows, shift):
    x, labels = (
        rows[0] + shift,
        rows[1],
    )  # the intercept carries no penalty, wherever the embeddings lie
    targets = np.eye(5)[labels]
    ones = np.hstack([x, np.ones((len(x), 1))])
    strengths = (10.0, 0.1, 1e-4)
    for strength, fit in zip(strengths, ridge_path(*tensors(x, labels), 5, strengths), strict=True):
        weight, bias = fit.weight, fit.bias
        penalty = strength * len(x) * np.diag([1.0] * 12 + [0.0])
        expected = np.linalg.solve(ones.T @ ones + penalty, ones.T @ targets)
        np.testing.assert_allclose(weight.numpy(), expected[:12].T, atol=1e-9)
        np.testing.assert_allclose(bias.numpy(), expected[12], atol=1e-9)


def gradient(x, labels, weight, bias, strength):
    """Of mean cross-entropy + strength / 2 * |weight|^2, in NumPy."""
    scores = x @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - np.eye(len(bias))[labels]) / len(x)
    return error.T @ x + strength * weight, error.sum(0)


def test_lbfgs_reaches_the_optimum_at_every_strength(rows):
    x, labels = rows
    strengths = (1.0, 1e-2, 1e-5)
    start = np.abs(gradient(x, labels, np.zeros((5, 12)), np.zeros(5), 0)[0]).max()
    for strength, fit in zip(strengths, lbfgs_path(*tensors(x, labels), 5, strengths), strict=True):
        weight, bias = fit.weight, fit.bias
        of_weight, of_bias = gradient(x, labels, weight.numpy(), bias.numpy(), strength)
        largest = max(np.abs(of_weight).max(), np.abs(of_bias).max())
        assert largest < 1e-5 * start and largest == pytest.approx(
            fit.numbers["largest_gradient"], rel=1e-4
        )
        off = gradient(x, labels, weight.numpy() * 1.01, bias.numpy(), strength)[0]
        assert (
            np.abs(off).max() > 1e-5 * start
        )  # so a percent beside the optimum would have been seen


@pytest.mark.parametrize("protocol", ["lbfgs", "ridge"])
def test_a_probe_chooses_on_held_out_images_and_gives_the_same_number_again(
    protocol, splits, model
):
    train, val = splits
    found = probe(protocol, model, train, val, SETTINGS)
    choice = found.parameters["choice"]
    assert choice["held_out_images"] == 6
    assert len(choice["held_out_accuracy"]) == len(choice["grid"])
    best = choice["held_out_accuracy"].index(max(choice["held_out_accuracy"]))
    assert found.parameters["l2"] == choice["chosen"] == choice["grid"][best]
    assert found.value >= 60  # of 4 classes that colour and stripes tell apart
    assert (found.parameters["train"], found.n) == (64, 20)
    assert found == probe(protocol, model, train, val, SETTINGS)
    wrong = dataclasses.replace(val, labels=(val.labels + 1) % 4)
    other = probe(protocol, model, train, wrong, SETTINGS)
    assert other.value < 60 and other.parameters == found.parameters


def test_embeddings_that_are_not_finite_are_one_sentence(splits, model):
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(InputError, match="the embeddings are not finite; give other weights"):
        probe("ridge", model, *splits, SETTINGS)


def test_accuracy_is_a_percentage_and_nothing_for_a_layer_that_is_not_finite():
    rows, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    assert accuracy(torch.eye(4), torch.zeros(4), rows, labels) == 75
    assert accuracy(torch.full((4, 4), torch.nan), torch.zeros(4), rows, labels) == 0


# --- SGD on augmented images


def test_the_layer_starts_small_and_is_the_seeds():
    layer = new_layer(2000, 50, seed=3)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02) and not layer.bias.any()
    assert torch.equal(layer.weight, new_layer(2000, 50, seed=3).weight)
    assert not torch.equal(layer.weight, new_layer(2000, 50, seed=4).weight)


def test_views_are_new_crops_every_epoch_and_carry_their_images_class(splits, model):
    train, _ = splits
    config = dataclasses.replace(QUICK, train_batch_size=64)
    steps = list(training_steps(train, model, config, SETTINGS))
    assert [step.progress for step in steps] == [0, 0.5]
    assert [step.epoch_to_report for step in steps] == [1, 2]
    (one, first), (two, second) = [(step.views, step.labels) for step in steps]
    assert one.shape == (64, 3, 32, 32)
    by_class = [sorted(labels.tolist()) for labels in (first, second)]
    assert by_class == [sorted(train.labels.tolist())] * 2 and not torch.equal(first, second)
    flat = torch.cat([one, two]).flatten(1)
    assert len(flat.unique(dim=0)) == 128  # no view twice, in another order or not
    again = list(training_steps(train, model, config, SETTINGS))
    assert torch.equal(again[1].views, two) and torch.equal(again[0].labels, first)
    for view, labels in (
        (one, first),
        (two, second),
    ):  # a class's own colour channel is the brightest
        colours = view.mean((2, 3))
        assert [int(colours[labels == k].mean(0).argmax()) for k in range(3)] == [0, 1, 2]


def test_sgd_is_above_chance_and_leaves_the_backbone_as_it_was(splits, model):
    before = copy.deepcopy(model.state_dict())
    model.train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    found = sgd(model, *splits, dataclasses.replace(QUICK, epochs=30), SETTINGS)
    assert found.value >= 60 and found.parameters["choice"] is None
    expected = {"lr": 1.0, "train_batch_size": 16, "epochs": 30, "train": 64}
    assert expected.items() <= found.parameters.items() and found.n == 20
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


def test_sgd_gives_the_same_number_again_and_another_seed_another_run(splits, model):
    def run(seed):
        lines = []
        settings = EvalSettings(workers=0, seed=seed, log=lines.append)
        return sgd(model, *splits, QUICK, settings), lines

    assert run(0) == run(0)
    assert run(0)[1] != run(1)[1]


def test_val_plays_no_part_before_the_last_epoch(splits, model):
    train, val = splits
    wrong = dataclasses.replace(val, labels=(val.labels + 1) % 4)
    config = dataclasses.replace(QUICK, lr=0, epochs=3)
    results = []
    for images in (val, wrong, subset(train, np.arange(10))):
        lines = []
        found = sgd(model, train, images, config, EvalSettings(workers=0, log=lines.append))
        results.append((found.parameters["choice"], lines))
    assert results[0] == results[1] == results[2]


def test_one_forward_a_batch_serves_every_learning_rate_of_the_choice(splits, model):
    batches = []
    model.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    found = sgd(model, *splits, dataclasses.replace(QUICK, lr=0, epochs=10), SETTINGS)
    choice = found.parameters["choice"]
    assert choice["grid"] == list(RATES) and len(choice["held_out_accuracy"]) == len(RATES)
    assert (
        found.parameters["lr"] == choice["chosen"] == RATES[np.argmax(choice["held_out_accuracy"])]
    )
    assert choice["held_out_images"] == 6 and choice["epochs"] == 2
    # val, 58 images in 3 batches for 2 epochs, held out, 64 images in 4 batches for 10 epochs
    batches = [
        count for count in batches if count > 1
    ]  # one blank image measures the embedding's width
    assert batches == [20, *[16] * 6, 6, *[16] * 40]


def test_a_fast_run_makes_all_embeddings_with_the_copy_and_lands_beside_the_exact_one(
    splits, model
):
    config = dataclasses.replace(QUICK, epochs=30)
    exact = sgd(model, *splits, config, SETTINGS)
    seen = []
    model.register_forward_hook(
        lambda module, inputs, output: seen.append((module is model, len(inputs[0])))
    )
    fast = sgd(model, *splits, config, EvalSettings(workers=0, fast=True))
    assert abs(fast.value - exact.value) <= 10  # two of 20 images
    own, copies = (
        [count for mine, count in seen if mine is which and count > 2] for which in (True, False)
    )
    assert not own and sorted(set(copies)) == [16, 20] and copies.count(16) == 4 * 30


def test_a_given_rate_is_taken_and_one_that_diverges_is_one_sentence(splits, model):
    given = sgd(model, *splits, dataclasses.replace(QUICK, lr=0.25), SETTINGS)
    assert given.parameters["lr"] == 0.25
    next(model.parameters()).data.mul_(
        1e30
    )  # embeddings of that size: the first step leaves float32
    with pytest.raises(
        InputError, match="the linear layer is not finite; give a lower --lr, or 0 to choose"
    ):
        sgd(model, *splits, QUICK, SETTINGS)


def test_a_layer_that_ends_worse_than_guessing_is_said(splits, model):
    for rate, warned in ((0.3, False), (1e6, True)):
        lines = []
        settings = EvalSettings(workers=0, log=lines.append)
        sgd(model, *splits, dataclasses.replace(QUICK, lr=rate), settings)
        assert (
            any("warning: the loss ended above that of guessing, 1.3863" in line for line in lines)
            == warned
        )


def test_one_class_is_one_sentence(tmp_path, model):
    for split in ("train", "val"):
        make_images(tmp_path / split, 12, classes=1)
    train, val = load_splits(tmp_path)
    for run in (
        lambda: sgd(model, train, val, QUICK, SETTINGS),
        lambda: probe("ridge", model, train, val, SETTINGS),
    ):
        with pytest.raises(
            InputError, match="train: 1 classes; a classifier needs two class folders or more"
        ):
            run()


def test_a_streamed_set_has_the_views_of_one_in_memory(splits, model, image_root, monkeypatch):
    in_memory = list(training_steps(readable_images(splits[0], 0), model, QUICK, SETTINGS))
    monkeypatch.setattr(
        "cgh_models.data.image_set.ImageSet.cache_pixels", lambda *_: None
    )  # as if they did not fit
    train, _ = load_splits(image_root)
    streamed = list(training_steps(readable_images(train, 0), model, QUICK, SETTINGS))
    assert splits[0].pixels is not None and train.pixels is None
    for one, two in zip(in_memory, streamed, strict=True):
        assert torch.equal(one.labels, two.labels)
        rounding = 1.01 / 255 / 0.224  # Pillow rounds to whole steps
        torch.testing.assert_close(one.views, two.views, atol=rounding, rtol=0)


def test_recipes_are_the_papers():
    assert LINEAR["imagenet"] == LinearConfig(0.3, 100, 256, 0.9, False)
    assert LINEAR["cifar"] == LINEAR["tiny"] == LinearConfig(0, 100, 256, 0.9, True)
    with pytest.raises(InputError, match="Nesterov needs momentum"):
        LinearConfig(momentum=0, nesterov=True)
    for wrong in ({"lr": float("nan")}, {"epochs": 0}, {"train_batch_size": 1}, {"momentum": 2}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            LinearConfig(**wrong)
