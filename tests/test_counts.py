"""Costs that need no clock: memory of the loss, host syncs of a step, kernels of the teacher."""

from pathlib import Path

import pytest
import torch
from conftest import benchmark
from small_runs import QUICK, build
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cgh_models.backbone import create, skeleton
from cgh_models.config import TrainConfig
from cgh_models.data.batched_views import ViewRequest, fast_views
from cgh_models.data.draws import COLUMNS, boxes, uniform
from cgh_models.data.image_set import load
from cgh_models.data.loader import batches
from cgh_models.methods import METHODS
from cgh_models.methods import momentum_teacher as teacher
from cgh_models.methods.losses import crossed_relation_losses, info_nce
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import train_step
from cgh_models.view_recipes import RECIPES


@pytest.mark.parametrize("batch, limit_mib", [(32, 4), (256, 32)])
def test_the_losses_of_cgh_need_little_memory_beside_the_queues(counters, batch, limit_mib):
    with torch.device("meta"):
        queues = torch.empty(2, 131072, 512)
        s, sh = (torch.empty(batch, 512, requires_grad=True) for _ in range(2))
        t, th = torch.empty(2, batch, 512)
    with counters.LiveBytes() as live:
        loss = torch.stack(
            crossed_relation_losses((s, sh), (t, th), queues, (0.1, 0.08), (0.04, 0.08))
        ).sum()
        loss = loss + info_nce(s, t, queues[0], 0.2) + info_nce(sh, th, queues[1], 0.2)
        loss.backward()
    assert live.peak <= limit_mib * 2**20


