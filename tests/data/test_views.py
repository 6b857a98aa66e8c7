"""Views: torchvision's distributions and pixels in the exact mode, close ones in the fast mode."""

import dataclasses
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import benchmark
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.data import draws
from cgh_models.data.batched_views import (
    ViewRequest,
    _blur_weights,
    apply,
    colour_matrices,
    crop,
    fast_views,
    parameters,
)
from cgh_models.data.draws import COLUMNS, boxes, draw, uniform
from cgh_models.data.image_set import load
from cgh_models.data.loader import batches
from cgh_models.data.pixels import as_tensor
from cgh_models.data.views import exact_view, exact_view_of_bands
from cgh_models.methods import METHODS
from cgh_models.view_recipes import FIRST, RECIPES, SECOND, SMALL, STRONG, WEAK, View

photographs = benchmark("views").photographs
ZERO, ONE = torch.zeros(3), torch.ones(3)
CPU = torch.device("cpu")
CHANNELS = pytest.mark.parametrize("channels", [3, 1, 4])


def fast(view: View, images: Tensor, u: np.ndarray, size: int = 32) -> Tensor:
    """Not normalized: (N, C, size, size) in [0, 1]."""
    zero = torch.zeros(images.shape[3])
    asked = ViewRequest(view, images, u, size, boxes(view, u, *images.shape[1:3]))
    return fast_views([asked], zero, zero + 1)[0]


def exact(view: View, images: Tensor, u: np.ndarray, size: int = 32) -> Tensor:
    """The same from the exact mode."""
    if images.shape[3] != 3:
        tensors = [as_tensor(image.numpy()) for image in images]
        return torch.stack(
            [exact_view_of_bands(view, x, u[i : i + 1], size) for i, x in enumerate(tensors)]
        )
    made = [
        exact_view(view, Image.fromarray(p.numpy()), u[i : i + 1], size)
        for i, p in enumerate(images)
    ]
    return torch.from_numpy(np.stack([np.array(image) for image in made])).permute(0, 3, 1, 2) / 255


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return uniform(seed, 0, np.arange(count), COLUMNS)


def pictures(count: int, size: int = 32) -> torch.Tensor:
    """Smooth colours with sharp edges, uint8 (N, H, W, 3)."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    return torch.from_numpy(
        np.stack([np.array(Image.fromarray(p).resize((size, size), 3)) for p in low])
    )


def of(channels: int, images: Tensor) -> Tensor:
    """Images (N, H, W, 3) with another number of channels, all of which differ."""
    return torch.cat([images, 255 - images.flip(2)], 3)[..., :channels]


def test_random_numbers_are_uniform_and_independent_of_the_batch():
    u = numbers(4000)
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(0), 0.5, atol=5 / (12 * 4000) ** 0.5)
    np.testing.assert_allclose(u.var(0), 1 / 12, rtol=0.1)
    correlation = np.corrcoef(np.concatenate([u, uniform(0, 1, np.arange(4000), 3)], 1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08
    np.testing.assert_array_equal(u[[7, 3]], uniform(0, 0, np.array([7, 3]), COLUMNS))
    for other in (uniform(1, 0, np.arange(50), 4), uniform(0, 0, np.arange(50), 4, 1)):
        assert (other != u[:50, :4]).all()


@pytest.mark.parametrize("height, width", [(32, 32), (60, 200)])
def test_crop_boxes_have_torchvisions_distribution(height, width):
    count = 6000
    ours = boxes(WEAK, numbers(count), height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    spread = np.sqrt(ours.var(0) / count + theirs.var(0) / count)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * spread + 1e-9).all()
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.06)
    for ours_side, their_side in zip(
        ours.T, theirs.T, strict=True
    ):  # the whole distribution, not only two moments
        grid = np.unique(np.concatenate([ours_side, their_side]))
        gap = np.abs(
            np.searchsorted(np.sort(ours_side), grid, "right")
            - np.searchsorted(np.sort(their_side), grid, "right")
        )
        assert gap.max() / count < 0.04
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()


def test_an_image_no_box_fits_gets_a_centred_one():
    box = boxes(View(scale=(1.0, 1.0)), numbers(5), 10, 1000)
    assert (box == [0, (1000 - 13) // 2, 10, 13]).all()


def test_a_box_of_the_most_extreme_ratio_has_a_pixel():
    for ratio, size in (((100, 100), [1, 32]), ((0.01, 0.01), [32, 1])):
        assert (boxes(View(ratio=ratio), numbers(5), 32, 32)[:, 2:] == size).all()


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    """As MoCo blurs."""
    return image.filter(ImageFilter.GaussianBlur(sigma)) if sigma else image


@pytest.mark.parametrize(
    "view",
    [WEAK, STRONG, FIRST, SECOND, SMALL[2]],
    ids=["weak", "strong", "first", "second", "small"],
)
def test_exact_views_are_torchvisions_to_the_bit(view):
    """torchvision's own transforms, given the drawn numbers instead of drawing themselves."""
    pixels, u, size = pictures(60), numbers(60), view.side(32)
    ours, box, drawn = exact(view, pixels, u, size), boxes(view, u, 32, 32), draw(view, u)
    for i, picture in enumerate(pixels):
        theirs = T.Compose(
            [
                T.RandomResizedCrop(size),
                T.RandomApply([T.ColorJitter(*view.jitter)], float(drawn.jittered[i])),
                T.RandomGrayscale(float(drawn.grey[i])),
                T.Lambda(lambda x, s=float(drawn.sigma[i]): blurred(x, s)),
                T.RandomSolarize(128, float(drawn.solarize[i])),
                T.RandomHorizontalFlip(float(drawn.flip[i])),
                T.ToTensor(),
            ]
        )
        factors = (torch.from_numpy(drawn.order[i]), *drawn.factors[i])
        with (
            mock.patch.object(
                T.RandomResizedCrop, "get_params", lambda *_, b=box[i]: tuple(map(int, b))
            ),
            mock.patch.object(T.ColorJitter, "get_params", lambda *_, f=factors: f),
        ):
            assert torch.equal(theirs(Image.fromarray(picture.numpy())), ours[i])


