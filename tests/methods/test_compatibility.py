"""`cgh backbones`: what it lists can be pretrained, and what it refuses cannot."""

import pytest
import torch
from conftest import cgh
from small_runs import small

from cgh_models.backbone import create
from cgh_models.errors import InputError
from cgh_models.methods import METHODS
from cgh_models.methods.compatibility import matching, refusals


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit"])
def test_the_verdict_is_that_of_a_real_step(arch):
    said = refusals(arch)
    assert said.keys() == METHODS.keys()
    for name, why in said.items():
        size = create(arch).pretrained_cfg["input_size"][-1]
        views = [torch.randn(2, 3, size, size) for _ in range(3 if name == "mnclglf" else 2)]
        try:
            METHODS[name](create(arch), METHODS[name].Config(**small(name)))(views, 0.0)[
                "loss"
            ].backward()
            able = True
        except (InputError, RuntimeError, ValueError, AssertionError):
            able = False
        assert able == (not why), (name, why)


def test_what_cannot_be_pretrained_says_why(monkeypatch):
    owner = next(
        c for c in type(create("test_resnet")).__mro__ if "forward_intermediates" in vars(c)
    )
    monkeypatch.delattr(owner, "forward_intermediates")
    said = refusals("test_resnet")
    assert said["cgh"].startswith("taps=2: test_resnet does not give that many feature maps")
    assert said["lewel"] and not said["byol"]


def test_this_packages_architectures_are_among_them_and_an_odd_pattern_is_one_sentence():
    assert "resnet18_cifar_w16" in matching("resnet18_*")
    with pytest.raises(
        InputError, match="'resnot.': timm has no architecture like that; try a pattern"
    ):
        matching("resnot?")


def test_the_command_prints_a_line_for_each(tmp_path):
    done = cgh("backbones", "test_resne?", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == f"test_resnet  {' '.join(METHODS)}\n"
