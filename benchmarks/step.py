"""A training step of CGH against the step as published, and the teacher's update.

    python benchmarks/step.py [cuda]

Synthetic images; the networks and weights of all ways are the same.
"""

import sys
from collections.abc import Callable

import torch
from counters import CountOps
from published import Published
from side_by_side import milliseconds, table
from torch import Tensor

from cgh_models.backbone import create, skeleton
from cgh_models.config import TrainConfig
from cgh_models.evaluate import pick_precision
from cgh_models.methods import CGH
from cgh_models.methods.losses import chunk_length, crossed_relation_losses
from cgh_models.methods.momentum_teacher import make_teacher, update_teacher
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import train_step

CPU = torch.device("cpu")


def step(
    arch: str, side: int, batch: int, rounds: int, device: torch.device = CPU, **config
) -> None:
    """As published, ours in float32, ours, and the bare networks in our precision."""
    torch.manual_seed(0)
    kind = device.type
    precision = pick_precision("auto", device)
    weak, strong = torch.randn(2, batch, 3, side, side, device=device)
    method = CGH(create(arch), CGH.Config(**config)).to(device)
    published = Published(method.student, method.queue.rows)
    ways = {"as published": lambda: published.step(weak, strong)}
    for name, dtype in {"ours, float32": torch.float32, f"ours, {precision}": precision}.items():
        method = CGH(create(arch), CGH.Config(**config))
        method.to(device, memory_format=torch.channels_last)
        optimizer = create_optimizer(method, TrainConfig(batch_size=batch))
        ways[name] = lambda m=method, o=optimizer, d=dtype: train_step(
            m, o, [weak, strong], 1.0, 0.05, kind, d
        )

    def bare(m=method):
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            whole, hyper = m.student(strong.contiguous(memory_format=torch.channels_last), 1)
            with torch.no_grad():
                m.teacher(weak.contiguous(memory_format=torch.channels_last), 1)
        (whole.sum() + hyper.sum()).backward()
        m.zero_grad(set_to_none=True)

    ways["forwards and backwards alone"] = bare
    if kind == "cuda":
        ways = {name: _waited_for(way) for name, way in ways.items()}
    taken = milliseconds(ways, rounds)
    table(f"{arch}, {side} pixels, batch {batch}, a step", taken)
    share = taken[f"ours, {precision}"] / taken["forwards and backwards alone"]
    print(f"\nWhole step over its forwards and backwards: {share:.3f}")


def _waited_for(way: Callable[[], object]) -> Callable[[], None]:
    """The same, until the device has done it."""

    def waited() -> None:
        way()
        torch.cuda.synchronize()

    return waited


def teacher(arch: str, rounds: int) -> None:
    """The update alone."""
    student = create(arch)
    follower, loop = make_teacher(student), make_teacher(student)

    def published():
        for mine, theirs in zip(loop.parameters(), student.parameters(), strict=True):
            mine.data = mine.data * 0.99 + theirs.data * 0.01

    ways = {
        "loop over parameters": published,
        "ours": lambda: update_teacher(follower, student, 0.99),
    }
    table(f"{arch}, teacher update", milliseconds(ways, rounds))


def _networks(method: CGH, images: Tensor, *, cast: bool) -> CountOps:
    """What both networks, the backward and the teacher's move do, with or without autocast."""
    with CountOps() as counted:
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            outputs = method.student(images, 1)
            with torch.no_grad():
                method.teacher(images, 1)
        (outputs[0].sum() + outputs[1].sum()).backward()
        update_teacher(method.teacher, method.student, 0.99)
    return counted


def counts(arch: str, side: int, queue: int, width: int) -> dict[str, float]:
    """Kernels and bytes of a bfloat16 step of 256 images, on meta tensors."""
    with torch.device("meta"):
        method = CGH(
            skeleton(arch).to("meta"), CGH.Config(queue_length=queue, projection_width=width)
        ).to("meta")
        images = torch.empty(256, 3, side, side, dtype=torch.bfloat16)
        whole, hyper, taught, taught_hyper = torch.empty(4, 256, width)
    rows = method.queue.rows
    method.student.bfloat16(), method.teacher.bfloat16()
    networks = _networks(method, images, cast=False)
    whole.requires_grad_(), hyper.requires_grad_()
    with CountOps() as losses:
        sum(
            crossed_relation_losses(
                (whole, hyper), (taught, taught_hyper), rows, (0.1, 0.08), (0.04, 0.08)
            )
        ).backward()
    chunks = -(-queue // chunk_length(512))  # teacher's and student's rows
    return {
        "kernels of networks, backward, teacher": networks.kernels,
        "kernels of the loss, a chunk and term": losses.kernels / chunks / 2,
        "GB": (networks.bytes + losses.bytes) / 1e9,
        "host syncs": networks.host_syncs + losses.host_syncs,
    }


def cast_kernels(arch: str, side: int) -> int:
    """Kernels of networks, backward and teacher where autocast casts the weights."""
    method = CGH(create(arch), CGH.Config(queue_length=256, projection_width=128)).to(
        memory_format=torch.channels_last
    )
    images = torch.randn(4, 3, side, side).contiguous(memory_format=torch.channels_last)
    return _networks(method, images, cast=True).kernels


if __name__ == "__main__":
    if sys.argv[1:] == ["cuda"]:
        gpu = torch.device("cuda")
        print(torch.cuda.get_device_name())
        step("resnet18_cifar", 32, 256, 30, gpu, queue_length=4096, projection_width=128)
        step("resnet50", 224, 256, 10, gpu, queue_length=131072, projection_width=512)
        raise SystemExit
    torch.set_num_threads(2)
    step("resnet18_cifar", 32, 64, 5, queue_length=4096, projection_width=128)
    step("resnet50", 224, 32, 2, queue_length=65536, projection_width=512)
    teacher("resnet50", 15)
    print("\n| 256 images, bfloat16, counted | resnet50, 224 | resnet18_cifar, 32 |\n|---|---|---|")
    large, small = counts("resnet50", 224, 131072, 512), counts("resnet18_cifar", 32, 4096, 128)
    for name in large:
        print(f"| {name} | {large[name]:.4g} | {small[name]:.4g} |")
    cast = cast_kernels("resnet50", 64), cast_kernels("resnet18_cifar", 16)
    print(f"| kernels, weights cast by autocast | {cast[0]} | {cast[1]} |")
