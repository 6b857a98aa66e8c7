"""Convolutions with small outputs are matrix products, and compute the same."""

import pytest
import timm
import torch
from torch import nn

from cgh_models.train import small_outputs
from cgh_models.train.small_outputs import small_outputs_by_products

CPU = torch.device("cpu")
# Side, stride and padding of a convolution, and the side of its images.
SHAPES = """3 1 1 2, 3 2 1 4, 1 1 0 8, 1 2 0 16, 2 2 0 4, 1 1 1 1, 3 1 0 4, 4 4 0 8, 5 1 2 2,
3 3 1 5, 1 2 1 2"""


def convolutions(counted):
    """How many of torch's convolutions were computed, forwards and backwards."""
    kinds = ("aten::convolution", "aten::convolution_backward")
    return tuple(counted.by_name.get(kind, (0, 0))[0] for kind in kinds)


def results(network, images):
    """Its output and all gradients, of a loss that weighs each number of the output otherwise."""
    output = network(images)
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    loss = (output * weights).sum()
    return output, *torch.autograd.grad(loss, [images, *network.parameters()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "side, stride, padding, size", [tuple(map(int, text.split())) for text in SHAPES.split(",")]
)
def test_results_and_gradients_are_those_of_the_convolution(
    counters, side, stride, padding, size, bias
):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 130, side, stride, padding, bias=bias).double()
    images = torch.randn(3, 128, size, size, dtype=torch.double, requires_grad=True)
    expected = results(conv, images)
    with small_outputs_by_products(conv, CPU), counters.CountOps() as counted:
        found = results(conv, images)
    forwards, backwards = convolutions(counted)
    assert not forwards and backwards <= (stride > 1)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("channels, forwards", [(128, 1), (512, 0)])
def test_of_sixteen_pixels_the_weights_gradient_is_a_product_where_there_are_tiles(
    counters, monkeypatch, channels, forwards
):
    monkeypatch.setattr(small_outputs, "_HAS_TILES", lambda: True)
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    images = torch.randn(4, channels, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = results(conv, images)
        with small_outputs_by_products(conv, CPU), counters.CountOps() as counted:
            found = results(conv, images)
    assert convolutions(counted) == (forwards, forwards)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.01 * other.norm()  # bfloat16 has 8 bits


def test_large_outputs_and_other_kinds_stay_and_nothing_is_left_behind(counters):
    others = [
        (nn.Conv2d(128, 128, 3, padding="same"), 2),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), 2),
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2), 2),
        (nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"), 2),
        (nn.Conv2d(128, 128, (1, 3), padding=(0, 1)), 2),
        (nn.Conv2d(128, 128, 3, padding=1), 8),
        (nn.Conv2d(64, 128, 1), 2),
    ]
    for network, size in others:
        images = torch.randn(2, network.in_channels, size, size)
        expected = network(images)
        with small_outputs_by_products(network, CPU), counters.CountOps() as counted:
            found = network(images)
        assert convolutions(counted)[0] == 1 and torch.equal(found, expected)
        assert "_conv_forward" not in vars(network)


def test_only_on_a_cpu():
    conv = nn.Conv2d(128, 128, 1)
    with small_outputs_by_products(conv, torch.device("cuda")):
        assert "_conv_forward" not in vars(conv)


def test_a_resnet50_at_64_pixels_learns_the_same(counters):
    """Its last stage has outputs of 2 x 2 pixels, the one before of 4 x 4."""
    torch.manual_seed(0)
    network = timm.create_model("resnet50", num_classes=0).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.double, requires_grad=True)
    expected = results(network, images)
    with small_outputs_by_products(network, CPU), counters.CountOps() as counted:
        found = results(network, images)
    assert convolutions(counted)[0] < 53 / 2  # of 53 convolutions
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
