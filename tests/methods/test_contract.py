"""The contract of every method, on several families of backbones."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.dataclass_json import from_older
from cgh_models.errors import InputError
from cgh_models.methods import METHODS, build_method
from cgh_models.methods.losses import MIN_TEMPERATURE
from cgh_models.train.arguments import check_arguments
from cgh_models.view_recipes import RECIPES

SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 2}
FAMILIES = {  # small members of eight families, made so by timm's own arguments, and ours
    "test_resnet": {},
    "resnet18d": {"channels": (8, 16, 24, 32), "stem_width": 8},
    "regnetx_002": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "test_convnext": {},
    "test_vit": {},
    "swin_tiny_patch4_window7_224": SWIN,
    "resnet18_cifar_w16": {},
}
SMALL = {"projection_width": 8, "hidden_width": 16, "queue_length": 24, "predictor_width": 16}
EARLY = 0.0125  # half of CGH's warm-up: every loss term has a weight
each = pytest.mark.parametrize("name", METHODS)
every = pytest.mark.parametrize("arch", FAMILIES)


def size_of(arch: str) -> int:
    return 32 if arch == "resnet18_cifar_w16" else 64


def build(name: str, arch: str = "resnet18_cifar_w16", **settings):
    torch.manual_seed(0)
    backbone = create(arch, {"input_size": (3, size_of(arch), size_of(arch))}, **FAMILIES[arch])
    known = {f.name for f in dataclasses.fields(METHODS[name].Config)}
    return METHODS[name](
        backbone, METHODS[name].Config(**{k: v for k, v in SMALL.items() if k in known} | settings)
    )


@functools.cache
def recipe_of(name: str) -> str:
    return build(name).view_recipe


def make_views(name: str, arch: str = "resnet18_cifar_w16", count: int = 6, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    sides = [view.side(size_of(arch)) for view in RECIPES[recipe_of(name)]]
    return [torch.randn(count, 3, side, side, generator=generator) for side in sides]


def shake(module: torch.nn.Module, strength: float) -> None:
    """timm starts some scales at zero, and what is behind them without a gradient."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(strength * torch.randn(p.shape, generator=generator))


@each
@every
def test_losses_are_finite_each_has_a_gradient_and_it_reaches_every_student_parameter(name, arch):
    method = build(name, arch)
    assert check_arguments(method, TrainConfig(), "run") == Path("run")
    shake(method.student, 0.02)
    losses = method(make_views(name, arch), EARLY)
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    backbone = list(method.student.backbone.parameters())
    for term, value in losses.items():
        gradients = torch.autograd.grad(value, backbone, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in gradients), term
    losses["loss"].backward()
    assert not [
        key
        for key, p in method.student.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    if hasattr(method, "teacher"):
        assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


@each
@every
def test_the_step_after_moves_the_teacher_towards_the_student_and_the_state_round_trips(name, arch):
    method = build(name, arch, **({"teacher_momentum": 0.75} if has_teacher(name) else {}))
    method(make_views(name, arch), EARLY)
    shake(method.student, 0.1)
    student = {key: p.clone() for key, p in method.student.named_parameters()}
    teacher = (
        {key: p.clone() for key, p in method.teacher.named_parameters()}
        if has_teacher(name)
        else {}
    )
    method.after_step(0.0)
    assert all(torch.equal(p, student[key]) for key, p in method.student.named_parameters())
    for key, old in teacher.items():
        torch.testing.assert_close(
            method.teacher.get_parameter(key), 0.75 * old + 0.25 * student[key]
        )

    other = build(name, arch)
    other.load_state_dict(method.state_dict())
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert list(method.student.backbone.state_dict()) == list(
        create(arch, **FAMILIES[arch]).state_dict()
    )
    method.eval(), other.eval()
    views = make_views(name, arch)
    ours, theirs = method(views, EARLY), other(views, EARLY)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = method(views, EARLY)["loss"]
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(ours["loss"].item(), rel=0.05)


def has_teacher(name: str) -> bool:
    return name != "nnclr"


@each
def test_every_float_of_the_config_changes_a_loss_or_the_teacher(name):
    def outcome(**settings):
        method = build(name, **settings)
        shake(method.student, 0.05)
        losses = method(make_views(name), EARLY)
        method.after_step(EARLY)
        return [*losses.values(), *(method.teacher.parameters() if has_teacher(name) else [])]

    plain = outcome()
    floats = [
        f.name for f in dataclasses.fields(METHODS[name].Config) if isinstance(f.default, float)
    ]
    assert floats
    for field in floats:
        changed = outcome(**{field: 0.9 * getattr(METHODS[name].Config(), field)})
        assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True)), field


queued = pytest.mark.parametrize(
    "name", [name for name, m in METHODS.items() if hasattr(m.Config(), "queue_length")]
)


