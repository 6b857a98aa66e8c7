"""Processes with a GPU each: by nccl, and timm's synchronized norms, they compute what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import (
    LAWS,
    SHARED,
    assert_alike,
    assert_equal_states,
    in_processes,
    steps_in_float64,
    train_synchronized,
)
from small_runs import DEVICE, build, lines
from timm.layers import SyncBatchNormAct

import cgh_models
from cgh_models.one_process import ALONE
from cgh_models.train.distributed import Processes, connected
from cgh_models.train.norm_sync import synced_norms
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import train_step
from cgh_models.view_recipes import RECIPES

if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytestmark = pytest.mark.gpu
FEW = DEVICE == "cuda" and torch.cuda.device_count() < 2
TWO = pytest.mark.skipif(FEW, reason="needs two CUDA devices")
# Norms of an EfficientNet hold their activation, for which timm has a synchronized kind of its own.
NORMS = {"norms with activations": ("cgh", "test_efficientnet", SHARED, {})}
CASES = LAWS | NORMS if DEVICE == "cuda" else {"shuffled": LAWS["shuffled"]} | NORMS


@pytest.fixture(scope="module")
def laws(tmp_path_factory, image_root):
    """A folder with losses of 20 steps, and the state then, by law and process count."""
    root = tmp_path_factory.mktemp("laws")
    for count in (1, 2):
        runs = [(root / f"{law}-{count}", *case) for law, case in CASES.items()]
        data = image_root / "train"
        assert in_processes(count, steps_in_float64, runs, data, DEVICE) == [0] * count
    return root


@TWO
@pytest.mark.parametrize("law", CASES)
def test_two_processes_compute_what_one_does(laws, law):
    assert_alike(laws / f"{law}-1", laws / f"{law}-2")


@TWO
@pytest.mark.parametrize("name, optimizer", [("byol", "muon"), ("lewel", "sgd")])
def test_with_synchronized_norms_all_processes_keep_equal_states_to_the_bit(
    image_root, tmp_path, name, optimizer
):
    work = (train_synchronized, name, optimizer, image_root / "train", tmp_path, DEVICE)
    assert in_processes(2, *work) == [0, 0]
    assert_equal_states(tmp_path)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=TWO)])
def test_torchrun_starts_a_run_that_trains_and_ends(image_root, tmp_path, count):
    run = tmp_path / "run"
    words = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node {count}"
    words += f" -m cgh_models pretrain --data {image_root / 'train'} --out {run} --recipe cifar"
    words += " --arch resnet18_cifar_w16 --batch-size 20 --epochs 1 --set queue_length=64"
    words += " --log-every 1" + (" --device cpu" if DEVICE == "cpu" else "")
    paths = [str(Path(cgh_models.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(words.split(), env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0 and "done after 3 steps" in done.stderr, done.stderr[-2000:]
    assert [row["step"] for row in lines(run)] == [0, 1, 2, 3]


@pytest.mark.parametrize("name, how", [("byol", "sync"), ("cgh", "shuffle")])
def test_a_process_in_a_group_of_one_trains_as_one_without(name, how, tmp_path):
    """All that is told goes through nccl, of which one GPU is enough."""
    assert in_processes(1, _three_steps, name, how, tmp_path / "losses") == [0]
    alone, grouped = torch.load(tmp_path / "losses")
    assert grouped == pytest.approx(alone, rel=1e-3)


def _three_steps(name, how, file):
    dist.init_process_group("cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo")
    torch.backends.cudnn.allow_tf32 = False  # shuffled rows round otherwise, TF32 by a thousandth
    kind, found = torch.device(DEVICE).type, []
    for processes in (ALONE, Processes()):
        method = build(name, SHARED, "test_efficientnet").to(DEVICE).train()
        optimizer = create_optimizer(method, SHARED)
        views = [torch.randn(8, 3, 16, 16, device=DEVICE) for _ in RECIPES[method.view_recipe]]
        with (
            synced_norms(method, "" if processes is ALONE else how, processes),
            connected(method, processes, SHARED) as network,
        ):
            assert (network is method) == (processes is ALONE)
            last = (0.05, kind, torch.float32, 0.0, 1, processes)
            steps = [train_step(network, optimizer, views, share, *last) for share in (0, 0.1, 0.2)]
            if how == "sync" and kind == "cuda" and processes is not ALONE:
                assert any(isinstance(norm, SyncBatchNormAct) for norm in method.modules())
        found.append([losses["loss"].item() for losses in steps])
    torch.save(found, file)
    dist.destroy_process_group()