@pytest.mark.parametrize("view", [WEAK, STRONG, SECOND], ids=["weak", "strong", "second"])
def test_exact_views_of_one_band_are_torchvisions_to_the_bit(view):
    """torchvision's transforms of a grey tensor in float32, given the drawn numbers."""
    pixels, u = of(1, pictures(40)), numbers(40)
    ours, box, drawn = exact(view, pixels, u), boxes(view, u, 32, 32), draw(view, u)
    for i, picture in enumerate(pixels):
        x = TF.resized_crop(as_tensor(picture.numpy()), *map(int, box[i]), [32, 32])
        factors = (torch.from_numpy(drawn.order[i]), *drawn.factors[i])
        jitter = T.ColorJitter(*view.jitter)
        with mock.patch.object(T.ColorJitter, "get_params", lambda *_, f=factors: f):
            x = jitter(x) if drawn.jittered[i] else x
        sigma = float(drawn.sigma[i])
        size = 2 * int(np.ceil(4 * sigma)) + 1
        x = TF.gaussian_blur(x, [size, size], [sigma, sigma]) if sigma else x
        x = TF.solarize(x, 128 / 255) if drawn.solarize[i] else x
        x = TF.hflip(x) if drawn.flip[i] else x
        assert torch.equal(x, ours[i])


@CHANNELS
@pytest.mark.parametrize("size", [32, 24, 48])
def test_fast_crops_are_within_one_step_of_pillows(size, channels):
    pixels, u = of(channels, pictures(64)), numbers(64)
    for view in (View(flip=0), View(flip=1), View(flip=0.5, scale=(0.05, 0.3))):
        wanted, flip = exact(view, pixels, u, size), draw(view, u).flip
        assert (fast(view, pixels, u, size) - wanted).abs().max() <= 1.0001 / 255
        crops = [crop(pixels[i], box, size) for i, box in enumerate(boxes(view, u, 32, 32))]
        crops = torch.stack([part.flip(2) if flip[i] else part for i, part in enumerate(crops)])
        assert (crops / 255 - wanted).abs().max() <= 1.0001 / 255


