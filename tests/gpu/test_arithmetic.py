"""Losses and steps on a device are those of the CPU, and nothing waits for the device."""

import dataclasses
import gc
import os
from copy import deepcopy
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import DEVICE, QUICK, build
from torch.profiler import ProfilerActivity, profile

from cgh_models.backbone import eval_mode
from cgh_models.data.batched_views import ViewRequest, fast_views
from cgh_models.data.draws import COLUMNS, boxes, uniform
from cgh_models.methods import METHODS, losses
from cgh_models.methods.sce import similarity_contrast
from cgh_models.train.cuda_graphs import ReplayedViews, replayed_passes
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import MemoryGuard, train_step
from cgh_models.view_recipes import RECIPES

if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytestmark = pytest.mark.gpu
KIND = torch.device(DEVICE).type


def dense(s, sh, t, th, queues):
    """The losses with batch x queue matrices: CGH's, ReSSL's, InfoNCE, SCE's; and a batch's own."""
    q, qh = queues

    def relations(student, queue, student_t, teacher, target_queue, teacher_t):
        target = (teacher @ target_queue.T / teacher_t).softmax(1)
        return -(target * (student @ queue.T / student_t).log_softmax(1)).sum(1).mean()

    crossed = relations(s, q, 0.1, th, qh, 0.08) + 2 * relations(sh, qh, 0.08, t, q, 0.04)
    scores = torch.cat([(s * t).sum(1, keepdim=True), s @ q.T], 1) / 0.2
    nce = F.cross_entropy(scores, torch.zeros(len(s), dtype=torch.int64))
    within = F.cross_entropy(s @ sh.T / 0.2, torch.arange(len(s)))
    target = (t @ q.T / 0.05).softmax(1)
    related = -(target * (scores * 2).log_softmax(1)[:, 1:]).sum(1).mean()
    positive = -(scores * 2).log_softmax(1)[:, 0].mean()
    return crossed, relations(s, q, 0.1, t, q, 0.04), nce, 0.3 * positive + 0.7 * related, within


def streamed(s, sh, t, th, queues):
    one, two = losses.crossed_relation_losses((s, sh), (t, th), queues, (0.1, 0.08), (0.04, 0.08))
    within_queue = losses.relation_loss(s, t, queues[0], 0.1, 0.04)
    nce = losses.info_nce(s, t, queues[0], 0.2)
    between = similarity_contrast(s, t, queues[0], 0.3, 0.1, 0.05)
    return one + 2 * two, within_queue, nce, between, losses.batch_info_nce(s, sh, 0.2)


def measured(functions, rows, queues, device, dtype):
    """Each loss, and its gradients for both students."""
    rows = [row.to(device, dtype).requires_grad_(i < 2) for i, row in enumerate(rows)]
    for value in functions(*rows, queues.to(device, dtype)):
        gradients = torch.autograd.grad(value, rows[:2], retain_graph=True, allow_unused=True)
        both = torch.cat([gradient for gradient in gradients if gradient is not None])
        yield value.detach().cpu().double(), both.cpu().double()


@pytest.mark.parametrize("length", [100, 131_101], ids=["one chunk", "chunks"])
def test_losses_and_gradients_are_within_two_millionths_of_dense_float64(length):
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(4, 64, 64, generator=generator), dim=-1)
    queues = F.normalize(torch.randn(2, length, 64, generator=generator), dim=-1)
    assert not torch.backends.cuda.matmul.allow_tf32
    mine = measured(streamed, rows, queues, DEVICE, torch.float32)
    exact = measured(dense, rows, queues, "cpu", torch.float64)
    for pair in zip(mine, exact, strict=True):
        for found, wanted in zip(*pair, strict=True):
            assert (found - wanted).norm() <= 2e-6 * wanted.norm()
    nearest = losses.nearest(rows[0].to(DEVICE), queues[0].to(DEVICE))
    assert torch.equal(nearest.cpu(), losses.nearest(rows[0], queues[0]))


def views_of(method, seed=3):
    torch.manual_seed(seed)
    return [torch.randn(16, 3, v.side(32), v.side(32)) for v in RECIPES[method.view_recipe]]


def start(name, device=DEVICE, settings=None, **train):
    """A method that was built on the CPU, its optimizer and its config.

    Its teacher goes half of the way to the student in a step, or one that stays would not be seen.
    """
    config = dataclasses.replace(QUICK, **train)
    settings = {"teacher_momentum": 0.5} | (settings or {})
    kinds = {field.name for field in dataclasses.fields(METHODS[name].Config)}
    method = build(name, config, **{key: settings[key] for key in settings if key in kinds})
    method.to(device, memory_format=torch.channels_last).train()
    return method, create_optimizer(method, config), config


