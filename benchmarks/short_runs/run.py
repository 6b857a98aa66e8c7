"""Short runs from nothing, each measured once by kNN on images that it was not trained on.

    python benchmarks/short_runs/run.py FOLDER/cifar10 cgh --epochs 12 --base-lr 0.12 --seeds 0 1 2

Settings are chosen on 5,000 held-out training images; `--on test` trains on all training images
and reads the test images. A line of JSON a run is printed and appended to --out, of which
`table.py` makes tables.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cgh_models.cli.pretrain import Pretrain
from cgh_models.data.image_set import ImageSet, load_splits
from cgh_models.dataclass_json import to_dict
from cgh_models.evaluate import knn_accuracy
from cgh_models.evaluate.splits import draw, held_out, subset
from cgh_models.methods import build_method, preprocessing
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("method")
    parser.add_argument("--recipe", default="cifar")
    parser.add_argument("--arch", default="resnet18_cifar_w16")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--base-lr", type=float)
    parser.add_argument("--warmup-epochs", type=float)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--size-schedule")
    parser.add_argument("--optimizer")
    parser.add_argument("--paper-faithful", action="store_true", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--view", action="append", default=[], metavar="VIEW.STRENGTH=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--percent", type=int, default=100, help="of the training images, by class")
    parser.add_argument("--cuda-graphs", action="store_true", default=None)
    parser.add_argument("--commit", help="of this code, where git is not there to ask")
    parser.add_argument("--on", choices=["held-out", "test"], default="held-out")
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    given = parser.parse_args()
    if given.commit and (HERE.parents[1] / ".git").exists():
        parser.error("--commit: git knows it, or that the code was changed; leave it out")
    return given


def images_of(given: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and those to measure on."""
    train, val = load_splits(given.data)
    assert train.labels is not None
    if given.on == "held-out":
        kept, apart = held_out(train.labels, seed=0)
        train, val = subset(train, kept), subset(train, apart)
    if given.percent < 100:
        train = subset(train, draw(train.labels, given.percent, seed=0))
    return train, val


def run(given: argparse.Namespace, seed: int, train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """Trains and measures; what the line of the results holds."""
    names = ["epochs", "batch_size", "base_lr", "warmup_epochs", "image_size"]
    names += ["size_schedule", "optimizer", "paper_faithful", "cuda_graphs"]
    flags = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    flags |= {"seed": seed, "eval_every": -1.0, "checkpoint_every": 10**6, "quiet": True}
    chosen = {"method": given.method, "recipe": given.recipe, "set": tuple(given.set)}
    command = Pretrain(data="", out="", train=flags, view=tuple(given.view), **chosen)
    config, method_config = command.configs()
    torch.manual_seed(seed)
    method = build_method(given.method, given.arch, preprocessing(config), method_config)
    start, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        pretrain(method, train, config, folder)
        versions = checkpoint.read_run(Path(folder))["versions"]
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    knn = knn_accuracy(method.student.backbone.eval(), train, val)
    return {
        "data": given.data.name,
        "on": given.on,
        "method": given.method,
        "arch": given.arch,
        "recipe": given.recipe,
        "images": len(train),
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "base_lr": config.base_lr,
        "warmup_epochs": config.warmup_epochs,
        "image_size": config.image_size,
        "size_schedule": config.size_schedule,
        "optimizer": config.optimizer,
        "paper_faithful": config.paper_faithful,
        "set": given.set,
        "view": given.view,
        "method_config": to_dict(method_config),
        "seed": seed,
        "knn": round(knn, 2),
        "n": len(val),
        "seconds": round(seconds),
        "cpu_seconds": round(worked) if versions["device"] == "cpu" else None,
        "device": versions["device"],
        "threads": torch.get_num_threads(),
        "cuda_graphs": config.cuda_graphs,
        "torch": torch.__version__,
        "commit": versions["commit"] or given.commit,  # None: of changed code
    }


def main() -> None:
    given = arguments()
    train, val = images_of(given)
    for seed in given.seeds:
        line = json.dumps(run(given, seed, train, val))
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
