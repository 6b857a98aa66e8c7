"""`cgh demo`: pretraining, export and loading on 3,000 packaged photographs (CIFAR-10)."""

import contextlib
import dataclasses
import zipfile
from importlib import resources
from pathlib import Path

import torch

from ..data.image_set import load_splits
from ..evaluate import extract, knn_accuracy
from ..files import make_folder
from ..hub.export import export
from ..hub.registry import create_model
from ..methods import METHODS, build_method, preprocessing
from ..recipes import method_config, train_config
from ..train.loop import pretrain

ARCH, METHOD, RECIPE = "resnet18_cifar_w16", "cgh", "cifar"
PACKAGED = "resnet10_cifar_fast.cgh_cifar10"
# Chosen on held-out training photographs: benchmarks/demo_settings.md.
SETTINGS = ("queue_length=1024", "zero_init_last=true")
TRAINING = {"epochs": 32, "batch_size": 64, "base_lr": 0.24, "eval_every": 16.0}


def run(out: str | Path, seed: int = 0) -> tuple[float, float]:
    """Prints each step and returns kNN accuracy before and after, in percent."""
    out = Path(out)
    make_folder(out)
    images = out / "images"
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(images)
    train, val = load_splits(images)
    config = dataclasses.replace(train_config(RECIPE, METHOD), seed=seed, **TRAINING)
    torch.manual_seed(seed)
    settings = method_config(METHODS[METHOD], RECIPE, config, SETTINGS)
    method = build_method(METHOD, ARCH, preprocessing(config), settings)
    before = knn_accuracy(method.student.backbone, train, val)
    _show(f"1. {len(train)} photographs in {images}; untrained {ARCH}: kNN {before:.1f} %")
    pretrain(method, train, config, out / "run")
    after = knn_accuracy(method.student.backbone, train, val)
    _show(f"2. pretrained without labels for {config.epochs} epochs ({METHOD}): kNN {after:.1f} %")
    export(out / "run", out / "weights")
    _show(f"3. run in {out / 'run'}, its backbone without heads in {out / 'weights'}")
    count, width = extract(create_model(out / "weights"), val).shape
    _show(f"4. read back by timm.create_model: {count} x {width} features of val/")
    packaged = knn_accuracy(create_model(PACKAGED), train, val)
    print(f"5. {PACKAGED}, trained longer on 50,000 photographs: kNN {packaged:.1f} %")
    print(f"kNN before {before:.1f} %, after {after:.1f} %")
    return before, after


def _show(text: str) -> None:
    """Prints a line. What cannot be written does not end the demo, its last line does."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