def parts(method, optimizer):
    """What a step moves, as vectors on the CPU: of student, teacher, queue and the optimizer."""
    moments = chain.from_iterable(optimizer.state[p].values() for p in method.student.parameters())
    found = {"optimizer": list(moments)}
    for name, part in method.named_children():
        buffers = list(part.buffers())
        found[f"{name}: parameters"] = list(part.parameters())
        found[f"{name}: statistics"] = [x for x in buffers if x.is_floating_point()]
        found[f"{name}: counts"] = [x for x in buffers if not x.is_floating_point()]
    return {
        name: torch.cat([x.detach().cpu().flatten() for x in tensors])
        for name, tensors in found.items()
        if tensors
    }


def assert_same_step(mine, wanted, before, near):
    """Each part is apart from the wanted one by at most this share of the way that it has gone."""
    mine, wanted = parts(*mine), parts(*wanted)
    assert mine.keys() == wanted.keys()
    for name, there in wanted.items():
        if not there.is_floating_point():
            assert torch.equal(mine[name], there), name
            continue
        way = there - before.get(name, torch.zeros(()))
        share = (mine[name] - there).norm() / way.norm().clamp(min=1e-12)
        assert share <= near, f"{name}: {share:.3g}"


def take_state(here, there):
    """Brings a method and its optimizer, ``there``, to where ``here`` is.

    Before each step: what one rounds, the next ones enlarge, a millionth to 13 % in three.
    """
    there[0].load_state_dict(here[0].state_dict())
    there[1].load_state_dict(deepcopy(here[1].state_dict()))


@pytest.mark.parametrize(
    "name, by_timing", [*((name, False) for name in METHODS), ("cgh", True), ("lewel", True)]
)
def test_steps_are_those_of_the_cpu_and_in_bfloat16_the_first_is_nearly(
    name, by_timing, monkeypatch
):
    """Without TF32, torch's default for convolutions, with which other neighbours are nearest."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", by_timing)
    (*here, _), (*there, _), (*rough, _) = start(name, "cpu"), start(name), start(name)
    for number, progress in enumerate((0, 0.01, 0.1)):
        views = views_of(here[0], number)
        moved = [view.to(DEVICE) for view in views]
        take_state(here, there)
        before = parts(*here)
        wanted = train_step(*here, views, progress, 0.05, "cpu", torch.float32)["loss"]
        found = train_step(*there, moved, progress, 0.05, KIND, torch.float32)["loss"]
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=0)
        assert_same_step(there, here, before, 0.03)  # a ReLU at 0 falls to either side
        found = train_step(*rough, moved, progress, 0.05, KIND, torch.bfloat16)["loss"]
        if number == 0:
            torch.testing.assert_close(found.cpu(), wanted, rtol=0.03, atol=0)
    assert all(value.isfinite().all() for value in rough[0].state_dict().values())


CASES = {name: (name, {}, {}) for name in METHODS} | {
    "parts": ("cgh", {"accumulate": 2}, {}),
    "splits": ("cgh", {}, {"batch_norm_splits": 2}),
    "multi-crop": ("ressl", {"clip_norm": 1.0}, {"multi_crop": True}),
    "adamw": ("cgh", {"optimizer": "adamw"}, {}),
    "lars": ("lewel", {"optimizer": "lars"}, {}),
    "muon": ("cgh", {"optimizer": "muon"}, {}),
    "replayed": ("cgh", {"cuda_graphs": True}, {}),
    "replayed splits": ("moco_v2", {"cuda_graphs": True}, {"batch_norm_splits": 2}),
}


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no such graphs")
@pytest.mark.parametrize("precision, near", [(torch.float32, 0.05), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("case", [*METHODS, "splits", "multi-crop", "muon"])
def test_replayed_steps_are_those_that_are_launched_one_by_one(case, precision, near, monkeypatch):
    """Several passes of a network in a step, a batch norm's statistics, measuring in between.

    Apart by some of a step's way, as rounding is; a call's lost gradient is more in float32.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    name, train, settings = CASES[case]
    *plain, _ = start(name, settings=settings, **train)
    *mine, config = start(name, settings=settings, cuda_graphs=True, **train)
    with replayed_passes(mine[0], config, torch.device(DEVICE)):
        for number, progress in enumerate((0, 0.01, 0.1, 0.2, 0.5)):
            views = [view.to(DEVICE) for view in views_of(plain[0], number)]
            take_state(plain, mine)
            before, taken = parts(*plain), []
            for both in (plain, mine):
                torch.manual_seed(number)  # of the rows that a teacher shuffles
                with eval_mode(both[0].student.backbone), torch.no_grad():
                    both[0].student.backbone(views[0])
                last = (progress, 0.05, KIND, precision)
                taken.append(train_step(*both, views, *last)["loss"])
            torch.testing.assert_close(*taken, rtol=near, atol=0)
            assert_same_step(mine, plain, before, near)


