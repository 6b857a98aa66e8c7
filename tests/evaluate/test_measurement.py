"""kNN accuracy of a backbone, as a number and as a measurement."""

import dataclasses

import pytest
import torch
from conftest import make_images
from small_runs import QUICK, build

from cgh_models.backbone import create
from cgh_models.data.image_set import load_splits
from cgh_models.errors import InputError
from cgh_models.evaluate import knn_accuracy
from cgh_models.evaluate.measurement import knn, remeasure
from cgh_models.evaluate.protocols import EvalSettings
from cgh_models.train.loop import pretrain


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


def test_accuracy_uses_the_common_numbering_of_classes(image_root, model):
    train, val = load_splits(image_root)
    assert knn_accuracy(model, train, train, k=1) == 100
    assert 0 <= knn_accuracy(model, train, val, k=5, workers=0) <= 100


def test_one_class_is_refused_as_by_a_linear_layer(tmp_path, model):
    """A folder that was wrapped once too often: whatever the weights, kNN would be 100 %."""
    for split in ("train", "val"):
        make_images(tmp_path / split / "photos", 16)
    train, val = load_splits(tmp_path)
    one_class = "train: 1 classes; a classifier needs two class folders or more"
    with pytest.raises(InputError, match=one_class):
        knn_accuracy(model, train, val, workers=0)
    config = dataclasses.replace(QUICK, eval_data=str(tmp_path))
    with pytest.raises(InputError, match=one_class):
        pretrain(build("ressl"), tmp_path / "train", config, tmp_path / "run")


def test_embeddings_that_are_not_finite_give_no_number(image_root):
    broken = create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})
    torch.nn.init.constant_(broken.layer4[-1].bn2.weight, float("nan"))
    with pytest.raises(InputError, match="the embeddings are not finite; give other weights"):
        knn_accuracy(broken, *load_splits(image_root), k=5, workers=0)


def test_a_measurement_says_what_its_value_depends_on(image_root, model):
    found = knn(model, *load_splits(image_root), EvalSettings(workers=0, fast=True), k=5)
    accuracy = knn_accuracy(model, *load_splits(image_root), k=5, workers=0, fast=True)
    assert found.to_json() == {
        "protocol": "kNN top-1 of val/ against train/, votes weighted by exp(cosine / temperature)",
        "parameters": {"k": 5, "temperature": 0.07, "memory": 64, "fast": True},
        "value": round(accuracy, 3),
        "n": 20,
    }


@pytest.mark.parametrize(
    "metric, missing", [("knn", "memory"), ("linear", "seed"), ("linear", "nesterov")]
)
def test_what_was_published_in_part_cannot_be_measured_again(metric, missing, image_root, model):
    names = ["k", "temperature", "memory", "train", "seed", "lr", "epochs", "train_batch_size"]
    parameters = dict.fromkeys([*names, "momentum", "nesterov"], 1)
    del parameters[missing]
    published = {"parameters": parameters, "n": 20, "data": "Stripes", "value": 50.0}
    with pytest.raises(InputError, match=f"{metric} was published without its {missing}: it"):
        remeasure(metric, published, model, *load_splits(image_root), EvalSettings(workers=0))