@CHANNELS
@pytest.mark.parametrize(
    "name, jitter, mean, most",
    [
        ("brightness", (0.4, 0, 0, 0), 0.004, 0.05),
        ("contrast", (0, 0.4, 0, 0), 0.004, 0.05),
        ("saturation", (0, 0, 0.4, 0), 0.004, 0.05),
        (
            "hue",
            (0, 0, 0, 0.1),
            0.013,
            0.3,
        ),  # turns in another space: the right direction, not more
    ],
)
def test_fast_colours_are_near_torchvisions(name, jitter, mean, most, channels):
    pixels, u = of(channels, photographs(256)), numbers(256)
    view, plain = View(jitter=jitter, jitter_p=1), View()
    off = (fast(view, pixels, u) - exact(view, pixels, u)).abs()
    moved = (exact(view, pixels, u) - exact(plain, pixels, u)).abs().mean()
    if channels != 3 and name in ("saturation", "hue"):
        assert moved == 0 and off.amax() < 1e-2
        return
    assert (
        off.mean() < mean
        and off.amax() < most
        and off.mean() < (1 if name == "hue" else 0.5) * moved
    )


@CHANNELS
@pytest.mark.parametrize(
    "view", [WEAK, STRONG, FIRST, SECOND], ids=["weak", "strong", "first", "second"]
)
def test_fast_views_have_the_channel_statistics_of_exact_ones(view, channels):
    pixels = of(channels, photographs(1000))
    u = numbers(1000)
    a, b = fast(view, pixels, u), exact(view, pixels, u)
    assert (a.mean((0, 2, 3)) - b.mean((0, 2, 3))).abs().max() < 0.008
    assert (a.std((0, 2, 3)) / b.std((0, 2, 3)) - 1).abs().max() < 0.015
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    luma = luma if channels == 3 else torch.full((channels, 1, 1), 1 / channels)
    assert ((a - b) * luma).sum(1).abs().mean() < 0.012


@CHANNELS
def test_colour_matrices_are_the_operations_one_after_the_other(channels):
    rng, u = np.random.default_rng(0), numbers(40)
    drawn = draw(dataclasses.replace(STRONG, jitter_p=0.7, grey_p=0.3), u)
    luma = np.array([0.299, 0.587, 0.114])
    luma = luma if channels == 3 else np.full(channels, 1 / channels)
    of_pixel, of_mean = colour_matrices(drawn, channels)
    for i in range(40):
        start = x = rng.uniform(0, 1, (200, channels))
        f = drawn.factors[i]
        turn = 2 * np.pi * f[3]
        for operation in drawn.order[i] if drawn.jittered[i] else ():
            if operation == 0:
                x = f[0] * x
            elif operation == 1:
                x = f[1] * x + (1 - f[1]) * (x @ luma).mean()
            elif channels != 3:
                continue
            elif operation == 2:
                x = f[2] * x + (1 - f[2]) * (x @ luma)[:, None]
            else:
                axis = np.ones(3) / 3**0.5  # Rodrigues' formula
                along = (x @ axis)[:, None] * axis
                x = along + np.cos(turn) * (x - along) + np.sin(turn) * np.cross(axis, x)
        if drawn.grey[i] and channels == 3:
            x = np.repeat((x @ luma)[:, None], 3, 1)
        np.testing.assert_allclose(
            start @ of_pixel[i].T + start.mean(0) @ of_mean[i].T, x, atol=1e-12
        )


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_the_fast_blur_is_torchvisions_away_from_the_edge_and_near_pillows(sigma):
    x = photographs(16).permute(0, 3, 1, 2) / 255
    weights = _blur_weights(torch.full((16,), -0.5 / sigma**2), 32)
    ours = weights[:, None] @ x @ weights[:, None].transpose(2, 3)
    theirs = TF.gaussian_blur(x, [17, 17], [sigma, sigma])
    torch.testing.assert_close(ours[:, :, 8:-8, 8:-8], theirs[:, :, 8:-8, 8:-8], atol=1e-3, rtol=0)
    view, u = View(scale=(1, 1), ratio=(1, 1), flip=0, blur_p=1, sigma=(sigma, sigma)), numbers(16)
    off = (fast(view, photographs(16), u) - exact(view, photographs(16), u)).abs()
    assert off.mean() < 0.006 and (fast(view, photographs(16), u) - ours).abs().max() < 1e-5