def launches(step):
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.name.startswith("cudaLaunchKernel") for event in profiler.events())


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no such graphs")
def test_graphs_save_most_launches():
    counts = []
    for replayed in (False, True):
        method, optimizer, config = start("moco_v2", cuda_graphs=replayed)
        views = [view.to(DEVICE) for view in views_of(method)]
        step = partial(train_step, method, optimizer, views, 0.5, 0.05, KIND, torch.bfloat16)
        with replayed_passes(method, config, torch.device(DEVICE)):
            step()
            counts.append(launches(step))
        assert method.student.backbone.forward.__self__ is method.student.backbone
        assert method.student.forward.__self__ is method.student
    assert counts[1] < counts[0] / 3
    forked = os.fork()
    if not forked:
        gc.collect()  # of a graph it would abort: CUDA is not there after a fork
        os._exit(0)
    assert os.waitpid(forked, 0)[1] == 0


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no such graphs")
@pytest.mark.parametrize("cut", [False, True], ids=["whole images", "crops"])
@pytest.mark.parametrize("recipe", ["multi_crop", "byol"])
def test_replayed_views_are_those_that_are_launched_one_by_one(recipe, cut):
    """In every batch others are blurred; in the third all views become larger."""
    replayed, counts = ReplayedViews(), []
    mean, std = torch.rand(2, 3, device=DEVICE) + 0.1
    for number, size in enumerate((24, 24, 32, 32)):
        asked = []
        for stream, view in enumerate(RECIPES[recipe]):
            u, side = uniform(0, number, np.arange(16), COLUMNS, stream), view.side(size)
            shape = (16, 3, side, side) if cut else (16, 40, 40, 3)
            pixels = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
            box = None if cut else boxes(view, u, 40, 40)
            asked.append(ViewRequest(view, pixels, u, side, box))
        wanted = fast_views(asked, mean, std)
        for mine, view in zip(replayed(asked, mean, std), wanted, strict=True):
            torch.testing.assert_close(mine, view, rtol=1e-5, atol=1e-5)
        counts.append(
            [launches(partial(make, asked, mean, std)) for make in (fast_views, replayed)]
        )
    assert all(one_by_one > 50 and again == 0 for one_by_one, again in counts), counts


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing waits for a CPU")
@pytest.mark.parametrize("case", CASES)
def test_from_pixels_to_the_moved_teacher_nothing_waits_for_the_device(case):
    name, train, settings = CASES[case]
    method, optimizer, config = start(name, settings=settings, **train)
    guard, mean, std = MemoryGuard(method), *torch.ones(2, 3, device=DEVICE)
    pixels = torch.randint(256, (16, 40, 40, 3), dtype=torch.uint8, device=DEVICE)
    last = (KIND, torch.bfloat16, config.clip_norm, config.accumulate)
    makers = [ReplayedViews(), ReplayedViews()] if config.cuda_graphs else [fast_views] * 2

    def step(number):
        whole, cut = [], []
        for stream, view in enumerate(RECIPES[method.view_recipe]):
            u, side = uniform(0, number, np.arange(16), COLUMNS, stream), view.side(32)
            whole.append(ViewRequest(view, pixels, u, side, boxes(view, u, 40, 40)))
            crops = pixels[:, :side, :side].permute(0, 3, 1, 2)  # as workers cut them
            cut.append(ViewRequest(view, crops, u, side))
        makers[0](cut, mean, std)
        views = makers[1](whole, mean, std)
        with guard:
            return train_step(method, optimizer, views, (number % 2) / 2, 0.05, *last)

    with replayed_passes(method, config, torch.device(DEVICE)):
        for number in range(2):
            step(number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken = [step(number) for number in range(2, 6)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(step_losses is not None and step_losses["finite"] for step_losses in taken)


@pytest.mark.parametrize(
    "name, optimizer",
    [*((name, "sgd") for name in METHODS), ("cgh", "adamw"), ("lewel", "lars"), ("cgh", "muon")],
)
@pytest.mark.parametrize("before", [0, 2], ids=["first step", "third step"])
def test_a_step_that_is_not_finite_moves_no_weights_momentum_or_queue(name, optimizer, before):
    method, made, _ = start(name, optimizer=optimizer)
    views = [view.to(DEVICE) for view in views_of(method)]

    def state():
        moments = chain.from_iterable(made.state[p].values() for p in method.student.parameters())
        queue = method.queue.buffers() if hasattr(method, "queue") else ()
        return [x.clone() for x in (*method.student.parameters(), *queue, *moments)]

    for _ in range(before):
        assert train_step(method, made, views, 0.5, 0.05, KIND, torch.float32)["finite"]
    kept = state()
    views[0][3, 1, 5, 5] = torch.nan
    assert not train_step(method, made, views, 0.5, 0.05, KIND, torch.float32)["finite"]
    after = state()
    kept += [torch.zeros_like(x) for x in after[len(kept) :]]  # what the first step made
    assert all(torch.equal(x, y) for x, y in zip(kept, after, strict=True))
