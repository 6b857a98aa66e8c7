"""`cgh demo`: the whole road on 3,000 small photographs that come with the package (CIFAR-10, see sample/)."""

import dataclasses
import zipfile
from importlib import resources
from pathlib import Path

import torch

from ..data.image_set import load_splits
from ..evaluate import extract, knn_accuracy
from ..files import make_folder
from ..hub import fetch, manifest
from ..hub.export import export
from ..hub.registry import build_method, create_model, preprocessing, start_from
from ..methods import METHODS
from ..recipes import method_config, train_config
from ..train.loop import pretrain

ARCH, METHOD, RECIPE = "resnet18_cifar_w16", "cgh", "cifar"
PACKAGED = f"{ARCH}.cgh_cifar10"
# So few steps leave a relational target little worth copying: InfoNCE fades out over the whole run, not over a tenth.
SETTINGS = ("queue_length=1024", "warmup=1.0")
BATCH_SIZE = 128
UNTRAINED = {"epochs": 32, "base_lr": 0.12, "eval_every": 16.0}
TRAINED = {"epochs": 8, "base_lr": 0.02, "warmup_epochs": 1.0, "eval_every": 4.0}  # heads are new


def run(out: str | Path, seed: int = 0, random: bool = False) -> tuple[float, float]:
    """Walks the road, says each step on stdout, and returns kNN accuracy before and after, in percent.

    Args:
        out: folder to make.
        seed: of weights, order and views.
        random: start untrained, as where the packaged weights are missing.

    Raises:
        InputError: ``out`` is not empty.
    """
    out = Path(out)
    make_folder(out)
    images = out / "images"
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(images)
    train, val = load_splits(images)
    packaged = not random and fetch.where(manifest.row(PACKAGED), manifest.BACKBONE) == "packaged"
    settings = TRAINED if packaged else UNTRAINED
    config = dataclasses.replace(train_config(RECIPE, METHOD), batch_size=BATCH_SIZE, seed=seed, **settings)
    torch.manual_seed(seed)
    method = build_method(METHOD, ARCH, preprocessing(config), method_config(METHODS[METHOD], RECIPE, config, SETTINGS))
    untrained = knn_accuracy(method.student.backbone, train, val)
    print(f"1. {len(train)} photographs in {images}; untrained {ARCH}: kNN {untrained:.1f} %")
    if packaged:
        print(f"   {start_from(method, PACKAGED)}")
        print("   They know these photographs: expect no gain of more training; `cgh demo --random` shows learning.")
    elif not random:
        print(f"   {PACKAGED} is not packaged here: starting untrained")
    before = knn_accuracy(method.student.backbone, train, val) if packaged else untrained
    pretrain(method, train, config, out / "run")
    after = knn_accuracy(method.student.backbone, train, val)
    print(
        f"2. pretrained without labels for {config.epochs} epochs ({METHOD}), run in {out / 'run'}: kNN {after:.1f} %"
    )
    export(out / "run", out / "weights")
    print(f"3. heads stripped: {out / 'weights'}")
    features = extract(create_model(out / "weights"), val)
    print(f"4. read back by timm.create_model: {features.shape[0]} x {features.shape[1]} features of val/")
    print(f"kNN before {before:.1f} %, after {after:.1f} %")
    return before, after
