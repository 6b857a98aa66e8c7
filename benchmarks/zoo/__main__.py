"""Trains, measures and adds the zoo's rows. Needs torch, timm, torchvision, numpy, safetensors and pillow, no network.

    python -m benchmarks.zoo                                                  # what there is, what is next
    python -m benchmarks.zoo next --minutes 60 --data ROOT --out FOLDER       # train, export, measure, add
    python -m benchmarks.zoo next ... --only train                            # here; and where the weights are to be
    python -m benchmarks.zoo measure NAME --data ROOT --out FOLDER            # measured and added
    python -m benchmarks.zoo add WEIGHTS --packaged --heads                   # a folder that was measured otherwise

ROOT has the folders cifar10 and tiny-imagenet-200, train/ and val/ with class folders in each. A row is trained in one
go on one machine; `next` goes on with a run of its own that was cut short there.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cgh_models import checkpoint, manifest
from cgh_models.config import TrainConfig
from cgh_models.data import ImageSet, load, load_splits
from cgh_models.errors import ERRORS, InputError, say
from cgh_models.evaluate import measured
from cgh_models.evaluate.splits import subset
from cgh_models.evaluate_config import LINEAR
from cgh_models.export import export, record, write_description
from cgh_models.files import sha256
from cgh_models.registry import build_method, create_model, is_run, preprocessing
from cgh_models.report import read_log
from cgh_models.train import pretrain

from .add import REPO, add
from .rows import DATA, ROWS, Wanted

HERE = Path(__file__).parent
NUMBERS = HERE / "numbers.json"  # rows whose weights are not shipped
TRIAL = 40  # steps whose speed says how many epochs the minutes are
LINES = 200  # of a log that are kept, and those with a measurement
SHARE = 0.9  # of the minutes that is trained; the rest finds out the speed, reads images, exports


def known() -> dict[str, manifest.Row]:
    """Rows that are there, by name."""
    return {row["name"]: row for path in (manifest.MANIFEST, NUMBERS) for row in manifest.read(path)}


def wanted(name: str = "") -> Wanted:
    """The row of this name, or the first that is missing. Raises InputError."""
    done = known()
    found = next((row for row in ROWS if (row.name == name if name else row.name not in done)), None)
    if found is None:
        raise InputError(f"{name or 'next'}: no such row is wanted; rows.py has {', '.join(r.name for r in ROWS)}")
    return found


def show() -> None:
    """The table: what is there, what it took, what is next."""
    done = known()
    print("| row | data | epochs | hardware | hours | commit | kNN % | linear % |\n|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        if not (there := done.get(row.name)):
            print(f"| {row.name} | {row.data} | {row.epochs} wanted | | | | | |")
            continue
        took = there.get("training", {"hardware": "", "hours": 0.0})
        numbers = [f"{m['value']:.2f}" if m else "" for m in map(there["metrics"].get, ("knn", "linear"))]
        made = (
            f"{there['epochs']:.0f} | {took['hardware']} | {took['hours']:.2g} | {(there['code']['commit'] or '')[:7]}"
        )
        print(f"| {row.name} | {row.data} | {made} | {' | '.join(numbers)} |")


def speed(row: Wanted, images: ImageSet, device: str, workers: int) -> float:
    """Images a second, from a short run of the row."""
    config, method_config = row.configs(1, device, workers)
    count = min(TRIAL * config.batch_size, len(images))
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        _train(row, subset(images, range(count)), dataclasses.replace(config, log_every=5), method_config, run)
        lines = read_log(run / "metrics.jsonl")
    found = sorted(line["images_per_second"] for line in lines[len(lines) // 2 :] if "images_per_second" in line)
    return found[len(found) // 2]


def _train(row: Wanted, images: ImageSet, config: TrainConfig, method_config: Any, run: Path) -> None:
    torch.manual_seed(config.seed)
    method = build_method(row.method, row.arch, preprocessing(config), dataclasses.asdict(method_config))
    pretrain(method, images, config, run, resume=is_run(run))


def _epochs(row: Wanted, images: ImageSet, minutes: float, device: str, workers: int) -> int:
    """As many of the row's as the minutes allow. Raises InputError if they are not worth it."""
    found = speed(row, images, device, workers)
    epochs = min(row.epochs, int(SHARE * 60 * minutes * found / len(images)))
    say(f"{row.name}: {found:.0f} images a second, {epochs} of {row.epochs} epochs in {minutes:g} minutes")
    if epochs < row.least:
        need = math.ceil(row.least * len(images) / found / 60 / SHARE)
        raise InputError(
            f"{row.name}: {epochs} epochs in {minutes:g} minutes, {row.least} are worth it; give --minutes {need}"
        )
    return epochs


