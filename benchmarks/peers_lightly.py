"""Pretrains a network with lightly or LightlyTrain; `peers.py` starts it in their environment.

    PYTHONPATH=. PEERS/bin/python benchmarks/peers_lightly.py lightly FOLDER OUT --epochs 10

Writes OUT/metrics.jsonl (a line a step), OUT/backbone.pt and OUT/versions.json. cgh_models makes
the network, which it registers with timm, and has no other part in this.
"""

import argparse
import copy
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import cgh_models  # noqa: F401 - registers its networks with timm


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=["lightly", "lightly-bf16", "lightly-train"])
    parser.add_argument("folder", help="class folders of images; the classes are not looked at")
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="resnet18_cifar_w16")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--until", type=float, default=float("inf"), help="time.time() of its end")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def step_log(out: Path) -> Callable[[], None]:
    """What is called once a step, and writes it down."""
    file = (out / "metrics.jsonl").open("w", buffering=1)
    steps = 0

    def write() -> None:
        nonlocal steps
        steps += 1
        file.write(json.dumps({"step": steps}) + "\n")

    return write


def endless(loader: torch.utils.data.DataLoader) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """The views of each batch, and of which epoch, from 0, it is."""
    for epoch in itertools.count():
        for views, *_ in loader:
            yield epoch, views


def moco_v2(given: argparse.Namespace, backbone: nn.Module, bf16: bool) -> None:
    """The settings of lightly's example of MoCo v2; ``epochs`` is the length of its momentum's
    schedule; the loop ends when another step may last beyond ``until``.

    Other than there: the network and the width of its head's input, images from a folder, two
    workers (of 8). ``bf16``: autocast and channels_last as well, which the example has not.
    """
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform
    from lightly.utils.scheduler import cosine_schedule

    form = torch.channels_last if bf16 else torch.contiguous_format
    student = nn.Sequential(backbone, MoCoProjectionHead(backbone.num_features, 512, 128))
    student.to(memory_format=form)
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    images = LightlyDataset(given.folder, transform=MoCoV2Transform(input_size=given.image_size))
    loader = torch.utils.data.DataLoader(
        images, batch_size=given.batch_size, shuffle=True, drop_last=True, num_workers=2
    )
    loss_of = NTXentLoss(memory_bank_size=(4096, 128))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.06)
    log_step = step_log(given.out)
    longest, last = 0.0, float("inf")  # seconds of a step, and when the last one was done
    for epoch, views in endless(loader):
        momentum = cosine_schedule(min(epoch, given.epochs - 1), given.epochs, 0.996, 1)
        update_momentum(student, teacher, m=momentum)
        query_view, key_view = (view.contiguous(memory_format=form) for view in views)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            query = student(query_view)
            with torch.no_grad():
                key = teacher(key_view)
        loss = loss_of(query.float(), key.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log_step()
        now = time.time()
        longest, last = max(longest, now - last), now
        if now + longest > given.until:
            break
    torch.save(backbone.state_dict(), given.out / "backbone.pt")


def lightly_train(given: argparse.Namespace, backbone: nn.Module) -> None:
    """LightlyTrain's SimCLR by its Python interface; all but what is given here is its default.

    Its default method, distillation, downloads a teacher: SimCLR starts from nothing, as ours do.
    """
    import lightly_train as program

    log_step = step_log(given.out)

    def before_forward(module: nn.Module, inputs: tuple) -> None:
        # Both views of a batch go through the first convolution at once: a call is a step.
        if getattr(module, "in_channels", 0) == 3:
            log_step()

    # A hook of the network's own would have to go into its checkpoints.
    register_module_forward_pre_hook(before_forward)
    program.pretrain(
        out=given.out / "lightly_train",
        data=given.folder,
        model=backbone,
        method="simclr",
        epochs=given.epochs,
        batch_size=given.batch_size,
        seed=given.seed,
        accelerator="cpu",
        transform_args={"image_size": (given.image_size, given.image_size)},
    )
    exported = given.out / "lightly_train" / "exported_models" / "exported_last.pt"
    exported.rename(given.out / "backbone.pt")


def main() -> None:
    given = arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    torch.manual_seed(given.seed)
    names = ["lightly-train", "lightly"] if given.name == "lightly-train" else ["lightly"]
    versions = {name: version(name) for name in [*names, "torch", "torchvision", "timm"]}
    (given.out / "versions.json").write_text(json.dumps(versions))
    backbone = timm.create_model(given.arch, num_classes=0)
    if given.name == "lightly-train":
        lightly_train(given, backbone)
    else:
        moco_v2(given, backbone, bf16=given.name == "lightly-bf16")


if __name__ == "__main__":
    main()
