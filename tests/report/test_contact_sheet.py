"""The sheet of views shows what a training sees."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import QUICK

from cgh_models.data.image_set import load
from cgh_models.data.loader import batches
from cgh_models.methods import METHODS
from cgh_models.report.contact_sheet import draw_views, views_of
from cgh_models.view_recipes import RECIPES


@pytest.mark.parametrize("views", ["fast", "exact"])
def test_the_views_are_those_of_the_first_step_of_a_run(image_root, tmp_path, views):
    images = load(image_root / "train")
    config = dataclasses.replace(QUICK, workers=0, views=views, seed=3)
    draw_views(tmp_path / "views.png", images, RECIPES["weak_strong"], config, rows=3)
    sheet = np.array(Image.open(tmp_path / "views.png"))
    run = batches(images, RECIPES["weak_strong"], config, 0, 1, torch.device("cpu"))
    with contextlib.closing(run):
        made, indices = next(run)
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.mean, config.std))
    for row in range(3):
        top = 24 + row * 184
        pixels = np.array(images.image(int(indices[row])))
        shown = [pixels]
        for view in made:
            values = (view[row] * std + mean) * 255
            shown.append(values.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
        for column, expected in enumerate(shown):
            left = 8 + column * 168
            cell = sheet[top : top + 160, left : left + 160]  # of 32 pixels, five times as large
            assert np.array_equal(cell[2::5, 2::5], expected), (row, column)


@pytest.mark.parametrize("name", METHODS)
def test_the_views_of_every_method_are_known_without_its_weights(name):
    config = METHODS[name].Config()
    assert views_of(name, config) in RECIPES.values()
    if hasattr(config, "multi_crop"):
        config = dataclasses.replace(config, multi_crop=True)
        assert views_of(name, config) == RECIPES["multi_crop"]
