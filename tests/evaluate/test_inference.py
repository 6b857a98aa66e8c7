"""The fast copy of a network: the same embeddings, batch norms gone, the network untouched."""

import numpy as np
import pytest
import torch
from torch import nn

from cgh_models.backbone import create
from cgh_models.data.image_set import load
from cgh_models.evaluate import extract
from cgh_models.evaluate.inference import folded, inference_copy

FAMILIES = [
    "test_resnet",
    "resnet18d",
    "regnetx_002",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "test_convnext",
    "test_vit",
    "resnet18_cifar_w16",
]


def trained(arch: str) -> nn.Module:
    """A network whose batch norms have seen images and have other weights than at the start."""
    torch.manual_seed(0)
    side = 32 if "cifar" in arch else 64
    model = create(arch, {"input_size": (3, side, side)})
    with torch.no_grad():
        for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
        for _ in range(3):
            model.train()(torch.randn(8, 3, side, side) + 0.3)
    return model.eval()


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_folded_network_gives_the_same_embeddings(arch):
    model = trained(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(3, *model.pretrained_cfg["input_size"])
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    copied = folded(model)
    with torch.no_grad():
        torch.testing.assert_close(copied(images), model(images), atol=1e-4, rtol=1e-3)
        fast = inference_copy(model, torch.bfloat16)
        kind = next(fast.parameters()).dtype
        cosine = torch.cosine_similarity(fast(images.to(kind)).float(), model(images))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in copied.modules()) == 0 or norms == 0
    assert cosine.min() > 0.999
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Unfoldable(nn.Module):
    """A convolution whose output is also used beside its norm, and one that two norms share."""

    pretrained_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        y, z = self.a(x), self.b(x)
        total = self.norms[0](y) * y.abs() + self.norms[1](z) - self.norms[2](z).square()
        return total.mean((2, 3))


def test_what_cannot_be_folded_is_left_alone():
    torch.manual_seed(0)
    model = Unfoldable()
    for _ in range(3):
        model(torch.randn(16, 3, 8, 8) * 3)
    images = torch.randn(3, 3, 8, 8)
    fast = inference_copy(model, torch.float32)
    torch.testing.assert_close(fast(images), model.eval()(images))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fast.modules()) == 3


def test_fast_embeddings_are_near_exact_ones_and_kept_apart_from_them(image_root, tmp_path):
    model = trained("resnet18_cifar_w16").train()
    plain = extract(model, image_root / "val", workers=0, cache_dir=tmp_path)
    fast = extract(model, image_root / "val", workers=0, cache_dir=tmp_path, fast=True)
    cosine = (plain * fast).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(fast, axis=1)
    assert (
        cosine.min() >= 0.9999
        and fast.dtype == np.float32
        and len(list(tmp_path.glob("*.safetensors"))) == 2
    )
    assert (plain != fast).any() and model.training
    repeated = extract(model, load(image_root / "val"), workers=0, cache_dir=tmp_path, fast=True)
    np.testing.assert_array_equal(repeated, fast)
