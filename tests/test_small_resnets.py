"""The small-image ResNets behave like any other timm model."""

import pytest
import timm
import torch

import cgh_models.small_resnets as architectures

NAMES = list(architectures.default_cfgs)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_at_the_size_they_are_for(name):
    size = timm.get_pretrained_cfg(name).input_size[-1]
    model = timm.create_model(name, num_classes=0).eval()
    images = torch.randn(2, 3, size, size)
    maps = model.forward_intermediates(images, intermediates_only=True)
    pooled = "small" in name
    assert [m.shape[-1] for m in maps] == [
        size,
        *(size // (2 if pooled else 1) // 2**i for i in range(4)),
    ]
    assert model(images).shape == (2, model.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_timms_arguments_keep_working(name):
    images = torch.randn(1, 3, 64, 64)
    assert timm.create_model(name, num_classes=7).eval()(images).shape == (1, 7)
    assert timm.create_model(name, num_classes=0, in_chans=1).eval()(images[:, :1]).ndim == 2
    assert timm.create_model(name, num_classes=0, global_pool="").eval()(images).ndim == 4
    pyramid = timm.create_model(name, features_only=True, out_indices=(1, 4)).eval()
    for m, reduction, channels in zip(
        pyramid(images),
        pyramid.feature_info.reduction(),
        pyramid.feature_info.channels(),
        strict=True,
    ):
        assert m.shape[1:] == (channels, 64 // reduction, 64 // reduction)
    assert timm.create_model(name, drop_path_rate=0.1, act_layer="gelu").training
    with torch.device("meta"):
        assert timm.create_model(name, num_classes=0).conv1.weight.is_meta


def test_output_stride_dilates_the_last_stage_as_in_the_stock_network():
    model = timm.create_model("resnet18_cifar_w16", num_classes=0, output_stride=16).eval()
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == 8


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18_cifar_w16", 0.7), ("resnet10_cifar_fast", 1.2)]
)
def test_the_ones_for_cpus_are_as_small_as_they_say(name, millions):
    model = timm.create_model(name, num_classes=0)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert f"({millions} M" in getattr(architectures, name).__doc__


def test_state_dict_keys_are_the_stock_networks():
    ours, stock = (
        timm.create_model(name, num_classes=0).state_dict()
        for name in ("resnet50_cifar", "resnet50")
    )
    assert list(ours) == list(stock)
    assert {k for k in ours if ours[k].shape != stock[k].shape} == {"conv1.weight"}


def test_the_new_stem_is_initialized_like_timms_other_convolutions():
    weight = timm.create_model("resnet18_cifar").conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_there_are_no_weights_and_none_are_promised():
    for name in NAMES:
        assert not timm.is_model_pretrained(name)
        assert name in timm.list_models("*_cifar*") + timm.list_models("*_small")
