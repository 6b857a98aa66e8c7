"""ResNets for small images, registered with timm: a 3x3 stride-1 stem, with or without max-pool.

Source of the stems: ReSSL's small-data recipe (arXiv 2107.09282): no pool at 32 px, one at 64 px.
"""

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

_CIFAR = {
    "num_classes": 0,
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "first_conv": "conv1",
    "classifier": "fc",
}
_TINY_PIXELS = {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262)}
_TINY = _CIFAR | _TINY_PIXELS | {"input_size": (3, 64, 64)}
_OF_CIFAR = ("resnet10_cifar_fast", "resnet18_cifar", "resnet18_cifar_w16", "resnet50_cifar")
default_cfgs = {**dict.fromkeys(_OF_CIFAR, _CIFAR), "resnet18_small": _TINY}


class SmallResNet(ResNet):
    """timm's ResNet with a 3x3 stride-1 convolution as its stem, and a max-pool if ``stem_pool``.

    ``output_stride`` keeps timm's meaning relative to the stock stem: 16 dilates the last stage.
    """

    def __init__(
        self, *args, stem_pool: bool = False, channels: tuple = (64, 128, 256, 512), **kwargs
    ):
        # timm sizes the first stage from a deep stem's width; the deep stem itself is replaced.
        kwargs |= {"channels": channels, "stem_type": "deep", "stem_width": channels[0] // 2}
        super().__init__(*args, **kwargs)
        placement = {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}
        in_chans = kwargs.get("in_chans", 3)
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **placement)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        if not stem_pool:
            self.maxpool = nn.Identity()
        for info in self.feature_info:
            stock = int(info["reduction"])
            info["reduction"] = 1 if info["module"] == "act1" else stock // (2 if stem_pool else 4)


def _create(name: str, pretrained: bool, kwargs: dict, **changes) -> nn.Module:
    defaults = {"block": BasicBlock, "layers": (2, 2, 2, 2), **changes}
    return build_model_with_cfg(SmallResNet, name, pretrained, **defaults | kwargs)


@register_model
def resnet10_cifar_fast(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-10 for 32 px with 16-256 channels, wide where pixels are few (1.2 M parameters)."""
    changes = {"layers": (1, 1, 1, 1), "channels": (16, 64, 128, 256)}
    return _create("resnet10_cifar_fast", pretrained, kwargs, **changes)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-18 for 32 px."""
    return _create("resnet18_cifar", pretrained, kwargs)


@register_model
def resnet18_cifar_w16(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-18 for 32 px with 16-128 channels (0.7 M parameters): for CPUs, tests, the demo."""
    return _create("resnet18_cifar_w16", pretrained, kwargs, channels=(16, 32, 64, 128))


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-50 for 32 px."""
    return _create("resnet50_cifar", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def resnet18_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-18 for 64 px: the small stem with the max-pool."""
    return _create("resnet18_small", pretrained, kwargs, stem_pool=True)
