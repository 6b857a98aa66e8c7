"""Pretraining that goes on from published weights, on other images, against a start from nothing.

    python examples/continue_pretraining.py [ROOT]

ROOT has train/ and val/ with class folders in both; without it, the 3,000 packaged photographs.
"""

import dataclasses
import sys
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

import torch

from cgh_models import pretrain
from cgh_models.data import load_splits
from cgh_models.evaluate import knn_accuracy
from cgh_models.hub.registry import start_from
from cgh_models.methods import METHODS, build_method, preprocessing
from cgh_models.recipes import method_config, train_config

WEIGHTS = "resnet18.cgh"
SETTINGS = ("queue_length=1024",)


def accuracies(root: Path, weights: str, run: Path) -> tuple[float, float]:
    """kNN accuracy before and after two epochs at 64 pixels; ``weights``: where they start from."""
    train, val = load_splits(root)
    config = dataclasses.replace(
        train_config("tiny", "cgh"), epochs=2, batch_size=64, base_lr=0.12, eval_every=-1
    )
    torch.manual_seed(0)
    settings = method_config(METHODS["cgh"], "tiny", config, SETTINGS)
    method = build_method("cgh", "resnet18", preprocessing(config), dataclasses.asdict(settings))
    if weights:
        print(start_from(method, weights))
    before = knn_accuracy(method.student.backbone, train, val, fast=True)
    pretrain(method, train, config, run)
    return before, knn_accuracy(method.student.backbone, train, val, fast=True)


with tempfile.TemporaryDirectory() as folder:
    root = Path(sys.argv[1]) if sys.argv[1:] else Path(folder)
    if not sys.argv[1:]:
        with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
            zipfile.ZipFile(sample).extractall(folder)
    for weights in (WEIGHTS, ""):
        before, after = accuracies(root, weights, Path(folder, f"run-{weights}"))
        print(f"from {weights or 'nothing'}: kNN {before:.2f} %, after two epochs {after:.2f} %")
