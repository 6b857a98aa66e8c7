"""Runs whose views are changed, or made by functions of the caller's: exact, stored, resumed."""

import dataclasses
import json
import random
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from small_runs import QUICK, build, final, lines, small, stop_at
from torchvision import transforms

from cgh_models.data.image_set import load
from cgh_models.data.loader import batches, exact_views, order
from cgh_models.errors import InputError, Interrupted
from cgh_models.hub import manifest
from cgh_models.hub.export import export
from cgh_models.methods import METHODS, build_method, preprocessing
from cgh_models.own_network import OwnNetwork
from cgh_models.report.contact_sheet import draw_views
from cgh_models.train import checkpoint
from cgh_models.train.arguments import settle_views
from cgh_models.train.loop import pretrain
from cgh_models.view_recipes import RECIPES, OwnView, recipe_of

PLAIN = dataclasses.replace(QUICK, eval_every=-1)
CHANGES = ("weak.scale=0.9,1", "strong.jitter=0", "2.solarize_p=0.5")
MIRRORED = transforms.Compose(
    [
        transforms.RandomResizedCrop(32),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(QUICK.mean, QUICK.std),
    ]
)


def noisy(image):
    """Draws from all three default generators."""
    pixels = np.asarray(image, np.float32) + np.random.normal(0, 9, (32, 32, 3))
    pixels = (pixels * random.uniform(0.8, 1) + 10 * float(torch.rand(1))).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


OWN = {
    "changed": (CHANGES, None, {"eval_every": -1}),
    "functions": ((), (noisy, MIRRORED), {"memory_gib": 0, "workers": 2}),
}


@pytest.mark.parametrize("case", OWN)
def test_a_resumed_run_with_views_of_its_own_equals_one_without_a_stop(
    image_root, tmp_path, monkeypatch, case
):
    changes, views, train = OWN[case]
    data = image_root / "train"
    config = dataclasses.replace(QUICK, epochs=2, view=changes, **train)
    pretrain(build(config=config), data, config, tmp_path / "whole", views=views)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(build(config=config), data, config, tmp_path / "parts", views=views)
    pretrain(build(config=config), data, config, tmp_path / "parts", views=views, resume=True)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_workers_change_nothing_of_what_functions_draw(image_root):
    recipe = (OwnView(noisy, 1.0), OwnView(MIRRORED, 1.0), *RECIPES["weak_strong"])
    made = []
    for train in ({"workers": 0}, {"workers": 2, "memory_gib": 0}):
        config = dataclasses.replace(QUICK, views="exact", **train)
        cpu = torch.device("cpu")
        made.append([*batches(load(image_root / "train"), recipe, config, 0, 6, cpu)])
    for (one, _), (two, _) in zip(*made, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert not torch.equal(made[0][0][0][0], made[0][4][0][0])  # another epoch


def test_functions_leave_the_random_state_of_the_run_alone(image_root):
    images = load(image_root / "train")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), float(torch.rand(1))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    exact_views(images, (OwnView(noisy, 1.0),), QUICK, 0, np.arange(4))
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_view_of_the_whole_image_without_a_flip_is_the_image(image_root, mode):
    whole = [f"weak.{change}" for change in ("scale=1", "ratio=1", "flip=0")]
    recipe = recipe_of("weak_strong", whole)
    config = dataclasses.replace(QUICK, views=mode, workers=0)
    images = load(image_root / "train")
    images.cache_pixels(1)
    (views, indices), *_ = batches(images, recipe, config, 0, 1, torch.device("cpu"))
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.mean, config.std))
    pixels = images.pixels[torch.from_numpy(indices)].permute(0, 3, 1, 2)
    torch.testing.assert_close(views[0], (pixels / 255 - mean) / std, atol=1e-5, rtol=0)


