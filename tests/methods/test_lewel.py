"""LEWEL_B and our LEWEL_M against the equations, in NumPy."""

import golden
import numpy as np
import pytest
import torch
from golden import array, normed_head, scatter, state, unit

from cgh_models.backbone import create
from cgh_models.errors import InputError
from cgh_models.methods.lewel import LEWEL, LEWELM, AlignedBranch, alignment_maps
from cgh_models.schedule import cosine_momentum

ARCH = "resnet18_cifar_w16"  # an embedding of 128, maps of 4 x 4


def build(method, arch=ARCH, size=32, **settings):
    torch.manual_seed(0)
    backbone = create(arch, {"input_size": (3, size, size)})
    made = method(
        backbone, method.Config(**(dict(projection_width=8, hidden_width=16, heads=2) | settings))
    )
    scatter(made.student, 0.05, seed=1)
    scatter(made.teacher, 0.05, seed=2)
    return made


def two_views(count, size=32):
    return list(torch.randn(2, count, 3, size, size, generator=torch.Generator().manual_seed(3)))


@torch.no_grad()
def numpy_branch(branch, images, heads, map_temperature=1.0):
    """z (N, P), aligned (N, M, P) and the maps (N, heads, M, h, w), from timm's output on."""
    embedding = array(branch.backbone(images))
    final = array(
        branch.backbone.forward_intermediates(images, indices=1, intermediates_only=True)[0]
    )
    n, c, h, w = final.shape
    s, training = state(branch), branch.training
    if (widen := s.get("widen.weight")) is not None:
        final = np.einsum("dc,nchw->ndhw", widen, final)
        c = len(widen)
    pixels = final.reshape(n, c, h * w).transpose(0, 2, 1)
    rows = np.concatenate([embedding[:, None], pixels], 1)  # one batch for the norm
    g = {k.removeprefix("projector."): v for k, v in s.items() if k.startswith("projector.")}
    p = {
        k.removeprefix("aligned_projector."): v
        for k, v in s.items()
        if k.startswith("aligned_projector.")
    }
    projected = normed_head(g, rows.reshape(-1, c), training).reshape(n, 1 + h * w, -1)
    scores = unit(projected[:, 1:]) / map_temperature  # (N, pixels, P)
    weights = np.exp(
        golden.log_softmax(scores.transpose(0, 2, 1))
    )  # (N, P, pixels): softmax over the pixels
    m, part = weights.shape[1] // heads, c // heads
    aligned = np.zeros((n, m, c))
    for head in range(heads):
        for k in range(m):
            own = slice(head * part, (head + 1) * part)
            aligned[:, k, own] = (weights[:, head * m + k, :, None] * pixels[:, :, own]).sum(1)
    out = normed_head(p, aligned.reshape(-1, c), training).reshape(n, m, -1)
    return projected[:, 0], out, weights.reshape(n, heads, m, h, w)


GRID = [  # batch, heads, projection, hidden
    (2, 1, 8, 16),
    (5, 2, 8, 24),
    (4, 4, 16, 8),
    (3, 4, 4, 32),
]


@pytest.mark.parametrize("average_norms", [True, False], ids=["EMAN", "parameters only"])
@pytest.mark.parametrize("batch, heads, projection, hidden", GRID)
def test_the_losses_of_lewel_are_the_equations(batch, heads, projection, hidden, average_norms):
    method = build(
        LEWEL,
        heads=heads,
        projection_width=projection,
        hidden_width=hidden,
        map_temperature=0.2,
        global_weight=0.3,
        average_norms=average_norms,
    )
    views = two_views(batch)
    assert method.teacher.training is not average_norms
    student = [numpy_branch(method.student, view, heads, 0.2)[:2] for view in views]
    teacher = [numpy_branch(method.teacher, view, heads, 0.2)[:2] for view in views]
    q, q_aligned = state(method.student.predictor), state(method.student.aligned_predictor)
    whole = aligned = 0.0
    for (z, a), (z_target, a_target) in ((student[0], teacher[1]), (student[1], teacher[0])):
        whole += golden.cosine_loss(normed_head(q, z), z_target)
        predicted = normed_head(q_aligned, a.reshape(-1, projection))
        aligned += golden.cosine_loss(predicted, a_target.reshape(-1, projection))
    losses = {key: value.item() for key, value in method(views, 0.5).items()}
    wanted = {"global": whole, "aligned": aligned, "loss": 0.3 * whole + 0.7 * aligned}
    assert losses == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("negatives", ["queue", "batch"])
