"""Resume is exact: twelve steps, and five and seven with all state through a file between them."""

import dataclasses

import pytest
import torch

from cgh_models.backbone import create, eval_mode
from cgh_models.config import TrainConfig
from cgh_models.methods import METHODS
from cgh_models.train import checkpoint
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import train_step
from cgh_models.view_recipes import RECIPES

SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2}
LEVIT = {"embed_dim": (8, 16, 16), "num_heads": (1, 1, 1), "depth": (1, 1, 1), "key_dim": 8}
TINY_VIT = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 1, 1), "window_sizes": (2, 2, 2, 2)}
FORMER = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16)}
MSRA = {"embed_dim": (16, 16, 16), "key_dim": (8, 8, 8), "depth": (1, 1, 1)}
MSRA |= {"num_heads": (1, 1, 1), "window_size": (2, 2, 2)}
FAMILIES = {  # small members of ten families; the last ones keep attention biases in eval mode
    "test_resnet": {},
    "test_efficientnet": {},
    "test_byobnet": {},
    "test_convnext": {"drop_path_rate": 0.2},
    "test_vit": {"drop_rate": 0.1},
    "test_mambaout": {},
    "swin_tiny_patch4_window7_224": SWIN,
    "levit_128s": LEVIT,
    "tiny_vit_5m_224": TINY_VIT | {"depths": (1, 1, 1, 1)},
    "efficientvit_m0": MSRA,
    "efficientformerv2_s0": FORMER,
}
CASES = [(name, arch) for arch in list(FAMILIES)[:10] for name in METHODS]
CASES.append(("lewel", "efficientformerv2_s0"))  # whose teacher is in eval mode
SMALL = {"projection_width": 8, "hidden_width": 8, "queue_length": 24, "predictor_width": 8}
OPTIMIZERS = ("sgd", "lars", "adamw", "muon")


def side_of(name, arch):
    small = arch.startswith("test_") and (name, arch) != ("mnclglf", "test_convnext")
    return 32 if small else 64


def build(name, arch, seed):
    torch.manual_seed(seed)
    known = {field.name for field in dataclasses.fields(METHODS[name].Config)}
    settings = {key: value for key, value in SMALL.items() if key in known}
    if "batch_norm_splits" in known:  # which draws from torch's random state
        settings["batch_norm_splits"] = 2
    side = side_of(name, arch)
    backbone = create(arch, {"input_size": (3, side, side)}, **FAMILIES[arch])
    return METHODS[name](backbone, METHODS[name].Config(**settings)).train()


def train(method, optimizer, side, steps, total=12):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        views = [
            torch.randn(4, 3, view.side(side), view.side(side), generator=generator)
            for view in RECIPES[method.view_recipe]
        ]
        losses = train_step(method, optimizer, views, step / total, 0.01, "cpu", torch.float32)
        assert losses["finite"]


@pytest.mark.parametrize("name, arch", CASES)
def test_five_steps_and_seven_equal_twelve_to_the_bit_for_every_method_and_family(
    tmp_path, name, arch
):
    """Twelve were measured in between, which changes nothing."""
    side = side_of(name, arch)
    number = list(METHODS).index(name) + list(FAMILIES).index(arch)
    config = TrainConfig(optimizer=OPTIMIZERS[number % 4])
    whole = build(name, arch, seed=0)
    optimizer = create_optimizer(whole, config)
    train(whole, optimizer, side, range(5))
    checkpoint.save(tmp_path, 5, whole, optimizer)
    with eval_mode(whole.student.backbone), torch.no_grad():
        whole.student.backbone(torch.zeros(1, 3, side, side))
    train(whole, optimizer, side, range(5, 12))

    parts = build(name, arch, seed=1)
    another = create_optimizer(parts, config)
    checkpoint.load(checkpoint.newest(tmp_path, print)[1], parts, another)
    train(parts, another, side, range(5, 12))

    expected, found = whole.state_dict(), parts.state_dict()
    assert not [key for key, value in expected.items() if not torch.equal(value, found[key])]
    states, others = optimizer.state_dict()["state"], another.state_dict()["state"]
    assert states.keys() == others.keys() and len(states) > 10
    for number, state in states.items():
        assert state.keys() == others[number].keys()
        assert all(torch.equal(value, others[number][key]) for key, value in state.items())
