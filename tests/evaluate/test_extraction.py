"""Embeddings are timm's, in the set's order, and what makes none is refused."""

import numpy as np
import pytest
import timm
import torch
from conftest import make_images
from timm.data import create_transform, resolve_model_data_config

from cgh_models.backbone import create
from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.evaluate import extract


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


def test_embeddings_are_timms_in_the_sets_order(image_root, model):
    images = load(image_root / "val")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        model.eval()
        expected = [model(transform(images.image(i))[None])[0].numpy() for i in range(len(images))]
        model.train()
    embeddings = extract(model, image_root / "val", batch_size=7, workers=0)
    assert embeddings.shape == (20, 128) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(
        extract(model, images, indices=np.array([5, 2])), embeddings[[5, 2]], atol=1e-5
    )
    assert model.training and all(m.training for m in model.modules())


def test_a_bad_image_is_named_instead_of_embedded_as_another(tmp_path, model):
    make_images(tmp_path, 4)
    (tmp_path / "class2" / "00002.png").write_bytes(b"no")
    for workers in (0, 2):
        with pytest.raises(
            InputError, match=r"^\S*class2/00002.png: not readable .*mend or remove it$"
        ):
            extract(model, tmp_path, workers=workers)


def test_a_model_that_makes_no_embeddings_is_one_sentence(image_root):
    for settings, message in (
        ({"num_classes": 10}, "ends in a classifier of 10 classes; build it with num_classes=0"),
        (
            {"features_only": True},
            "a FeatureListNet makes no embeddings; build the model without features_only",
        ),
    ):
        with pytest.raises(InputError, match=message):
            extract(timm.create_model("test_resnet", **settings), image_root / "val", workers=0)
