"""The laws every method keeps, over every method and several families of backbones."""

import dataclasses

import pytest
import torch

from cgh_models.backbone import create
from cgh_models.losses import MIN_TEMPERATURE
from cgh_models.method import Method
from cgh_models.methods import METHODS

FAMILIES = ["test_resnet", "test_convnext", "test_vit", "resnet18_cifar_w16"]
SMALL = {"projection_width": 8, "hidden_width": 16, "queue_length": 24}
EARLY = 0.0125  # half of CGH's warm-up: every loss term has a weight
each = pytest.mark.parametrize("name", METHODS)
every = pytest.mark.parametrize("arch", FAMILIES)


def size_of(arch: str) -> int:
    return 32 if arch == "resnet18_cifar_w16" else 64


def build(name: str, arch: str = "resnet18_cifar_w16", **settings):
    torch.manual_seed(0)
    backbone = create(arch, {"input_size": (3, size_of(arch), size_of(arch))})
    return METHODS[name](backbone, METHODS[name].Config(**(SMALL | settings)))


def make_views(arch: str = "resnet18_cifar_w16", count: int = 6, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, size_of(arch), size_of(arch), generator=generator) for _ in range(2)]


@each
@every
def test_losses_are_finite_and_the_gradient_reaches_every_student_parameter(name, arch):
    method = build(name, arch)
    assert isinstance(method, Method)
    with torch.no_grad():  # timm starts some scales at zero, and what is behind them without a gradient
        for p in method.student.parameters():
            p.add_(0.02 * torch.randn_like(p))
    losses = method(make_views(arch), EARLY)
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    losses["loss"].backward()
    assert not [key for key, p in method.student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


@each
@every
def test_each_loss_term_alone_has_a_gradient(name, arch):
    for term in build(name, arch)(make_views(arch), EARLY):
        method = build(name, arch)
        method(make_views(arch), EARLY)[term].backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.backbone.parameters()), term


@each
@every
def test_the_step_after_moves_the_teacher_towards_the_student_and_nothing_of_the_student(name, arch):
    method = build(name, arch, teacher_momentum=0.75)
    method(make_views(arch), EARLY)
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(torch.randn_like(p))
    student = [p.clone() for p in method.student.parameters()]
    teacher = [p.clone() for p in method.teacher.parameters()]
    method.after_step(EARLY)
    assert all(torch.equal(a, b) for a, b in zip(student, method.student.parameters(), strict=True))
    for old, new, towards in zip(teacher, method.teacher.parameters(), student, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * towards)


@each
@every
def test_the_state_round_trips_and_the_backbone_keys_are_timms(name, arch):
    method = build(name, arch)
    method(make_views(arch), EARLY)
    method.after_step(EARLY)
    other = build(name, arch)
    other.load_state_dict(method.state_dict())
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert list(method.student.backbone.state_dict()) == list(create(arch).state_dict())
    method.eval(), other.eval()
    ours, theirs = method(make_views(arch), EARLY), other(make_views(arch), EARLY)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@each
def test_every_float_of_the_config_changes_a_loss_or_the_teacher(name):
    def outcome(**settings):
        method = build(name, **settings)
        with torch.no_grad():
            for p in method.student.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
        losses = method(make_views(), EARLY)
        method.after_step(EARLY)
        return [*losses.values(), *method.teacher.parameters()]

    plain = outcome()
    floats = [f.name for f in dataclasses.fields(METHODS[name].Config) if isinstance(f.default, float)]
    assert floats
    for field in floats:
        changed = outcome(**{field: 0.9 * getattr(METHODS[name].Config(), field)})
        assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True)), field


@each
@pytest.mark.parametrize("counts", [[5, 7, 3, 24, 31], [1 + 1, 9]])
def test_any_batch_size_wraps_around_the_queue(name, counts):
    method = build(name)
    written = 0
    for count in counts:
        method(make_views(count=count), 1.0)
        last = method._pending[0] if isinstance(method._pending, tuple) else method._pending
        method.after_step(1.0)
        kept = last[-24:]
        written += min(count, 24)
        rows = [(written - len(kept) + i) % 24 for i in range(len(kept))]
        assert torch.equal(method.queue.rows[0, rows], kept)
        assert method.queue.position.item() == written % 24


@each
@every
def test_bfloat16_autocast_gives_nearly_the_same_loss(name, arch):
    method = build(name, arch).eval()
    with torch.no_grad():
        plain = method(make_views(arch), EARLY)["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            cast = method(make_views(arch), EARLY)["loss"]
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(plain.item(), rel=0.05)


@each
def test_a_non_finite_step_leaves_the_queue_alone(name):
    method = build(name)
    before = method.queue.rows.clone()
    method(make_views(), EARLY)
    method.after_step(EARLY, torch.tensor(False))
    assert torch.equal(before, method.queue.rows) and method.queue.position == 0


@each
def test_teacher_and_student_start_equal(name):
    method = build(name)
    for (key, a), b in zip(method.student.state_dict().items(), method.teacher.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@each
def test_a_temperature_too_low_for_float32_is_refused_with_a_sentence(name):
    field = next(f.name for f in dataclasses.fields(METHODS[name].Config) if f.name.endswith("student_temperature"))
    with pytest.raises(Exception, match=f"{field}=0.001: at least {MIN_TEMPERATURE}"):
        METHODS[name].Config(**{field: 0.001})