@CHANNELS
@pytest.mark.parametrize("make", [fast, exact], ids=["fast", "exact"])
def test_a_view_is_the_same_in_any_batch(make, channels):
    pixels = of(channels, pictures(16))
    u = uniform(3, 5, np.arange(16), COLUMNS, 1)
    torch.testing.assert_close(
        make(STRONG, pixels[[9, 2]], u[[9, 2]]), make(STRONG, pixels, u)[[9, 2]], atol=1e-5, rtol=0
    )


@CHANNELS
@pytest.mark.parametrize("view", [WEAK, STRONG, SECOND], ids=["weak", "strong", "second"])
def test_fast_views_of_crops_are_those_of_whole_images_but_for_rounding(view, channels):
    pixels, u = of(channels, photographs(64)), numbers(64)
    zero = torch.zeros(channels)
    crops = torch.stack(
        [crop(p, b, 32) for p, b in zip(pixels, boxes(view, u, 32, 32), strict=True)]
    )
    (made,) = fast_views([ViewRequest(view, crops, u, 32)], zero, zero + 1)
    off = (made - fast(view, pixels, u)).abs()
    assert off.mean() < 0.5 / 255 and (off > 4 / 255).float().mean() < (
        1e-3 if view is SECOND else 1e-9
    )


@CHANNELS
@pytest.mark.parametrize("make, count", [(fast, 3000), (exact, 1500)], ids=["fast", "exact"])
def test_the_strong_view_does_what_it_says_as_often_as_it_says(make, count, channels):
    pixels, u = of(channels, pictures(1)).expand(count, -1, -1, -1), numbers(count)
    plain = make(View(flip=0), pixels, u)
    for view, share in (
        (View(), 0.5),
        (View(flip=0, jitter_p=0.8), 0.8),
        (View(flip=0, grey_p=0.2), 0.2),
        (View(flip=0, blur_p=0.5, sigma=(1, 2)), 0.5),
        (View(flip=0, solarize_p=0.3), 0.3),
    ):
        if view.grey_p and channels != 3:
            share = 0  # there is no grey of bands
        changed = (make(view, pixels, u) - plain).abs().amax((1, 2, 3)) > 1e-3
        assert changed.float().mean().item() == pytest.approx(share, abs=0.05)


def test_views_are_normalized_with_the_given_statistics():
    crops, mean, std = (
        pictures(4).permute(0, 3, 1, 2),
        torch.tensor([0.4, 0.5, 0.6]),
        torch.tensor([0.2, 0.3, 0.4]),
    )
    (x,) = fast_views([ViewRequest(View(flip=0), crops, numbers(4), 32)], mean, std)
    torch.testing.assert_close(x * std[:, None, None] + mean[:, None, None], crops / 255)


def test_the_recipe_of_cgh_and_ressl_is_a_weak_and_a_strong_view():
    weak, strong = RECIPES["weak_strong"]
    assert (weak.jitter_p, weak.grey_p, weak.blur_p, weak.scale) == (0, 0, 0, (0.2, 1.0))
    assert (strong.jitter_p, strong.jitter, strong.grey_p, strong.blur_p) == (
        0.8,
        (0.4, 0.4, 0.4, 0.1),
        0.2,
        0.5,
    )


def test_the_column_of_solarize_changed_no_other_random_number():
    assert COLUMNS == 36 and draws._SOLARIZE == 35
    for stream in (0, 1, 1000):
        before, now = (uniform(3, 2, np.arange(50), columns, stream) for columns in (35, 36))
        np.testing.assert_array_equal(now[:, :35], before)
    pixels, u = pictures(16), numbers(16)
    other = u.copy()
    other[:, 35] = 1 - u[:, 35]
    for view in (WEAK, STRONG, *SMALL):
        for make in (fast, exact):
            assert torch.equal(make(view, pixels, u), make(view, pixels, other))


def test_fast_solarize_is_torchvisions_from_128_on():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for crops in (every, pictures(8).permute(0, 3, 1, 2)):
        asked = ViewRequest(View(flip=0, solarize_p=1), crops, numbers(len(crops)), crops.shape[2])
        (ours,) = fast_views([asked], ZERO, ONE)
        torch.testing.assert_close(ours, TF.solarize(crops, 128) / 255)
    asked = ViewRequest(View(flip=0, solarize_p=1), every, numbers(1), 16)
    first = fast_views([asked], ZERO, ONE)[0].flatten()
    assert first[127] == 127 / 255 and first[128] == pytest.approx(127 / 255)