@queued
@pytest.mark.parametrize("counts", [[5, 7, 3, 24, 31], [1 + 1, 9]])
def test_any_batch_size_wraps_around_the_queue(name, counts):
    method = build(name)
    written = 0
    for count in counts:
        method(make_views(name, count=count), 1.0)
        last = method.queue._pending[0][0]
        method.after_step(1.0)
        kept = last[-24:]
        written += min(count, 24)
        rows = [(written - len(kept) + i) % 24 for i in range(len(kept))]
        assert torch.equal(method.queue.rows[0, rows], kept)
        assert method.queue.position.item() == written % 24


@queued
def test_a_non_finite_step_leaves_the_queue_alone(name):
    method = build(name)
    before = method.queue.rows.clone()
    method(make_views(name), EARLY)
    method.after_step(EARLY, torch.tensor(False))
    assert torch.equal(before, method.queue.rows) and method.queue.position == 0


@pytest.mark.parametrize("name", filter(has_teacher, METHODS))
def test_teacher_and_student_start_equal(name):
    method = build(name)
    student = method.student.state_dict()
    for key, value in method.teacher.state_dict().items():
        assert torch.equal(value, student[key]), key


TEMPERATURES = [
    (name, f.name)
    for name, m in METHODS.items()
    for f in dataclasses.fields(m.Config)
    if "temperature" in f.name
]


@pytest.mark.parametrize("name, field", TEMPERATURES)
def test_a_temperature_too_low_for_float32_is_refused_with_a_sentence(name, field):
    with pytest.raises(Exception, match=f"{field}=0.001: at least {MIN_TEMPERATURE}"):
        METHODS[name].Config(**{field: 0.001})


def test_a_word_that_is_no_choice_is_refused_with_a_sentence():
    with pytest.raises(InputError, match="negatives='all': expected one of queue, batch"):
        METHODS["lewel_m"].Config(negatives="all")


@each
def test_a_backbone_without_feature_maps_works_or_is_one_sentence(name, monkeypatch):
    backbone = create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})
    owner = next(c for c in type(backbone).__mro__ if "forward_intermediates" in vars(c))
    monkeypatch.delattr(owner, "forward_intermediates")
    if name in ("cgh", "lewel", "lewel_m"):
        with pytest.raises(
            InputError, match=r"taps=\d: resnet18_cifar_w16 does not give that many feature maps"
        ):
            METHODS[name](backbone)
    else:
        assert METHODS[name](backbone).student.backbone is backbone


def test_a_config_without_some_fields_is_completed_with_their_defaults():
    images = {"input_size": (3, 32, 32)}
    old = {"projection_width": 8, "hidden_width": 16, "queue_length": 24}  # before `multi_crop`
    method = build_method("ressl", "resnet18_cifar_w16", images, old)
    assert method.config == METHODS["ressl"].Config(**old)
    with pytest.raises(InputError, match="there is no key 'queue_size', did you mean queue_length"):
        build_method("ressl", "resnet18_cifar_w16", images, {"queue_size": 24})


@each
def test_residuals_start_and_evaluations_resize_as_the_authors_have_it(name):
    torch.manual_seed(0)
    method = build_method(name, "resnet18_cifar_w16", {"input_size": (3, 32, 32)}, None)
    torch.manual_seed(0)
    earlier = build_method(name, "resnet18_cifar_w16", {}, from_older(METHODS[name].Config, {}))
    assert build_method(name, "resnet18_cifar_w16", {}, {}).config == METHODS[name].Config()
    old_ways = name in ("byol", "nnclr")  # theirs are timm's, too
    start = 0.0 if old_ways or name == "mnclglf" else 1.0
    for model in (method.student.backbone, getattr(method, "teacher", method.student).backbone):
        assert {block.bn2.weight.unique().item() for block in model.layer3} == {start}
    cfg = method.student.backbone.pretrained_cfg
    assert cfg["interpolation"] == ("bicubic" if old_ways else "bilinear")
    assert earlier.student.backbone.pretrained_cfg["interpolation"] == "bicubic"
    assert not earlier.student.backbone.layer3[0].bn2.weight.any()
    for key, value in method.student.backbone.state_dict().items():  # the same random numbers
        if "bn2" not in key:
            assert torch.equal(value, earlier.student.backbone.state_dict()[key]), key


def test_families_without_such_norms_are_left_as_they_are():
    torch.manual_seed(0)
    plain = create("test_vit", {"input_size": (3, 64, 64)}).state_dict()
    torch.manual_seed(0)
    settings = {"projection_width": 8, "hidden_width": 16, "queue_length": 24}
    method = build_method("ressl", "test_vit", {"input_size": (3, 64, 64)}, settings)
    made = method.student.backbone.state_dict()
    assert all(torch.equal(made[key], value) for key, value in plain.items())


def test_a_method_that_does_not_exist_is_one_sentence_with_those_that_do():
    with pytest.raises(InputError, match="method 'cgg': there is no such method; .* cgh, lewel"):
        build_method("cgg", "resnet18_cifar_w16", {}, None)
