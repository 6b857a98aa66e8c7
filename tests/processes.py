"""Runs of several processes on this machine, each forked with torch imported."""

import dataclasses
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import pytest
import torch
from conftest import FORKS
from small_runs import QUICK, build

from cgh_models.data.image_set import load
from cgh_models.data.loader import batches
from cgh_models.errors import ERRORS
from cgh_models.methods import METHODS
from cgh_models.train import loop
from cgh_models.train.distributed import connected, joined, own_device
from cgh_models.train.loop import pretrain
from cgh_models.train.norm_sync import norm_sync_of, synced_norms
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import train_step
from cgh_models.view_recipes import recipe_of

# 64 images in 8 steps an epoch. Where little is learned in a step, what differs does not grow.
SHARED = dataclasses.replace(
    QUICK,
    batch_size=8,
    image_size=16,
    precision="float32",
    norm_sync="sync",
    quiet=True,
    base_lr=1e-3,
)
# What is computed alike by any number of processes: (method, architecture, config, settings). The
# backbone has no batch norms, for those of a whole network take thousands of messages.
GROUP_NORMS = "test_efficientnet_gn"
LAWS = {name: (name, GROUP_NORMS, SHARED, {}) for name in METHODS}
LAWS |= {
    "shuffled": ("ressl", GROUP_NORMS, dataclasses.replace(SHARED, norm_sync="shuffle"), {}),
    "parts": ("cgh", GROUP_NORMS, dataclasses.replace(SHARED, accumulate=2, batch_size=16), {}),
    "symmetric": ("moco_v2", GROUP_NORMS, SHARED, {"symmetric": True}),
    "in-batch": ("lewel_m", GROUP_NORMS, SHARED, {"negatives": "batch"}),
    "no local gradient": ("mnclglf", GROUP_NORMS, SHARED, {"local_gradient": False}),
    "batch norms": ("cgh", "test_resnet", SHARED, {}),
}


def in_processes(count: int, work, *args, said: Path | None = None) -> list[int]:
    """Exit codes of ``work(*args)`` in so many processes that torchrun could have started.

    What they say on stderr is added to the file ``said``.
    """
    processes = start_processes(count, work, *args, said=said)
    for process in processes:
        process.join(900)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def start_processes(count: int, work, *args, said: Path | None = None) -> list:
    """The processes of `in_processes`, running."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {name: str(value) for name, value in names.items()}
        started.append(FORKS.Process(target=_work, args=(env, work, args, said)))
        started[-1].start()
    return started


def _work(env: dict[str, str], work, args, said: Path | None) -> None:
    if said:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ |= env
    torch.set_num_threads(1)
    code = 0
    try:
        work(*args)
    except ERRORS as error:
        print(f"process {env['RANK']} raises {type(error).__name__}: {error}", file=sys.__stderr__)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def train(runs: list[tuple], data: Path) -> None:
    """Trains (folder, method, architecture, config, settings, resume) one after the other."""
    for folder, name, arch, config, settings, resume in runs:
        method = build(name, config, arch, **settings)
        pretrain(method, data, config, folder, resume=resume)


def train_until(step: int, rank: int, runs: list[tuple], data: Path, name: str = "TERM") -> None:
    """`train`, in which a signal comes to ``rank`` while it takes so many steps."""
    real, taken = loop.train_step, []

    def counting(*args):
        taken.append(1)
        if len(taken) == step and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        return real(*args)

    loop.train_step = counting
    train(runs, data)


def train_synchronized(
    name: str, optimizer: str, data: Path, folder: Path, device: str = "cpu"
) -> None:
    """Trains a network of timm's norms with activations for an epoch; each keeps its state."""
    changes = {"epochs": 1, "warmup_epochs": 0, "eval_every": -1, "device": device}
    config = dataclasses.replace(SHARED, optimizer=optimizer, **changes)
    method = build(name, config, "test_efficientnet")
    pretrain(method, data, config, folder / "run")
    torch.save(method.cpu().state_dict(), folder / os.environ["RANK"])


def assert_equal_states(folder: Path) -> None:
    """What two processes left of `train_synchronized` is equal to the bit, and was trained."""
    mine, others = (torch.load(folder / rank) for rank in "01")
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[key], others[key]) for key in mine)
    moved = [mine[key] for key in mine if key.endswith("running_mean")]
    assert moved and all(mean.any() for mean in moved)


def steps_in_float64(runs: list[tuple], data: Path, device_name: str = "cpu") -> None:
    """Losses of 20 steps and what queues hold then, of (file, method, architecture, config).

    In float64, where what differs is more than another order of sums; views are of the CPU.
    """
    images = load(data)
    to_float = torch.Tensor.float  # heads leave autocast's types by it; float64 stays
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else to_float(x)
    with joined() as processes:
        device = torch.device(own_device(processes, device_name))
        for file, name, arch, config, settings in runs:
            method = build(name, config, arch, **settings).double().train().to(device)
            optimizer = create_optimizer(method, config)
            recipe = recipe_of(method.view_recipe)
            norm_sync = norm_sync_of(method, config, processes)
            batch = batches(images, recipe, config, 0, 20, torch.device("cpu"), processes)
            how = (device.type, torch.float32, 0.0, config.accumulate, processes)
            losses = []
            with (
                synced_norms(method, norm_sync, processes),
                connected(method, processes, config) as network,
            ):
                for step, (views, _) in enumerate(batch):
                    views = [view.double().to(device) for view in views]
                    found = train_step(network, optimizer, views, step / 20, config.lr, *how)
                    values = torch.stack([value.double() for value in found.values()])
                    processes.average([values])
                    losses.append(dict(zip(found, values.tolist(), strict=True)))
            if processes.rank == 0:
                torch.save((losses, method.cpu().state_dict()), file)


def assert_alike(one: Path, several: Path) -> None:
    """Files of `steps_in_float64` hold the same but for the order of sums."""
    (expected, state_of_one), (losses, state) = torch.load(one), torch.load(several)
    assert len(losses) == 20
    assert expected[0]["loss"] != expected[-1]["loss"], "nothing was trained"
    for found, of_one in zip(losses, expected, strict=True):
        assert found == pytest.approx(of_one, rel=1e-6, abs=1e-6)
    for name, tensor in state_of_one.items():
        assert torch.allclose(state[name].double(), tensor.double(), rtol=0, atol=1e-6), name
