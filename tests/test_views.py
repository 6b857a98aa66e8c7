"""View recipes: torchvision's distributions and operations, Pillow's pixels, numbers that depend on the image alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from cgh_models import views
from cgh_models.batches import batches
from cgh_models.config import TrainConfig
from cgh_models.data import load
from cgh_models.views import COLUMNS, RECIPES, STRONG, WEAK, View, boxes, crop_batch, crop_image, finish, uniform

ZERO, ONE = torch.zeros(3), torch.ones(3)


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return uniform(seed, 0, np.arange(count), COLUMNS)


def pictures(count: int, size: int = 32) -> torch.Tensor:
    """Smooth colours with sharp edges, uint8 (N, H, W, 3)."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    return torch.from_numpy(np.stack([np.array(Image.fromarray(p).resize((size, size), 3)) for p in low]))


def test_random_numbers_are_uniform_and_independent_of_the_batch():
    u = numbers(4000)
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(0), 0.5, atol=5 / (12 * 4000) ** 0.5)
    np.testing.assert_allclose(u.var(0), 1 / 12, rtol=0.1)
    correlation = np.corrcoef(np.concatenate([u, uniform(0, 1, np.arange(4000), 3)], 1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08
    np.testing.assert_array_equal(u[[7, 3]], uniform(0, 0, np.array([7, 3]), COLUMNS))
    assert (uniform(1, 0, np.arange(50), 4) != u[:50, :4]).all() and (
        uniform(0, 0, np.arange(50), 4, 1) != u[:50, :4]
    ).all()


@pytest.mark.parametrize("height, width", [(32, 32), (60, 200)])
def test_crop_boxes_have_torchvisions_distribution(height, width):
    count = 6000
    ours = boxes(WEAK, numbers(count), height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    spread = np.sqrt(ours.var(0) / count + theirs.var(0) / count)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * spread + 1e-9).all()
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.06)
    for ours_side, their_side in zip(ours.T, theirs.T, strict=True):  # the whole distribution, not only two moments
        grid = np.unique(np.concatenate([ours_side, their_side]))
        gap = np.abs(
            np.searchsorted(np.sort(ours_side), grid, "right") - np.searchsorted(np.sort(their_side), grid, "right")
        )
        assert gap.max() / count < 0.04
    assert (
        (ours[:, :2] >= 0).all()
        and (ours[:, 0] + ours[:, 2] <= height).all()
        and (ours[:, 1] + ours[:, 3] <= width).all()
    )


def test_an_image_no_box_fits_gets_a_centred_one():
    box = boxes(View(scale=(1.0, 1.0)), numbers(5), 10, 1000)
    assert (box == [0, (1000 - 13) // 2, 10, 13]).all()


@pytest.mark.parametrize("size", [32, 24, 48])
def test_batched_crops_are_within_one_step_of_pillows(size):
    pixels = pictures(64)
    box = boxes(WEAK, numbers(64), 32, 32)
    batched = crop_batch(pixels, box, size)
    pillow = torch.stack([crop_image(Image.fromarray(p.numpy()), b, size) for p, b in zip(pixels, box, strict=True)])
    assert (batched.round() - pillow.float()).abs().max() <= 1


@pytest.mark.parametrize(
    "ours, theirs, factors",
    [
        (views._brightness, TF.adjust_brightness, [0.6, 1.0, 1.4]),
        (views._contrast, TF.adjust_contrast, [0.6, 1.0, 1.4]),
        (views._saturation, TF.adjust_saturation, [0.6, 1.0, 1.4]),
        (views._hue, TF.adjust_hue, [-0.1, 0.0, 0.1, 0.5]),
    ],
)
def test_colour_operations_are_torchvisions(ours, theirs, factors):
    x = pictures(8).permute(0, 3, 1, 2) / 255
    x[0] = 0.5  # grey: no hue
    for factor in factors:
        result = ours(x, torch.full((8, 1, 1, 1), factor))
        torch.testing.assert_close(result, theirs(x, factor), atol=2e-3, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions_away_from_the_edge(sigma):
    x = pictures(4).permute(0, 3, 1, 2) / 255
    ours = views._gaussian(x, torch.full((4, 1, 1, 1), sigma))
    theirs = TF.gaussian_blur(x, [17, 17], [sigma, sigma])
    torch.testing.assert_close(ours[:, :, 8:-8, 8:-8], theirs[:, :, 8:-8, 8:-8], atol=1e-3, rtol=0)


def test_grey_is_pillows_luma():
    x = pictures(4)
    grey = views._grey(x.permute(0, 3, 1, 2).float())[:, 0]
    pillow = np.stack([np.array(Image.fromarray(p.numpy()).convert("L")) for p in x])
    assert np.abs(grey.numpy() - pillow).max() <= 1


def test_a_view_is_the_same_in_any_batch():
    pixels = pictures(16)

    def strong(indices):
        u = uniform(3, 5, np.array(indices), COLUMNS, 1)
        return finish(STRONG, crop_batch(pixels[indices], boxes(STRONG, u, 32, 32), 32), u, ZERO, ONE)

    whole = strong(list(range(16)))
    torch.testing.assert_close(strong([9, 2]), whole[[9, 2]], atol=1e-5, rtol=0)


def test_the_strong_view_does_what_it_says_as_often_as_it_says():
    count = 3000
    pixels = pictures(1).expand(count, -1, -1, -1)
    u = numbers(count)
    crops = pixels.permute(0, 3, 1, 2).float()
    plain = finish(View(flip=0), crops, u, ZERO, ONE)

    def share(changed):
        return (changed - plain).abs().amax((1, 2, 3)).gt(1e-3).float().mean().item()

    assert share(finish(View(), crops, u, ZERO, ONE)) == pytest.approx(0.5, abs=0.04)
    assert share(finish(View(flip=0, jitter_p=0.8), crops, u, ZERO, ONE)) == pytest.approx(0.8, abs=0.04)
    assert share(finish(View(flip=0, grey_p=0.2), crops, u, ZERO, ONE)) == pytest.approx(0.2, abs=0.04)
    assert share(finish(View(flip=0, blur_p=0.5, sigma=(1, 2)), crops, u, ZERO, ONE)) == pytest.approx(0.5, abs=0.04)


def test_views_are_normalized_with_the_given_statistics():
    crops = pictures(4).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    x = finish(View(flip=0), crops, numbers(4), mean, std)
    torch.testing.assert_close(x * std[:, None, None] + mean[:, None, None], crops / 255)


def test_the_recipe_of_cgh_and_ressl_is_a_weak_and_a_strong_view():
    weak, strong = RECIPES["weak_strong"]
    assert (weak.jitter_p, weak.grey_p, weak.blur_p, weak.scale) == (0, 0, 0, (0.2, 1.0))
    assert (strong.jitter_p, strong.jitter, strong.grey_p, strong.blur_p) == (0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5)


def test_the_column_of_solarize_changed_no_other_random_number():
    assert COLUMNS == 36 and views._SOLARIZE == 35
    for stream in (0, 1, 1000):
        before, now = (uniform(3, 2, np.arange(50), columns, stream) for columns in (35, 36))
        np.testing.assert_array_equal(now[:, :35], before)
    crops, u = pictures(16).permute(0, 3, 1, 2).float(), numbers(16)
    other = u.copy()
    other[:, 35] = 1 - u[:, 35]
    for view in (WEAK, STRONG, *views.SMALL):
        assert torch.equal(finish(view, crops, u, ZERO, ONE), finish(view, crops, other, ZERO, ONE))


def test_solarize_is_torchvisions_from_128_on():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for crops in (every, pictures(8).permute(0, 3, 1, 2)):
        ours = finish(View(flip=0, solarize_p=1), crops, numbers(len(crops)), ZERO, ONE)
        torch.testing.assert_close(ours, TF.solarize(crops, 128) / 255)
    first = finish(View(flip=0, solarize_p=1), every, numbers(1), ZERO, ONE).flatten()
    assert first[127] == 127 / 255 and first[128] == pytest.approx(127 / 255)


def test_solarize_takes_the_images_its_own_number_chooses_and_no_others():
    count = 1000
    crops, u = pictures(1).expand(count, -1, -1, -1).permute(0, 3, 1, 2), numbers(count)
    x = finish(View(flip=0, solarize_p=0.2), crops, u, ZERO, ONE)
    changed = (x - crops / 255).abs().amax((1, 2, 3)).numpy() > 1e-3
    np.testing.assert_array_equal(changed, u[:, 35] < 0.2)
    assert changed.mean() == pytest.approx(0.2, abs=0.05)
    assert torch.equal(x, finish(View(flip=0, solarize_p=0.2), crops, u, ZERO, ONE))


def test_the_recipes_of_byol_and_lewel_blur_one_view_always_and_solarize_the_other_sometimes():
    first, second = RECIPES["asymmetric"]
    assert (first.blur_p, first.solarize_p, second.blur_p, second.solarize_p) == (1.0, 0.0, 0.1, 0.2)
    for view in (first, second):
        assert (view.jitter, view.jitter_p, view.grey_p) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (view.sigma, view.flip, view.scale, view.size) == ((0.1, 2.0), 0.5, (0.2, 1.0), 1.0)
    assert [view.blur_p for view in RECIPES["asymmetric_sharp"]] == [0, 0]
    assert [view.solarize_p for view in RECIPES["asymmetric_sharp"]] == [0.0, 0.2]


@pytest.mark.parametrize("size, sides", [(224, [192, 160, 128, 96]), (64, [55, 46, 37, 27]), (32, [27, 23, 18, 14])])
def test_the_small_views_of_multi_crop_are_the_authors_shares_of_the_image(size, sides):
    weak, strong, *small = RECIPES["multi_crop"]
    assert (weak, strong) == (WEAK, STRONG)
    assert [view.side(size) for view in (weak, strong, *small)] == [size, size, *sides]
    assert [view.scale for view in small] == [(0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)]


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "from workers"])
def test_both_ways_of_the_data_make_small_and_solarized_views(image_root, in_memory):
    images = load(image_root / "train")
    if in_memory:
        images.keep_pixels(1)
    config = TrainConfig(batch_size=16, image_size=32, mean=(0, 0, 0), std=(1, 1, 1), workers=1)
    plain = View(flip=0, size=0.75)
    recipe = (*RECIPES["multi_crop"], plain, View(flip=0, size=0.75, solarize_p=0.5))
    made = list(batches(images, recipe, config, 0, 2, torch.device("cpu")))
    assert len(made) == 2
    for views_, indices in made:
        assert [tuple(v.shape) for v in views_] == [(16, 3, s, s) for s in (32, 32, 27, 23, 18, 14, 24, 24)]
        again = [uniform(0, 0, indices, COLUMNS, number) for number in (6, 7)]
        box = [boxes(plain, u, 32, 32) for u in again]
        pixels = torch.from_numpy(np.stack([np.array(images.image(i)) for i in indices]))
        for number in (6, 7):
            crops = crop_batch(pixels, box[number - 6], 24) / 255
            chosen = again[1][:, 35] < 0.5 if number == 7 else np.zeros(16, bool)
            assert number == 6 or 0 < chosen.sum() < 16
            wanted = torch.where(torch.from_numpy(chosen)[:, None, None, None], TF.solarize(crops, 128 / 255), crops)
            off = (views_[number] - wanted).abs() > 1.01 / 255  # Pillow rounds; at the threshold that turns a value
            assert not (off & ((crops * 255 - 128).abs() > 1)).any()