@pytest.mark.parametrize("whole", [True, False])
def test_parameters_of_the_same_shapes_for_each_batch_make_the_same_views(whole):
    """What a replay needs; images that are not blurred are weighed by one pixel, themselves."""
    mean, std = torch.rand(2, 3) + 0.1
    for view in (*RECIPES["byol"], STRONG):
        shapes = []
        for seed in (1, 2):
            pixels, u = pictures(48), numbers(48, seed)
            if not whole:
                pixels = pixels.permute(0, 3, 1, 2)
            box = boxes(view, u, *pixels.shape[1:3]) if whole else None
            asked = ViewRequest(view, pixels, u, 32 if whole else pixels.shape[3], box)
            (params,) = parameters([asked], mean, same_shapes=True)
            shapes.append({name: tensor.shape for name, tensor in params.items()})
            made = apply(asked, params, mean, std)
            torch.testing.assert_close(made, *fast_views([asked], mean, std), rtol=0, atol=1e-5)
        assert shapes[0] == shapes[1] and params["exponents 0"].isfinite().all()


def test_the_recipes_of_byol_and_lewel_blur_one_view_always_and_solarize_the_other_sometimes():
    first, second = RECIPES["asymmetric"]
    assert (first.blur_p, first.solarize_p, second.blur_p, second.solarize_p) == (
        1.0,
        0.0,
        0.1,
        0.2,
    )
    for view in (first, second):
        assert (view.jitter, view.jitter_p, view.grey_p) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (view.sigma, view.flip, view.scale, view.size) == ((0.1, 2.0), 0.5, (0.2, 1.0), 1.0)
    assert [view.blur_p for view in RECIPES["asymmetric_sharp"]] == [0, 0]
    assert [view.solarize_p for view in RECIPES["asymmetric_sharp"]] == [0.0, 0.2]
    for name in ("asymmetric", "asymmetric_sharp"):  # of BYOL's authors all is the same but crops
        own = RECIPES[name.replace("asymmetric", "byol")]
        wide = tuple(replace(view, scale=(0.08, 1.0)) for view in RECIPES[name])
        assert own == wide


@pytest.mark.parametrize(
    "name, settings, recipe",
    [
        ("byol", {}, "byol"),
        ("byol", {"blur": False}, "byol_sharp"),
        ("byol", {"wide_crops": False}, "asymmetric"),
        ("sce", {}, "weak_strong"),
        ("moco_v2", {}, "two_strong"),
        ("moco_v2", {"blur": False, "wide_crops": True}, "two_wide_sharp"),
    ],
)
def test_settings_of_a_method_choose_its_views(name, settings, recipe):
    method = METHODS[name](create("resnet18_cifar_w16"), METHODS[name].Config(**settings))
    assert method.view_recipe == recipe
    blurs = {view.blur_p for view in RECIPES[recipe]}
    assert (blurs == {0.0}) == recipe.endswith("_sharp")
    wide = RECIPES[recipe][0].scale == (0.08, 1.0)
    assert wide == (recipe.startswith("byol") or "wide" in recipe)


@pytest.mark.parametrize(
    "size, sides", [(224, [192, 160, 128, 96]), (64, [55, 46, 37, 27]), (32, [27, 23, 18, 14])]
)
def test_the_small_views_of_multi_crop_are_the_authors_shares_of_the_image(size, sides):
    weak, strong, *small = RECIPES["multi_crop"]
    assert (weak, strong) == (WEAK, STRONG)
    assert [view.side(size) for view in (weak, strong, *small)] == [size, size, *sides]
    assert [view.scale for view in small] == [
        (0.172, 0.86),
        (0.143, 0.715),
        (0.114, 0.571),
        (0.086, 0.429),
    ]