def test_what_a_function_returns_is_normalized_if_it_is_uint8_and_else_taken_as_it_is(image_root):
    images = load(image_root / "train")
    config = dataclasses.replace(QUICK, views="exact", workers=0)
    to_tensor = transforms.PILToTensor()
    functions = (ImageOps.mirror, lambda i: to_tensor(i).flip(2), lambda i: to_tensor(i).double())
    recipe = tuple(OwnView(function, 1.0) for function in functions)
    ((image, bytes_, floats), indices), *_ = batches(
        images, recipe, config, 0, 1, torch.device("cpu")
    )
    assert torch.equal(image, bytes_) and floats.dtype == torch.float32
    pixels = np.stack([np.asarray(images.image(int(index))) for index in indices])
    assert np.array_equal(floats.permute(0, 2, 3, 1), pixels)
    mean, std = (np.array(value) for value in (config.mean, config.std))
    expected = (pixels[:, :, ::-1] / 255 - mean) / std
    np.testing.assert_allclose(image.permute(0, 2, 3, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "function, expected",
    [
        (
            lambda image: np.asarray(image),
            "gave a ndarray; expected a PIL image of 32 x 32 or a te",
        ),
        (lambda image: None, "gave a NoneType; expected"),
        (
            lambda image: image.resize((30, 32)),
            r"gave a torch.uint8 tensor \(3, 32, 30\); expected",
        ),
        (lambda image: torch.zeros(1, 32, 32), r"gave a torch.float32 tensor \(1, 32, 32\); exp"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_view_ends_the_run_in_a_sentence(
    image_root, tmp_path, function, expected, workers
):
    config = dataclasses.replace(QUICK, workers=workers, memory_gib=0)
    views = [ImageOps.mirror, function]
    with pytest.raises(InputError, match=f"the view test_own_views.*lambda> {expected}"):
        pretrain(build(), image_root / "train", config, tmp_path / "run", views=views)


def test_floats_that_are_not_normalized_are_said_once(image_root, tmp_path, capsys):
    mistaken = transforms.Compose([transforms.RandomResizedCrop(32), transforms.ToTensor()])
    pretrain(build(), image_root / "train", PLAIN, tmp_path / "run", views=[mistaken, MIRRORED])
    said = re.findall("Compose gives floats from 0.* to .*", capsys.readouterr().err)
    assert len(said) == 1 and "which are not normalized here; add transforms.Normalize" in said[0]


def test_integers_other_than_bytes_are_refused(image_root, tmp_path):
    for dtype in (torch.int64, torch.bool, torch.uint16):
        views = [ImageOps.mirror, lambda image, dtype=dtype: torch.ones(3, 32, 32).to(dtype)]
        with pytest.raises(InputError, match=f"gave a tensor of {dtype}; expected uint8"):
            pretrain(build(), image_root / "train", PLAIN, tmp_path / str(dtype), views=views)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_function_of_the_callers_is_a_sentence_and_loses_no_step(
    image_root, tmp_path, workers
):
    config = dataclasses.replace(PLAIN, workers=workers, memory_gib=0)
    images = load(image_root / "train")
    pixels = images.image(
        int(order(config.seed, 1, len(images))[-1])
    ).tobytes()  # of the last step of an epoch
    seen = tmp_path / "seen"

    def fails(image):
        if image.tobytes() == pixels and seen.exists():
            raise KeyError("no such\nthing")
        if image.tobytes() == pixels:
            seen.touch()
        return image

    run = tmp_path / "run"
    message = r"fails of image class./.*png: KeyError: 'no such\\nthing'; saved at step \d, `pret"
    with pytest.raises(InputError, match=message):
        pretrain(build(), image_root / "train", config, run, views=[fails, ImageOps.mirror])
    assert checkpoint.newest(run, print)[0] >= 4


def test_a_run_with_functions_is_gone_on_with_and_exported_as_it_says(
    image_root, tmp_path, monkeypatch, in_process, capsys
):
    data, own = image_root / "train", OwnNetwork(torch.nn.Conv2d(3, 8, 5, 5), preprocessing(PLAIN))
    pictures = np.stack([np.asarray(load(data).image(index)) for index in range(32)])
    cases = {
        "function": (build(), data, [noisy, MIRRORED]),
        "pictures": (build(), pictures, None),
        "own": (METHODS["byol"](own), data, None),
    }
    for name, (method, images, views) in cases.items():
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            with pytest.raises(
                Interrupted, match=r"go on with `pretrain\(\.\.\., resume=True\)` in"
            ):
                pretrain(method, images, PLAIN, tmp_path / name, views=views)
        pretrain(method, images, PLAIN, tmp_path / name, views=views, resume=True)
    words = shlex.split(re.findall("export it: `cgh (.*)`", capsys.readouterr().err)[-1])
    assert "equal to the bit" in in_process(*words).out
    with pytest.raises(SystemExit):
        in_process("resume", tmp_path / "own")
    error = capsys.readouterr().err
    assert "only your code can build; go on with `pretrain(..." in error and "export" not in error


def test_the_narrowest_crops_train_and_two_ways_to_say_views_are_refused(image_root, tmp_path):
    data = image_root / "train"
    for mode in ("fast", "exact"):
        config = dataclasses.replace(PLAIN, epochs=1, view=("weak.ratio=100",), views=mode)
        pretrain(build(), data, config, tmp_path / mode)
    weak, strong = RECIPES["weak_strong"]
    with pytest.raises(InputError, match="view=.*weak.ratio.* together with views; give one of"):
        pretrain(build(), data, config, tmp_path / "two", views=[weak, strong])


def test_a_run_with_functions_names_them_and_is_gone_on_with_from_python_alone(
    image_root, tmp_path, monkeypatch, in_process, capsys
):
    data, run = image_root / "train", tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(build(), data, PLAIN, run, views=[MIRRORED, noisy])
    stored = json.loads((run / "config.json").read_text())["train"]
    names = ["1=torchvision.transforms.transforms.Compose", "2=test_own_views.noisy"]
    assert stored["view"] == names and stored["views"] == "exact"
    before = final(run)
    with pytest.raises(SystemExit):
        in_process("resume", run)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "Compose is a view that a function of yours made; go on from Python" in error
    with pytest.raises(InputError, match="view: .* changes the images"):
        pretrain(build(), data, PLAIN, run, resume=True)
    with pytest.raises(InputError, match="view: .* changes the images"):
        pretrain(build(), data, PLAIN, run, views=[noisy, noisy], resume=True)
    assert all(torch.equal(value, before[key]) for key, value in final(run).items())
    export(run, tmp_path / "weights")
    assert manifest.read_row(tmp_path / "weights").train_config["view"] == names
    page = in_process("report", run, "--out", tmp_path / "page.html", "--device", "cpu")
    assert "page.html" in page.out + page.err
    assert "the run had its own: 1=torchvision" in (tmp_path / "page.html").read_text()


def test_views_changed_by_flags_are_stored_resumed_exported_and_shown(
    image_root, tmp_path, monkeypatch, in_process
):
    flags = [word for change in CHANGES for word in ("--view", change)]
    small = "--eval-every -1 --recipe cifar --arch resnet18_cifar_w16 --batch-size 16 --epochs 1"
    words = ["pretrain", "--data", image_root / "train", *small.split(), *flags]
    words += ["--set", "queue_length=40", "--set", "projection_width=8", "--set", "hidden_width=16"]
    assert (
        "weak.scale=0.9,1 strong.jitter=0 2.solarize_p=0.5"
        in in_process(*words, "--out", tmp_path / "whole").err
    )
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises((SystemExit, Interrupted)):
            in_process(*words, "--out", tmp_path / "parts")
    in_process("resume", tmp_path / "parts")
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    in_process("export", tmp_path / "parts", "--out", "weights")
    assert manifest.read_row(tmp_path / "weights").train_config["view"] == [*CHANGES]
    card = (tmp_path / "weights" / "README.md").read_text()
    assert '"view": ["weak.scale=0.9,1", "strong.jitter=0", "2.solarize_p=0.5"]' in card
    assert re.search(r"--view weak.scale=0.9,1", card)
    in_process("check", image_root / "train", "--recipe", "cifar", "--out", "looked", *flags)
    _, config = settle_views(build(), None, PLAIN)
    recipe = recipe_of("weak_strong", CHANGES)
    described = json.loads((tmp_path / "whole" / "config.json").read_text())["train"]
    config = dataclasses.replace(config, mean=described["mean"], std=described["std"])
    images = load(image_root / "train")
    draw_views(tmp_path / "views.png", images, recipe, config)
    drawn, expected = (
        np.array(Image.open(tmp_path / name)) for name in ("looked/views.png", "views.png")
    )
    assert np.array_equal(drawn, expected)
    draw_views(tmp_path / "views.png", images, recipe_of("weak_strong"), config)
    assert not np.array_equal(drawn, np.array(Image.open(tmp_path / "views.png")))


def test_a_list_of_views_from_python_is_gone_on_with_by_the_command_line(
    image_root, tmp_path, monkeypatch, in_process
):
    weak, strong = RECIPES["weak_strong"]
    views = [dataclasses.replace(weak, scale=(0.5, 0.75)), dataclasses.replace(strong, blur_p=0.0)]
    data = image_root / "train"
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(build(), data, PLAIN, tmp_path / "parts", views=views)
    stored = json.loads((tmp_path / "parts" / "config.json").read_text())["train"]
    assert stored["view"] == ["1.scale=0.5,0.75", "2.blur_p=0.0"] and stored["views"] == "fast"
    assert recipe_of("weak_strong", stored["view"]) == tuple(views)
    assert "done after 12 steps" in in_process("resume", tmp_path / "parts").err


# --- bands

BANDS = np.random.default_rng(0).integers(0, 4096, (32, 40, 36, 13)).astype(np.uint16)
OF_BANDS = dataclasses.replace(QUICK, in_chans=13, mean=(0.5,) * 13, std=(0.25,) * 13, epochs=2)


def noisy_bands(image):
    """Draws from all three default generators."""
    noise = torch.from_numpy(np.random.normal(0, 0.05, (13, 32, 32)).astype(np.float32))
    image = transforms.functional.center_crop(image, [32, 32]) + noise
    return 4 * (image * random.uniform(0.8, 1) + 0.1 * torch.rand(1) - 0.5)


CROPPED = transforms.Compose(
    [
        transforms.RandomResizedCrop(32, antialias=True),
        transforms.Normalize(OF_BANDS.mean, OF_BANDS.std),
    ]
)


def build_of_bands():
    torch.manual_seed(0)
    return build_method("ressl", "test_resnet", preprocessing(OF_BANDS), small("ressl"))


@pytest.mark.parametrize("train", [{"tensorboard": True}, {"memory_gib": 0, "workers": 2}])
def test_functions_of_thirteen_bands_resume_to_the_bit(tmp_path, monkeypatch, train):
    pytest.importorskip("tensorboard", reason="tensorboard, which draws views, is not installed")
    data = tmp_path / "set"
    data.mkdir()
    for number, pixels in enumerate(BANDS):
        np.save(data / f"{number:02}.npy", pixels)
    config = dataclasses.replace(OF_BANDS, **train)
    how = {"views": [noisy_bands, CROPPED]}
    pretrain(build_of_bands(), data, config, tmp_path / "whole", **how)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            pretrain(build_of_bands(), data, config, tmp_path / "parts", **how)
    pretrain(build_of_bands(), data, config, tmp_path / "parts", resume=True, **how)
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_function_gets_bands_as_numbers_to_one_and_what_it_returns_is_taken(capsys):
    images = load(BANDS, in_chans=13)
    given = []

    def crop(image):
        given.append(image.clone())
        return image[:, :32, :32].mul_(1)  # in place: it is the function's own

    def eight_bits(image):
        return (255 * image[:, :32, :32]).byte()

    recipe = (OwnView(crop, 1.0), OwnView(eight_bits, 1.0), RECIPES["weak_strong"][0])
    config = dataclasses.replace(OF_BANDS, views="exact", workers=0)
    (made, indices), *_ = batches(images, recipe, config, 0, 1, torch.device("cpu"))
    pixels = torch.from_numpy(BANDS[indices] / np.float32(4095)).permute(0, 3, 1, 2)
    torch.testing.assert_close(torch.stack(given), pixels, atol=1e-5, rtol=0)
    assert given[0].dtype == torch.float32 and given[0].is_contiguous()
    torch.testing.assert_close(made[0], pixels[..., :32, :32], atol=1e-5, rtol=0)
    expected = ((255 * pixels[..., :32, :32]).byte() / 255 - 0.5) / 0.25
    torch.testing.assert_close(made[1], expected, atol=4.1 / 255, rtol=0)
    assert "crop gives floats from 0" in capsys.readouterr().err
    for wrong, found in ((lambda i: i, r"\(13, 40, 36\)"), (lambda i: i[:3, :32, :32], r"\(3, 3")):
        recipe = (OwnView(wrong, 1.0),)
        with pytest.raises(InputError, match=rf"{found}.*; expected a tensor \(13, 32, 32\)$"):
            next(batches(images, recipe, config, 0, 1, torch.device("cpu")))
