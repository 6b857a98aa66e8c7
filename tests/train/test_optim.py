"""Which parameters are decayed or adapted, and what a step does with each optimizer."""

import dataclasses

import pytest
import timm
import torch
from small_runs import QUICK, build

from cgh_models.backbone import start_norms_at_one
from cgh_models.cli.main import parse
from cgh_models.methods import METHODS
from cgh_models.recipes import train_config
from cgh_models.train.checkpoint import read_run
from cgh_models.train.optim import Lars, create_optimizer, orthogonalized, parameter_groups
from cgh_models.train.step import train_step


def names(method, groups, **wanted):
    """Names of the student's parameters in the groups whose keys have these values."""
    found = {
        id(p)
        for group in groups
        if all(group[k] == v for k, v in wanted.items())
        for p in group["params"]
    }
    return {name for name, p in method.student.named_parameters() if id(p) in found}


def undecayed(name, **train):
    method = build(name)
    groups = parameter_groups(method, dataclasses.replace(QUICK, weight_decay=0.1, **train))
    assert sum(len(group["params"]) for group in groups) == len(list(method.student.parameters()))
    return names(method, groups, weight_decay=0.0)


@pytest.mark.parametrize("name", ["cgh", "lewel", "mnclglf"])
def test_norms_and_biases_are_not_decayed_by_type(name):
    kept = undecayed(name)
    method = build(name)
    expected = {key for key, p in method.student.named_parameters() if p.ndim == 1}
    assert kept == expected and "backbone.layer2.0.bn1.weight" in kept
    assert undecayed(name, decay_norms=True) == set()


def test_norms_that_torch_does_not_know_and_scales_are_not_decayed():
    method = build(
        "moco_v2", arch="convnextv2_atto", config=dataclasses.replace(QUICK, image_size=64)
    )
    groups = parameter_groups(method, QUICK)
    kept = names(method, groups, weight_decay=0.0)
    assert any(".grn.weight" in key for key in kept) and all(
        ".norm" not in key for key in names(method, groups) - kept
    )


@pytest.mark.parametrize("name", METHODS)
def test_on_small_images_everything_is_decayed_as_the_authors_do_by_either_rule(name):
    assert (
        undecayed(name, decay_norms=True)
        == undecayed(name, decay_norms=True, paper_faithful=True)
        == set()
    )


def test_adamw_brings_a_rate_and_a_decay_of_its_own():
    for recipe in ("imagenet", "cifar"):
        train = train_config(recipe, "byol", "adamw")
        assert (train.optimizer, train.base_lr, train.weight_decay, train.decay_norms) == (
            "adamw",
            5e-4,
            0.05,
            False,
        )


def test_the_authors_rules_go_by_name():
    cgh, lewel = undecayed("cgh", paper_faithful=True), undecayed("lewel", paper_faithful=True)
    assert "backbone.layer1.0.bn1.weight" in cgh and "projector.0.bias" in cgh
    assert (
        "backbone.layer2.0.downsample.1.weight" not in cgh and "hypercolumn.norm.weight" not in cgh
    )
    assert "backbone.layer2.0.downsample.1.weight" in lewel and "backbone.bn1.weight" in lewel
    heads = {f"{name}.1.weight" for name in ("projector", "aligned_projector", "predictor")}
    assert heads | {"aligned_predictor.1.weight"} <= lewel  # EMAN: the norms of the heads, too
    assert (
        undecayed("mnclglf", paper_faithful=True)
        == undecayed("moco_v2", paper_faithful=True)
        == undecayed("sce", paper_faithful=True)
        == set()
    )
    assert undecayed("byol", paper_faithful=True) == undecayed("byol")  # its authors go by type


@pytest.mark.parametrize("setting", ["average_norms", "exempt_head_norms"])
def test_without_eman_and_in_earlier_runs_the_norms_of_lewels_heads_are_decayed(setting):
    method = build("lewel", **{setting: False})
    groups = parameter_groups(method, dataclasses.replace(QUICK, paper_faithful=True))
    kept = names(method, groups, weight_decay=0.0)
    assert "backbone.bn1.weight" in kept and not [key for key in kept if "or.1.weight" in key]


def test_the_predictor_of_mnclglf_keeps_its_rate_while_the_others_follow_the_schedule():
    method = build("mnclglf")
    optimizer = create_optimizer(method, dataclasses.replace(QUICK, base_lr=1.6))
    train_step(
        method, optimizer, list(torch.randn(3, 4, 3, 32, 32)), 0.5, 0.02, "cpu", torch.float32
    )
    held = names(method, optimizer.param_groups, lr=QUICK.batch_size / 256 * 1.6)
    assert held == {
        name for name, _ in method.student.named_parameters() if name.startswith("predictor.")
    }
    assert (
        names(method, optimizer.param_groups, lr=0.02)
        == {n for n, _ in method.student.named_parameters()} - held
    )


