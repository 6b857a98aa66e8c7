"""The step in parts, with checkpointing, compiled, and without enough memory."""

import dataclasses
import weakref
from functools import partial

import pytest
import torch
from small_runs import QUICK, build, final, lines

from cgh_models.config import TrainConfig
from cgh_models.errors import InputError
from cgh_models.methods import METHODS
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain
from cgh_models.train.optim import create_optimizer
from cgh_models.train.step import batch_too_large, half_fits, prepare, train_step

CPU = torch.device("cpu")


def views_of(method, count=8):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(count, 3, 32, 32, generator=generator)
        for _ in range(3 if method.name == "mnclglf" else 2)
    ]


def gradients(method, parts=1):
    """Of a step that moves nothing, and its losses."""
    optimizer = create_optimizer(method, QUICK)
    taken = {}
    optimizer.step = lambda: taken.update(
        {n: p.grad.clone() for n, p in method.student.named_parameters()}
    )
    return taken, train_step(
        method, optimizer, views_of(method), 0.01, 0.1, "cpu", torch.float32, parts=parts
    )


@pytest.mark.parametrize("name", ["cgh", "ressl", "moco_v2", "byol", "lewel", "lewel_m", "sce"])
def test_a_batch_in_parts_has_the_gradients_and_the_queue_of_a_whole_one(name):
    """With the statistics of batch norms frozen: those are a part's own otherwise."""
    whole, halves = build(name).eval(), build(name).eval()
    (one, losses), (two, others) = gradients(whole), gradients(halves, parts=2)
    assert losses.keys() == others.keys()
    for key in losses:
        torch.testing.assert_close(others[key], losses[key], rtol=1e-4, atol=1e-5)
    for key, gradient in one.items():
        torch.testing.assert_close(
            two[key], gradient, rtol=1e-3, atol=1e-5 * float(1 + gradient.abs().max())
        )
    if hasattr(whole, "queue"):
        torch.testing.assert_close(halves.queue.rows, whole.queue.rows)
        assert halves.queue.position == whole.queue.position == 8


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_parts(name, image_root, tmp_path):
    config = dataclasses.replace(QUICK, accumulate=4, epochs=1)
    pretrain(build(name), image_root / "train", config, tmp_path)
    assert lines(tmp_path)[-1]["step"] == 4


def test_parts_that_do_not_divide_a_batch_are_one_sentence():
    with pytest.raises(InputError, match="accumulate=3: has to divide the batch size, 16"):
        TrainConfig(batch_size=16, accumulate=3)
    with pytest.raises(InputError, match="accumulate=16: at least 1 and at most 8 is needed"):
        TrainConfig(batch_size=16, accumulate=16)


@pytest.mark.parametrize(
    "name, arch", [("cgh", "resnet18_cifar_w16"), ("lewel", "test_vit"), ("ressl", "test_convnext")]
)
def test_checkpointing_changes_memory_and_not_gradients(name, arch, counters):
    plain, saving = (build(name, arch=arch) for _ in range(2))
    prepare(saving, dataclasses.replace(QUICK, grad_checkpointing=True), CPU)
    (one, losses), (two, others) = gradients(plain), gradients(saving)
    torch.testing.assert_close(others["loss"], losses["loss"])
    for key, gradient in one.items():
        torch.testing.assert_close(two[key], gradient, rtol=1e-4, atol=1e-6)
    for (
        key,
        buffer,
    ) in plain.student.named_buffers():  # the forward that is done twice moves no statistics
        if "running" in key:
            torch.testing.assert_close(saving.student.get_buffer(key), buffer, rtol=1e-4, atol=1e-6)
    peaks = []
    for checkpointing in (False, True):
        method = build(name, arch=arch).to("meta")
        prepare(method, dataclasses.replace(QUICK, grad_checkpointing=checkpointing), CPU)
        with torch.device("meta"), counters.LiveBytes() as live:
            method([torch.empty(64, 3, 32, 32) for _ in range(2)], 1.0)["loss"].backward()
        peaks.append(live.peak)
    assert peaks[1] < 0.9 * peaks[0]


def test_a_backbone_that_cannot_be_checkpointed_is_one_sentence(monkeypatch):
    method = build()
    monkeypatch.setattr(type(method.student.backbone), "set_grad_checkpointing", None)
    with pytest.raises(
        InputError, match="^test_resnet: timm cannot checkpoint it; leave --grad-checkp"
    ):
        prepare(method, dataclasses.replace(QUICK, grad_checkpointing=True), CPU)


@pytest.mark.parametrize("name", ["cgh", "byol"])
def test_compiled_networks_are_the_same_and_keep_their_names(name, monkeypatch):
    """By the backend that needs no C++ compiler; for a CPU `prepare` leaves compiling out."""
    plain, compiled = build(name), build(name)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    prepare(compiled, dataclasses.replace(QUICK, compile=True), torch.device("cuda"))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    (one, losses), (two, others) = gradients(plain), gradients(compiled)
    torch.testing.assert_close(others["loss"], losses["loss"], rtol=1e-4, atol=1e-5)
    for key, gradient in one.items():
        torch.testing.assert_close(two[key], gradient, rtol=1e-3, atol=1e-4)


def test_compiling_is_left_out_on_the_cpu_and_said(capsys):
    method = build()
    prepare(method, dataclasses.replace(QUICK, compile=True), CPU)
    assert "--compile: left out on the CPU" in capsys.readouterr().err
    assert method.student.backbone._compiled_call_impl is None