@pytest.mark.parametrize("batch, heads, projection, hidden", GRID)
def test_the_losses_of_lewel_m_are_our_equations(batch, heads, projection, hidden, negatives):
    method = build(
        LEWELM,
        heads=heads,
        projection_width=projection,
        hidden_width=hidden,
        map_temperature=0.2,
        global_weight=0.3,
        queue_length=20,
        negatives=negatives,
    )
    first, second = two_views(batch)
    z, a, _ = map(unit, numpy_branch(method.student, first, heads, 0.2))
    z_target, a_target, _ = map(unit, numpy_branch(method.teacher, second, heads, 0.2))
    queue, aligned_queue = array(method.queue.rows)
    each = []
    for k in range(projection // heads):
        if negatives == "queue":
            each.append(golden.info_nce(a[:, k], a_target[:, k], aligned_queue, 0.2))
        else:
            each.append(golden.batch_info_nce(a[:, k], a_target[:, k], 0.2))
    whole = golden.info_nce(z, z_target, queue, 0.2)
    losses = {key: value.item() for key, value in method([first, second], 0.5).items()}
    wanted = {"global": whole, "aligned": np.mean(each), "loss": 0.3 * whole + 0.7 * np.mean(each)}
    assert losses == pytest.approx(wanted, rel=1e-5)


def test_the_queues_of_lewel_m_take_the_teachers_projection_and_the_aligned_ones_in_turn():
    method = build(LEWELM, queue_length=20)  # four aligned embeddings an image
    for start, batch in ((0, 6), (6, 3)):
        views = two_views(batch)
        z, a, _ = map(unit, numpy_branch(method.teacher, views[1], 2))
        before = method.queue.rows.clone()
        method(views, 0.0)
        assert torch.equal(before, method.queue.rows)
        method.after_step(0.0)
        queue, aligned_queue = array(method.queue.rows[:, start : start + batch])
        np.testing.assert_allclose(queue, z, atol=1e-5)
        for row in range(batch):
            np.testing.assert_allclose(aligned_queue[row], a[row, (start + row) % 4], atol=1e-5)


@pytest.mark.parametrize("heads, projection", [(1, 8), (2, 8), (4, 16), (8, 8)])
def test_there_are_projection_width_over_heads_aligned_embeddings(heads, projection):
    branch = build(LEWEL, heads=heads, projection_width=projection).student
    z, aligned = AlignedBranch.forward(branch, two_views(3)[0])
    assert z.shape == (3, projection) and aligned.shape == (3, projection // heads, projection)


def test_a_map_narrower_than_the_embedding_is_widened_and_the_rest_is_the_same():
    branch = build(
        LEWEL, "mobilenetv3_small_050", 64
    ).student.eval()  # its head widens what it has pooled
    images = two_views(2, 64)[0]
    embedded = branch.backbone(images).shape[1]
    assert branch.widen.weight.shape[0] == embedded > branch.widen.weight.shape[1]
    for mine, wanted in zip(branch(images), numpy_branch(branch, images, 2), strict=False):
        np.testing.assert_allclose(array(mine), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "arch", [ARCH, "test_resnet", "test_byobnet", "test_efficientnet", "test_nfnet"]
)
def test_the_pooled_vector_is_the_mean_of_the_pixels(arch):
    branch = build(LEWEL, arch, 64).student.eval()
    images = two_views(2, 64)[0]
    pixels = array(branch.coupled(images)[1])
    np.testing.assert_allclose(pixels.mean(1), array(branch.backbone(images)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [LEWEL, LEWELM])
@pytest.mark.parametrize("training", [True, False])
def test_alignment_maps_sum_to_one_and_are_the_students_in_eval_mode(method, training):
    made = build(method, projection_width=16, heads=4, map_temperature=0.1).train(training)
    modes = [m.training for m in made.modules()]
    before = {key: value.clone() for key, value in made.state_dict().items()}
    images = two_views(3)[0]
    maps = alignment_maps(made, images)
    assert maps.shape == (3, 4, 4, 4, 4) and not maps.requires_grad
    np.testing.assert_allclose(array(maps).sum((3, 4)), 1, rtol=1e-6)
    assert maps.std() > 1e-3  # at this temperature they are not uniform
    assert [m.training for m in made.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    np.testing.assert_allclose(
        array(maps), numpy_branch(made.student.eval(), images, 4, 0.1)[2], rtol=1e-4
    )


def test_alignment_maps_of_a_map_that_is_not_square_keep_its_rows_and_columns():
    made = build(LEWEL, map_temperature=0.1)
    images = torch.randn(2, 3, 32, 64)
    maps = alignment_maps(made, images)
    assert maps.shape[3:] == (4, 8)
    np.testing.assert_allclose(
        array(maps), numpy_branch(made.student.eval(), images, 2, 0.1)[2], rtol=1e-4
    )


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_with_averaged_norms_the_whole_teacher_follows_and_stays_in_eval_mode(progress):
    method = build(LEWEL, teacher_momentum=0.9)
    method.train()
    assert (
        method.training
        and method.student.training
        and not any(m.training for m in method.teacher.modules())
    )
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    method(two_views(4), progress)
    for key, value in method.teacher.state_dict().items():  # it does not use its batch
        assert torch.equal(value, before[key]), key
    method.after_step(progress)
    share, student = cosine_momentum(0.9, progress), method.student.state_dict()
    moved = [key for key in before if before[key].is_floating_point()]
    assert sum("running_" in key for key in moved) > 10
    for key, value in method.teacher.state_dict().items():
        if key in moved:
            assert not torch.equal(before[key], student[key]), key
            torch.testing.assert_close(value, share * before[key] + (1 - share) * student[key])
        else:
            assert (
                key.endswith("num_batches_tracked")
                and torch.equal(value, student[key])
                and value > 0
            )


def test_without_averaged_norms_the_teacher_has_statistics_of_its_own():
    method = build(LEWEL, average_norms=False, teacher_momentum=0.9).train()
    assert method.teacher.training
    running = [
        key for key in method.teacher.state_dict() if "running_" in key or key.endswith("tracked")
    ]
    before = {key: method.teacher.state_dict()[key].clone() for key in running}
    method(two_views(4), 0.0)
    seen = {key: method.teacher.state_dict()[key].clone() for key in running}
    assert all(not torch.equal(before[key], seen[key]) for key in running)
    method.after_step(0.0)
    assert all(torch.equal(seen[key], method.teacher.state_dict()[key]) for key in running)


def test_only_the_norms_of_the_heads_have_biases():
    method = build(LEWEL)
    for head in ("projector", "aligned_projector", "predictor", "aligned_predictor"):
        keys = {key for key, _ in getattr(method.student, head).named_parameters()}
        assert keys == {"0.weight", "1.weight", "1.bias", "3.weight"}, head
    assert not any("predictor" in key for key in method.teacher.state_dict())


@pytest.mark.parametrize(
    "heads, projection", [(3, 8), (5, 8), (16, 8), (256, 256), (6, 9), (10, 100)]
)
def test_heads_that_do_not_divide_a_width_are_refused_with_a_value_that_divides_both(
    heads, projection
):
    with pytest.raises(InputError) as refusal:
        build(LEWEL, heads=heads, projection_width=projection)
    sentence = str(refusal.value)
    assert (
        sentence.startswith(f"heads={heads}: has to divide")
        and ARCH in sentence
        and "\n" not in sentence
    )
    build(LEWEL, heads=int(sentence.rpartition("heads=")[2]), projection_width=projection)


@pytest.mark.parametrize("method", [LEWEL, LEWELM])
def test_the_two_losses_share_one(method):
    with pytest.raises(InputError, match="global_weight=2.*: at least 0 and at most 1"):
        method.Config(global_weight=2.0)