def test_gradients_are_clipped_to_the_norm_together():
    moved = {}
    for clip in (0.0, 0.01):
        method = build("ressl")
        before = [p.clone() for p in method.student.parameters()]
        config = dataclasses.replace(QUICK, momentum=0.0, weight_decay=0.0)
        views = list(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        out = train_step(
            method, create_optimizer(method, config), views, 0.5, 1.0, "cpu", torch.float32, clip
        )
        steps = [b - p.detach() for b, p in zip(before, method.student.parameters(), strict=True)]
        moved[clip] = torch.nn.utils.get_total_norm(steps)
        assert out["grad_norm"] > 0.01
    assert moved[0.01].item() == pytest.approx(0.01, rel=1e-2) and moved[0.0] > 0.02


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "lars in momentum", "adamw", "muon"])
def test_a_non_finite_step_leaves_student_optimizer_and_queue_as_they_were(optimizer, taken):
    """The first step, and one after others; what follows is what would have come without it."""
    name, *inside = optimizer.split(" ", 1)
    config = dataclasses.replace(QUICK, optimizer=name, lr_in_momentum=bool(inside))
    method, other = build("moco_v2"), build("moco_v2")
    steps, others = create_optimizer(method, config), create_optimizer(other, config)
    views = list(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    bad = [views[0].clone().index_fill_(0, torch.tensor([0]), float("inf")), views[1]]
    for _ in range(taken):
        train_step(method, steps, views, 0.5, 0.1, "cpu", torch.float32)
        train_step(other, others, views, 0.5, 0.1, "cpu", torch.float32)
    norms = {key: value.clone() for key, value in method.named_buffers() if "queue" not in key}
    assert train_step(method, steps, bad, 0.5, 0.1, "cpu", torch.float32)["finite"] == 0
    for key, value in norms.items():  # which only evaluation reads
        method.get_buffer(key).copy_(value)
    if hasattr(method, "teacher"):
        method.teacher.load_state_dict(other.teacher.state_dict())  # it followed the student
    for number in range(2):
        for key, value in method.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), (number, key)
        for one, state in zip(steps.param_groups, others.param_groups, strict=True):
            for p, q in zip(one["params"], state["params"], strict=True):
                for key, value in steps.state[p].items():
                    expected = others.state[q].get(key, torch.zeros_like(value))
                    assert torch.equal(value, expected), (number, key)
        train_step(method, steps, views, 0.5, 0.1, "cpu", torch.float32)
        train_step(other, others, views, 0.5, 0.1, "cpu", torch.float32)


def test_lars_is_timms_to_the_bit_and_takes_the_rate_into_its_momentum_if_asked():
    """Source of the latter: utils/LARS.py of EMAN, which the authors of LEWEL train with."""
    rates = (0.0, 0.3, 0.1)
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.zeros(3, 2), torch.randn(5)]
    gradients = [[torch.randn_like(p) for p in start] for _ in rates]
    gradients[1][0].zero_()

    def groups():
        parameters = [torch.nn.Parameter(p.clone()) for p in start]
        decayed = {"params": parameters[:2], "weight_decay": 0.1, "always_adapt": True}
        kept = {"params": parameters[2:], "weight_decay": 0.0, "always_adapt": False}
        return parameters, [decayed, kept]

    (ours, one), (timms, two), (inside, three) = groups(), groups(), groups()
    optimizers = [Lars(one, 1.0, 0.9, False), timm.optim.Lars(two, momentum=0.9)]
    optimizers.append(Lars(three, 1.0, 0.9, True))
    steps = [torch.zeros_like(p) for p in start]
    expected = [p.clone() for p in start]
    for lr, given in zip(rates, gradients, strict=True):
        for number, g in enumerate(given):
            p, scale, decay = expected[number], 1.0, 0.1 if number < 2 else 0.0
            if number < 2 and p.norm() > 0 and g.norm() > 0:
                scale = 0.001 * p.norm() / (g.norm() + 0.1 * p.norm())
            steps[number] = 0.9 * steps[number] + lr * scale * (g + decay * p)
            expected[number] = p - steps[number]
        for parameters, optimizer in zip((ours, timms, inside), optimizers, strict=True):
            for p, g in zip(parameters, given, strict=True):
                p.grad = g.clone()
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, timms, strict=True))
    for p, value in zip(inside, expected, strict=True):
        torch.testing.assert_close(p.detach(), value)


def test_lars_scales_a_decayed_weights_step_by_its_norm_and_leaves_norms_alone():
    """Source of the equation: You et al., arXiv 1708.03888, section 4, trust coefficient 0.001."""
    method = build("byol")
    config = dataclasses.replace(QUICK, optimizer="lars", weight_decay=0.5, momentum=0.0)
    optimizer = create_optimizer(method, config)
    weight, norm = method.student.projector[0].weight, method.student.projector[1].weight
    before = weight.detach().clone(), norm.detach().clone()
    method(list(torch.randn(2, 8, 3, 32, 32)), 0.5)["loss"].backward()
    gradients = weight.grad.clone(), norm.grad.clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    trust = 0.001 * before[0].norm() / (gradients[0].norm() + 0.5 * before[0].norm())
    torch.testing.assert_close(
        weight.detach(), before[0] - 0.2 * trust * (gradients[0] + 0.5 * before[0])
    )
    torch.testing.assert_close(norm.detach(), before[1] - 0.2 * gradients[1])