def train(row: Wanted, root: Path, minutes: float, out: Path, device: str, workers: int) -> Path:
    """The weights folder of the row, with its thinned log; goes on with a run that was cut short. Raises InputError."""
    images = load(root / row.data / "train")
    run, folder = out / "runs" / row.name, out / row.name
    begun = checkpoint.read_run(run)["train"]["epochs"] if is_run(run) else 0
    epochs = begun or _epochs(row, images, minutes, device, workers)
    config, method_config = row.configs(epochs, device, workers)
    with _called(row.command(epochs)):
        _train(row, images, config, method_config, run)
    data_name, terms, _ = DATA[row.data]
    told = {"license": "apache-2.0", "data_name": data_name, "data_license": terms}
    export(run, folder, dtype="float16", tag=row.tag, **told)
    log = read_log(run / "metrics.jsonl")
    every = max(1, len(log) // LINES)
    kept = [line for n, line in enumerate(log, 1) if n % every == 0 or n == len(log) or "knn" in line]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    took = {"hardware": hardware(device), "hours": float(f"{hours(log, config.batch_size):.3g}")}
    (folder / "took.json").write_text(json.dumps(took))
    return folder


def hours(log: list[dict[str, Any]], batch_size: int) -> float:
    """Of training, from the speeds in a log."""
    timed = [(line["step"], line["images_per_second"]) for line in log if "images_per_second" in line]
    steps = [after - before for (before, _), (after, _) in itertools.pairwise([(0, 0.0), *timed])]
    return sum(batch_size * count / found for count, (_, found) in zip(steps, timed, strict=True)) / 3600


@contextlib.contextmanager
def _called(command: str):
    """What a run keeps as its command is the one that makes it again."""
    before, sys.argv = sys.argv, shlex.split(command)
    try:
        yield
    finally:
        sys.argv = before


def hardware(device: str) -> str:
    """What it was trained on."""
    if device != "cpu" and torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} threads of {name}"


def measure(row: Wanted, root: Path, folder: Path, device: str, workers: int, linear: bool) -> None:
    """Writes its numbers, and those of an untrained network, into the folder's row."""
    how = {"device": device, "workers": workers}
    model = create_model(folder)
    torch.manual_seed(0)
    untrained = create_model(row.arch, pretrained=False)
    untrained.pretrained_cfg = model.pretrained_cfg
    for data, (data_name, _, _) in DATA.items():
        if not (root / data).is_dir():
            say(f"{root / data}: not there, nothing is measured on it")
            continue
        train, val = load_splits(root / data)
        own = data == row.data
        for network, metric, words in (
            (model, "knn" if own else "knn_transfer", [row.name]),
            (untrained, "knn_random" if own else "knn_transfer_random", [row.name, "--random"]),
        ):
            found = measured.knn(network, train, val, **how)
            _record(folder, metric, found, data_name, ["knn", *words, "--data", data])
        if own and linear:
            found = measured.linear("sgd", model, train, val, LINEAR[row.recipe], row.recipe, say=say, **how)
            words = ["linear", row.name, "--data", data, "--protocol", "sgd", "--recipe", row.recipe]
            _record(folder, "linear", found, data_name, words)


def _record(folder: Path, metric: str, found: dict[str, Any], data_name: str, words: list[str]) -> None:
    say(f"{metric} on {data_name}: {found['value']:.2f} %")
    record(folder, metric, {"data": data_name, **found, "command": shlex.join(["cgh", "evaluate", *words])})


def finish(row: Wanted, folder: Path, commit: str) -> None:
    """Puts what the folder holds where it belongs: log, row, files. Raises InputError if the code is not known."""
    told = manifest.read_row(folder)
    told["code"]["commit"] = commit or told["code"]["commit"]
    if row.shipped and not told["code"]["commit"]:
        raise InputError(f"{row.name}: was trained by code that is no commit, or without git; give --commit")
    log = HERE / "logs" / f"{row.name}.jsonl"
    log.write_bytes((folder / "log.jsonl").read_bytes())
    took = json.loads((folder / "took.json").read_text())
    told["training"] = took | {"log": str(log.relative_to(REPO)), "log_sha256": sha256(log)}
    told["notes"] = list(dict.fromkeys([DATA[row.data][2], *told["notes"]]))
    write_description(folder, told)
    if row.shipped:
        add(folder, packaged=row.packaged, heads=row.heads)
    else:
        manifest.add(NUMBERS, manifest.read_row(folder))
    print(f"{row.name}: {log.relative_to(REPO)}")


def main() -> None:
    """Dispatches; an error is one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    for name, told in (("next", "train, export, measure and add a row"), ("measure", "measure and add a trained row")):
        command = commands.add_parser(name, help=told)
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True, help="folder for runs and weights")
        command.add_argument("--device", default="auto")
        command.add_argument("--workers", type=int, default=2)
        command.add_argument("--commit", default="", help="of the code that trained, where git was not there to ask")
        command.add_argument("--no-linear", action="store_true", help="leave the linear evaluation for later")
    command = commands.add_parser("add", help="add a weights folder as it is")
    command.add_argument("folder", type=Path)
    command.add_argument("--packaged", action="store_true", help="into the wheel")
    command.add_argument("--heads", action="store_true", help="with its heads, beside the wheel")
    commands.choices["next"].add_argument("--minutes", type=float, required=True, help="of training")
    commands.choices["next"].add_argument("--row", default="", help="another than the first that is missing")
    commands.choices["next"].add_argument("--only", choices=["train"], help="measure and add it elsewhere")
    commands.choices["measure"].add_argument("row")
    args = parser.parse_args()
    try:
        if not args.command:
            return show()
        if args.command == "add":
            return add(args.folder, packaged=args.packaged, heads=args.heads)
        row = wanted(args.row)
        folder = args.out / row.name
        if args.command == "next":
            folder = train(row, args.data, args.minutes, args.out, args.device, args.workers)
            if args.only:
                return print(folder)
        measure(row, args.data, folder, args.device, args.workers, not args.no_linear)
        finish(row, folder, args.commit)
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