def test_batches_ask_another_function_for_fast_views_if_one_is_given(image_root):
    images, asked = load(image_root / "train"), []
    images.cache_pixels(1)
    config = TrainConfig(batch_size=16, image_size=32)

    def make(requests, mean, std):
        asked.append([request.view for request in requests])
        return [view + 1 for view in fast_views(requests, mean, std)]

    first = [images, RECIPES["byol"], config, 0, 2, CPU]
    for (wanted, _), (mine, _) in zip(batches(*first), batches(*first, make=make), strict=True):
        assert all(torch.equal(x + 1, y) for x, y in zip(wanted, mine, strict=True))
    exact_ones = dataclasses.replace(config, views="exact")
    list(batches(images, RECIPES["byol"], exact_ones, 0, 2, CPU, make=make))
    assert asked == [[*RECIPES["byol"]]] * 2


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "from workers"])
def test_batches_hold_the_views_of_their_images(image_root, in_memory, mode):
    images = load(image_root / "train")
    if in_memory:
        images.cache_pixels(1)
    config = TrainConfig(
        batch_size=16, image_size=32, mean=(0, 0, 0), std=(1, 1, 1), workers=1, views=mode
    )
    recipe = (*RECIPES["multi_crop"], SECOND)
    made = list(batches(images, recipe, config, 0, 2, CPU))
    assert len(made) == 2
    for views_, indices in made:
        pixels = torch.from_numpy(np.stack([np.array(images.image(i)) for i in indices]))
        assert [v.shape[2] for v in views_] == [32, 32, 27, 23, 18, 14, 32]
        for number, (view, x) in enumerate(zip(recipe, views_, strict=True)):
            u = uniform(0, 0, indices, COLUMNS, number)
            wanted = (fast if mode == "fast" else exact)(view, pixels, u, view.side(32))
            if mode == "exact" or in_memory:
                torch.testing.assert_close(x, wanted)
            else:  # crops were rounded; at solarize's threshold that turns a value
                assert ((x - wanted).abs() > 4 / 255).float().mean() < (
                    1e-2 if view is SECOND else 1e-9
                )


@CHANNELS
@pytest.mark.parametrize("make", [fast, exact], ids=["fast", "exact"])
def test_views_of_16_bits_and_of_floats_are_those_of_8_bits_but_for_rounding(make, channels):
    pixels, u = of(channels, pictures(24)), numbers(24)
    if channels == 3 and make is exact:  # such images are 8-bit RGB before their views are made
        return
    expected = make(STRONG, pixels, u)
    deep = torch.from_numpy(pixels.numpy().astype(np.uint16) * 257)
    for finer in (deep, pixels.float() / 255):
        torch.testing.assert_close(make(STRONG, finer, u), expected, atol=1e-5, rtol=0)
    dark = torch.from_numpy(deep.numpy() // 512)  # all of it within half a step of 8 bits
    assert make(WEAK, dark, u).unique().numel() > 100


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "from workers"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_batches_hold_the_views_of_their_bands(tmp_path, in_memory, mode, kind):
    rng = np.random.default_rng(0)
    for number in range(8):
        values = rng.integers(0, 256, (4, 40, 36))
        values *= 16 if kind == np.uint16 else 1
        np.save(tmp_path / f"{number}.npy", values.astype(kind))
    images = load(tmp_path, in_chans=4, pixel_range="0,255" if kind == np.float32 else "auto")
    if in_memory:
        images.cache_pixels(1)
        assert images.pixels.element_size() == kind().itemsize  # compact
    bands = {"in_chans": 4, "mean": (0,) * 4, "std": (1,) * 4}
    config = TrainConfig(batch_size=4, image_size=32, workers=1, views=mode, **bands)
    recipe = (WEAK, STRONG, SECOND)
    ((made, indices),) = batches(images, recipe, config, 0, 1, CPU)
    pixels = torch.from_numpy(np.stack([images.image(i) for i in indices]))
    for number, (view, x) in enumerate(zip(recipe, made, strict=True)):
        u = uniform(0, 0, indices, COLUMNS, number)
        wanted = (fast if mode == "fast" else exact)(view, pixels, u, 32)
        rounded = kind == np.uint8 and mode == "fast" and not in_memory
        far = (x - wanted).abs() > (4 / 255 if rounded else 1e-5)
        assert far.float().mean() < (1e-2 if view is SECOND else 1e-9)