@pytest.mark.parametrize(
    "arch, left_out",
    [
        ("test_resnet", {"conv1.0.weight"}),
        ("test_vit", {"patch_embed.proj.weight", "pos_embed", "cls_token"}),
        ("test_convnext", {"stem.0.weight"}),  # and convolutions of single channels
    ],
)
def test_muon_takes_the_matrices_of_the_backbone_but_its_first_layers(arch, left_out):
    method = build("cgh", arch=arch)
    config = dataclasses.replace(QUICK, optimizer="muon", weight_decay=0.5)
    groups = parameter_groups(method, config)
    of_backbone = dict(method.student.backbone.named_parameters())
    matrices = {name for name, p in of_backbone.items() if p.ndim > 1 and p.shape[1] > 1}
    matrices -= left_out
    assert left_out <= set(of_backbone) and len(matrices) > 8
    found = names(method, groups, orthogonal=True, momentum=0.0)
    assert found == {f"backbone.{name}" for name in matrices}
    assert names(method, groups, orthogonal=True, weight_decay=0.5) == found
    rest = {name for name, _ in method.student.named_parameters()} - found
    assert names(method, groups, orthogonal=False, momentum=0.9) == rest
    same = parameter_groups(method, dataclasses.replace(config, optimizer="sgd"))
    assert names(method, groups, weight_decay=0.0) == names(method, same, weight_decay=0.0)


def test_muons_steps_of_matrices_are_orthogonal_and_the_others_are_those_of_sgd():
    views = list(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    moved = {}
    for optimizer in ("sgd", "muon"):
        method = build("cgh")
        start_norms_at_one(method.student)  # else no gradient passes the residuals' last norms
        before = {name: p.clone() for name, p in method.student.named_parameters()}
        changes = {"weight_decay": 0.0, "precision": "float32"}
        config = dataclasses.replace(QUICK, optimizer=optimizer, **changes)
        steps = create_optimizer(method, config)
        train_step(method, steps, views, 0.5, 0.1, "cpu", torch.float32)
        after = dict(method.student.named_parameters())
        moved[optimizer] = {name: (p - after[name]).detach() for name, p in before.items()}
    taken = names(method, steps.param_groups, orthogonal=True)
    for name, step in moved["muon"].items():
        gradient = moved["sgd"][name]
        if name not in taken:
            assert torch.equal(step, gradient)
            continue
        # Nesterov's first gradient differs from the gradient by a factor alone.
        nearest = 0.1 * orthogonalized(gradient.flatten(1)[None]).view(step.shape)
        torch.testing.assert_close(step, nearest, rtol=1e-3, atol=1e-5)


def test_an_orthogonalized_matrix_turns_as_the_gradient_and_has_equal_singular_values():
    matrices = torch.randn(3, 16, 144, generator=torch.Generator().manual_seed(0))
    for made, matrix in zip(orthogonalized(matrices), matrices, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6 and values.max() < 1.3
        assert torch.cosine_similarity(made.flatten(), (u @ v).flatten(), dim=0) > 0.97
    assert not orthogonalized(torch.zeros(1, 4, 8)).any()


def test_a_step_of_muon_is_the_same_however_weights_lie_in_memory():
    config = dataclasses.replace(QUICK, optimizer="muon", precision="float32")
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        method = build("cgh").to(memory_format=layout)
        steps = create_optimizer(method, config)
        generator = torch.Generator().manual_seed(0)
        for p in method.student.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
        steps.found_inf = torch.zeros(())
        before = [p.detach().clone() for p in method.student.parameters()]
        steps.step()
        after = method.student.parameters()
        moved.append([old - new.detach() for old, new in zip(before, after, strict=True)])
    for contiguous, last in zip(*moved, strict=True):
        torch.testing.assert_close(contiguous, last, rtol=1e-4, atol=1e-7, check_stride=False)


def test_the_fast_recipe_trains_from_the_command_line(image_root, tmp_path):
    words = ["pretrain", "--data", str(image_root / "train"), "--out", str(tmp_path / "run")]
    words += ["--recipe", "cifar-fast", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
    parse([*words, "--set", "hidden_width=16"]).run()
    run = read_run(tmp_path / "run")
    assert (run["arch"], run["train"]["optimizer"]) == ("resnet10_cifar_fast", "muon")
    assert run["train"]["base_lr"] == train_config("imagenet", "lewel", "muon").base_lr == 0.12


def test_the_iteration_is_timms():
    muon = pytest.importorskip("timm.optim.muon", reason="timm has it from 1.0.23 on")
    for shape in ((3, 16, 144), (1, 64, 16)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        same = muon.zeropower_via_newtonschulz(
            matrices, 5, [(3.4445, -4.7750, 2.0315)], dtype=torch.float32
        )
        torch.testing.assert_close(orthogonalized(matrices), same)
