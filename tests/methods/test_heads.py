"""Every flavour of head against NumPy in float64, and which layers have a bias."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from golden import array, linear, norm, relu, scatter, state

from cgh_models.backbone import create
from cgh_models.methods.heads import Branch, mlp

FLAVOURS = [
    {},
    {"norm": True},
    {"norm": True, "last_bias": False},
    {"norm": True, "last_norm": True},
    {"last_norm": True},
    {"last_bias": False},
]
WIDTHS = [(5, 3), (6, 9, 4), (8, 7, 5, 3)]
every = pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
grid = pytest.mark.parametrize("widths", WIDTHS, ids=str)


def numpy_head(s, x, widths, training, norm_=False, last_norm=False):
    """Linear, (norm), ReLU, ..., linear, (norm): places in the Sequential are counted."""
    place = 0
    for i in range(len(widths) - 1):
        last = i == len(widths) - 2
        x, place = linear(s, str(place), x), place + 1
        if last_norm if last else norm_:
            x, place = norm(s, str(place), x, training), place + 1
        if not last:
            x, place = relu(x), place + 1
    return x


@every
@grid
@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.parametrize("training", [True, False], ids=["batch statistics", "running statistics"])
def test_a_head_is_its_layers(flavour, widths, rows, training):
    torch.manual_seed(0)
    head = mlp(*widths, **flavour).double()
    scatter(head, 0.3)
    head.train(training)
    x = torch.randn(rows, widths[0], dtype=torch.float64)
    s = state(head)  # before the running statistics move
    kinds = dict(norm_=flavour.get("norm", False), last_norm=flavour.get("last_norm", False))
    np.testing.assert_allclose(
        array(head(x)), numpy_head(s, array(x), widths, training, **kinds), rtol=1e-9, atol=1e-9
    )


@every
@grid
def test_a_layer_has_a_bias_unless_a_norm_follows_or_it_was_asked_not_to(flavour, widths):
    linears = [m for m in mlp(*widths, **flavour) if isinstance(m, torch.nn.Linear)]
    *inner, last = [m.bias is not None for m in linears]
    assert all(bias is not flavour.get("norm", False) for bias in inner)
    assert last is (flavour.get("last_bias", True) and not flavour.get("last_norm", False))
    assert [(m.in_features, m.out_features) for m in linears] == list(pairwise(widths))


def test_running_statistics_take_a_tenth_of_the_batch():
    head = mlp(4, 3, 2, norm=True)
    x = torch.randn(10, 4)
    head(x)
    y = linear(state(head), "0", array(x))
    np.testing.assert_allclose(array(head[1].running_mean), 0.1 * y.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(array(head[1].running_var), 0.9 + 0.1 * y.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_branch_projects_the_embedding_and_is_in_float32_whatever_the_networks_compute_in(splits):
    torch.manual_seed(0)
    branch = Branch(create("resnet18_cifar_w16"), 6, 5).eval()
    images = torch.randn(4, 3, 32, 32)
    s, embedding = state(branch.projector), array(branch.backbone(images))
    wanted = linear(s, "2", relu(linear(s, "0", embedding)))
    np.testing.assert_allclose(array(branch(images, splits)), wanted, rtol=1e-4, atol=1e-5)
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(array(branch.normalized(images, splits)), unit, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = branch.normalized(images, splits)
    assert cast.dtype == branch(images).dtype == torch.float32
    np.testing.assert_allclose(np.linalg.norm(array(cast), axis=1), 1, rtol=1e-6)