class Greedy:
    """A method whose device has memory for so many images at once; otherwise CGH."""

    def __new__(cls, most: int, after: int = 0, **settings):
        method, taken = build("cgh", **settings), []
        real = method.forward

        def forward(views, progress):
            taken.append(1)
            if len(taken) > after and views[0].shape[0] > most:
                torch.rand(1)  # memory ends after some of the work
                method.student(views[0], method.config.batch_norm_splits)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(views, progress)

        method.forward = forward
        return method


def test_a_batch_that_does_not_fit_says_what_did_when_it_was_tried(image_root, tmp_path):
    for most, parts, at_once, said in (
        (8, 1, 16, "8 did when tried: give --accumulate 2, --batch-size 8"),
        (7, 1, 16, "nor did 8: give a smaller --image-size"),
        (4, 2, 8, "4 did when tried: give --accumulate 4, --batch-size 4"),
    ):
        said = f"{at_once} images at once do not fit in the memory of cpu, {said}"
        config = dataclasses.replace(QUICK, accumulate=parts)
        with pytest.raises(
            InputError, match=f"^{said}.* or --grad-checkpointing, which a resumed run may add$"
        ):
            pretrain(Greedy(most), image_root / "train", config, tmp_path / f"{most}")


def test_cuda_graphs_are_left_out_on_a_cpu_and_exclude_what_repeats_a_pass(
    image_root, tmp_path, capsys
):
    config = dataclasses.replace(QUICK, epochs=1, eval_every=-1)
    for name, on in (("plain", False), ("graphs", True)):
        method = build(config=config)
        settings = dataclasses.replace(config, cuda_graphs=on)
        pretrain(method, image_root / "train", settings, tmp_path / name)
        assert "forward" not in vars(method.student.backbone)
    assert "--cuda-graphs: left out, there is no CUDA device" in capsys.readouterr().err
    assert lines(tmp_path / "plain") == lines(tmp_path / "graphs")
    for other in ({"accumulate": 2}, {"compile": True}, {"grad_checkpointing": True}):
        with pytest.raises(InputError, match=f"cuda_graphs=True with {next(iter(other))}: they"):
            dataclasses.replace(QUICK, cuda_graphs=True, **other)


def test_the_advice_for_a_batch_that_cannot_be_halved_twice_divides_it():
    for batch, parts, advice in (
        (250, 2, "--accumulate 5, --batch-size 62"),
        (14, 2, "--accumulate 7, --batch-size 3"),
    ):
        config = dataclasses.replace(QUICK, batch_size=batch, accumulate=parts)
        assert f"did when tried: give {advice} or" in str(batch_too_large(config, CPU, True, ""))
        dataclasses.replace(config, accumulate=int(advice.split()[1].strip(",")))  # is not refused


def test_the_advice_with_cuda_graphs_is_not_what_they_exclude():
    config = dataclasses.replace(QUICK, cuda_graphs=True)
    for fits, advice in (
        (True, "8 did when tried: give --batch-size 8"),
        (False, "nor did 8: give a smaller --image-size, a quarter of --batch-size"),
    ):
        said = str(batch_too_large(config, CPU, fits, ""))
        assert said.endswith(f"{advice} or --no-cuda-graphs, which a resumed run may add")


def test_what_did_not_fit_is_gone_before_half_of_it_is_tried(image_root, tmp_path, monkeypatch):
    """Else both would have to fit at once."""
    alive, method = [], Greedy(8)
    real = method.forward

    def forward(views, progress):
        kept = torch.ones(3) * views[0].sum()
        alive.append(weakref.ref(kept))
        return real(views, progress)

    def tried(*_):
        assert alive and not any(reference() is not None for reference in alive)
        return True

    method.forward = forward
    monkeypatch.setattr("cgh_models.train.loop.half_fits", tried)
    with pytest.raises(InputError, match="8 did when tried"):
        pretrain(method, image_root / "train", QUICK, tmp_path)


def test_a_run_that_met_the_end_of_memory_goes_on_where_it_was(image_root, tmp_path):
    """To the bit: the step that did not fit has moved neither statistics nor the random state."""
    settings = {"batch_norm_splits": 2}  # which draws from the random state
    method = Greedy(8, after=5, **settings)
    with pytest.raises(InputError, match=r"saved at step 5, `cgh resume .*/cut`$"):
        pretrain(method, image_root / "train", QUICK, tmp_path / "cut")
    assert checkpoint.read_index(tmp_path / "cut")[0].step == 5
    pretrain(build("cgh", **settings), image_root / "train", QUICK, tmp_path / "cut", resume=True)
    pretrain(build("cgh", **settings), image_root / "train", QUICK, tmp_path / "whole")
    cut, whole = final(tmp_path / "cut"), final(tmp_path / "whole")
    assert not [name for name in whole if not torch.equal(cut[name], whole[name])]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_trying_half_a_batch_leaves_nothing_behind():
    method = build("cgh")
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    random = torch.get_rng_state()
    assert half_fits(method, views_of(method), 0.0, "cpu", torch.float32, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert method.queue.pending == 0 and all(p.grad is None for p in method.parameters())


def test_other_errors_are_not_taken_for_the_end_of_memory(image_root, tmp_path):
    method = build("ressl")
    method.forward = lambda *_: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size"):
        pretrain(method, image_root / "train", QUICK, tmp_path)