def test_a_step_of_cgh_keeps_to_its_kernels_and_bytes():
    """ResNet-50 at 224 pixels and ResNet-18 at 32, 256 images, bfloat16 networks."""
    step = benchmark("step")
    for counted, limits in (
        (step.counts("resnet50", 224, 131072, 512), (800, 16, 156)),
        (
            step.counts("resnet18_cifar", 32, 4096, 128),
            (400, 32, 9.6),
        ),  # two chunks: what is done once counts
    ):
        *counts, syncs = counted.values()
        assert syncs == 0 and all(
            count <= limit for count, limit in zip(counts, limits, strict=True)
        ), counted
    assert (
        step.cast_kernels("resnet50", 64) <= 915 and step.cast_kernels("resnet18_cifar", 16) <= 429
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_wait_for_the_device(counters, name):
    """From decoded pixels to the moved teacher, on meta: an .item() would raise or be counted."""
    queue = {"queue_length": 512} if hasattr(METHODS[name].Config(), "queue_length") else {}
    method = METHODS[name](create("resnet18_cifar_w16"), METHODS[name].Config(**queue)).to("meta")
    config = TrainConfig(batch_size=16)
    optimizer = create_optimizer(method, config)
    pixels = torch.empty(16, 32, 32, 3, dtype=torch.uint8, device="meta")
    mean = std = torch.empty(3, device="meta")
    with counters.CountOps() as ops:
        for progress in (0.0, 0.5):
            asked = []
            for number, view in enumerate(RECIPES[method.view_recipe]):
                u = uniform(0, 0, torch.arange(16).numpy(), COLUMNS, number)
                asked.append(ViewRequest(view, pixels, u, view.side(32), boxes(view, u, 32, 32)))
            views = fast_views(asked, mean, std)
            losses = train_step(method, optimizer, views, progress, 0.1, "cpu", torch.float32)
    assert ops.kernels > 1000 and ops.host_syncs == 0
    assert losses["loss"].is_meta and losses["finite"].is_meta


class Uploads(TorchDispatchMode):
    """Counts operators that bring something of the host to the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        of_device = [x.is_meta for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.count += any(of_device) and not all(x.is_meta for x in given)
        return made


@pytest.mark.parametrize("gib", [1, 0], ids=["in memory", "from workers"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_brings_to_the_device_one_block_of_numbers_and_its_images(image_root, name, gib):
    """Of images that are there their indices, else the crops of each view."""
    images = load(image_root / "train")
    images.cache_pixels(gib)
    method = build(name, arch="resnet18_cifar_w16").to("meta")
    optimizer = create_optimizer(method, QUICK)
    recipe = RECIPES[method.view_recipe]
    loader = batches(images, recipe, QUICK, 0, 3, torch.device("meta"))
    next(loader)  # what is moved once
    with Uploads() as uploads:
        views, _ = next(loader)
        train_step(method, optimizer, views, 0.5, 0.1, "cpu", torch.float32)
    assert uploads.count == 1 + (1 if gib else len(recipe))


def test_the_teacher_moves_in_one_kernel_per_dtype_without_scratch(counters):
    with torch.device("meta"):
        student = create("resnet50")
        student.layer4.half()
        follower = teacher.make_teacher(student)
        with counters.CountOps() as ops, counters.LiveBytes() as live:
            teacher.update_teacher(follower, student, 0.99)
    assert ops.by_name.keys() == {"aten::_foreach_lerp_"} and ops.kernels == 2
    assert live.peak == 0


def test_the_teacher_takes_the_stated_step():
    student = torch.nn.Linear(3, 2)
    follower = teacher.make_teacher(student)
    old = follower.weight.clone()
    with torch.no_grad():
        student.weight.add_(1)
    teacher.update_teacher(follower, student, 0.9)
    torch.testing.assert_close(follower.weight, old + 0.1)
    assert not follower.weight.requires_grad


def passes(method, views, tiles=0):
    """Operations of the forwards and backwards of a method, each piece counted on its own."""
    student, teacher = method.student, method.teacher

    def forward_backward(view):
        out = student(view)
        whole = out[0] if isinstance(out, tuple) else out
        total = student.predictor(whole).sum()
        if isinstance(out, tuple):
            total = total + student.aligned_predictor(out[1].flatten(0, 1)).sum()
        total.backward()

    taught = views[::2] if tiles else views
    pieces = [count(forward_backward, view) for view in views]
    with torch.no_grad():
        pieces += [count(teacher, view) for view in taught]
        pieces += [count(method._pairs_of_tiles, view) for view in views[:tiles]]
    return sum(pieces)


def count(function, *args):
    with FlopCounterMode(display=False) as flops:
        function(*args)
    return flops.get_total_flops()


@pytest.mark.parametrize(
    "name, number, tiles", [("lewel", 2, 0), ("mnclglf", 3, 2), ("byol", 2, 0)]
)
def test_a_step_costs_its_forwards_and_backwards_and_little_more(name, number, tiles):
    with torch.device("meta"):
        method = METHODS[name](skeleton("resnet18").to("meta")).to("meta")
        views = [torch.empty(256, 3, 224, 224) for _ in range(number)]
        step = count(lambda: method(views, 0.5)["loss"].backward())
        assert passes(method, views, tiles) <= step <= 1.1 * passes(method, views, tiles)


def test_the_table_of_costs_is_what_is_counted():
    path = Path(__file__).resolve().parents[1]
    text = (
        (path / "docs" / "methods.md")
        .read_text("utf-8")
        .split("<!-- cost -->")[1]
        .split("<!-- /cost -->")[0]
    )
    rows = [line.split("|") for line in text.strip().splitlines()[2:]]
    said = {row[1].strip(): (float(row[2]), float(row[3])) for row in rows}
    cost = benchmark("cost")
    assert {name.partition(",")[0] for name in said} == METHODS.keys()
    with torch.device("meta"):
        forward = cost.count(lambda: skeleton("resnet50").to("meta")(torch.empty(2, 3, 224, 224)))
    for name in (
        "cgh",
        "lewel",
        "ressl, multi_crop",
    ):  # the others take as long and go the same way
        value, beside = said[name]
        method, _, setting = name.partition(", ")
        counted = cost.step_cost(method, batch=2, **({setting: True} if setting else {})) / forward
        assert counted == pytest.approx(value, rel=0.03), name
        assert cost.beside(cost.build(method)) / 2**20 == pytest.approx(beside, rel=0.01), name
