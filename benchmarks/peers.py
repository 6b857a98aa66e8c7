"""What features an hour gives: lightly, LightlyTrain and ours for the same wall clock.

    make bench-peers DATA=FOLDER/cifar10 MINUTES=20
    python benchmarks/peers.py FOLDER/cifar10 --peers PEERS/bin/python --minutes 20 --seeds 0 1 2

The same files, network, batch and two threads for each, on a CPU; a contender is a process of its
own, whose time counts from its start, with imports, listing and reading. Contenders:

- lightly: its example of MoCo v2: float32, views of PIL images, no schedule of the learning rate,
  input_size=32 and Gaussian blur as there. Its loop ends a second before the limit. Other than
  there: the network, images from a folder, two workers instead of eight.
- lightly-bf16: the same with bfloat16 autocast and channels_last.
- lightly-train: LightlyTrain's SimCLR, image_size 32, without its usage events; all else is its
  default, such as workers (one on two cores). Its default method, distillation, downloads a
  teacher. It is under the AGPL, and is only run, in the peers' environment.
- moco_v2, cgh: `cgh pretrain` with recipe cifar, a learning rate of 0.12 and no measurements as it
  trains; it keeps these images in memory.

Each first runs for --probe-seconds after its start-up, which tell how many epochs fit; that time
does not count. A run that takes over 5 % longer than it may is killed, and its row says so. Peers
run with seed 0, ours with --seeds.

A line of JSON a run is appended to --out, and a table of all in it is printed: epochs and images a
second of training, the largest memory of the processes together (PSS, once a second, so Linux
only), and kNN (k 20, T 0.07) of the backbone, measured by `cgh_models.evaluate` for all, each with
the normalization that it was trained with. --on held-out, the default, trains without 5,000 of the
training images and measures on those; --on test reads the test images.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from short_runs.run import images_of
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import cgh_models
from cgh_models.data.image_set import ImageSet
from cgh_models.evaluate import knn_accuracy
from cgh_models.train import checkpoint

HERE = Path(__file__).resolve().parent
OURS = ["moco_v2", "cgh"]
UNTIL_THE_LIMIT = ["lightly", "lightly-bf16"]  # their loops end when they are told, not by epochs
CONTENDERS = [*UNTIL_THE_LIMIT, "lightly-train", *OURS]
THREADS = 2
SPARE = 0.03  # of the time for training, for its end and what the probe has not seen
LATEST = 1.05  # times the limit, at which a run is killed
FEWEST = 3  # steps seen, of which a speed is told
MANY = 1000  # epochs of a probe, which does not come to its end
HEAD = (
    "| contender | versions | seed | epochs | images/s | memory, MiB | seconds | kNN % |\n"
    "|---|---|---|---|---|---|---|---|"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--peers", type=Path, help="the python of the peers' environment")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--probe-seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arch", default="resnet18_cifar_w16")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--percent", type=int, default=100, help="of the training images, by class")
    parser.add_argument("--on", choices=["held-out", "test"], default="held-out")
    parser.add_argument("--out", type=Path, default=HERE / "peers.jsonl")
    given = parser.parse_args()
    if given.peers is None and set(given.only) - set(OURS):
        parser.error("--peers: give the python that has lightly-train; make bench-peers does")
    return given


def folder_of(given: argparse.Namespace, folder: Path) -> tuple[Path, ImageSet, ImageSet]:
    """The folder to train on, made in ``folder`` if it is less than train/, and its images; those
    to measure on."""
    train, val = images_of(given)
    if given.on == "test" and given.percent == 100:
        return train.root, train, val
    for name in train.names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((train.root / name).read_bytes())
    return folder, train, val


def command(
    given: argparse.Namespace, name: str, images: Path, out: Path, epochs: int, seed: int
) -> list[str]:
    """What a user of the contender types, without when it has to end."""
    common = {"--arch": given.arch, "--batch-size": given.batch_size, "--epochs": epochs}
    common["--seed"] = seed
    if name in OURS:
        words = [sys.executable, "-m", "cgh_models", "pretrain"]
        common |= {"--data": images, "--out": out / "run", "--method": name, "--recipe": "cifar"}
        common |= {"--base-lr": 0.12, "--warmup-epochs": 5, "--eval-every": -1, "--log-every": 1}
        common["--device"] = "cpu"
    else:
        words = [str(given.peers), str(HERE / "peers_lightly.py"), name, str(images), str(out)]
    return words + [str(word) for item in common.items() for word in item]


def steps_done(out: Path) -> int:
    """The last step in the log of a run."""
    for file in (out / "metrics.jsonl", out / "run" / "metrics.jsonl"):
        if file.exists():
            lines = file.read_bytes().split(b"\n")[:-1]  # the last may be half a line
            return json.loads(lines[-1])["step"] if lines else 0
    return 0


def session(leader: int) -> Iterator[Path]:
    """The folder in /proc of each process that the leader of a session started, and its own."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) == leader:
                yield process
        except OSError:  # it has ended
            continue


def memory(leader: int) -> float:
    """MiB of these processes together; what several share is counted once."""
    kib = 0
    for process in session(leader):
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def watched(words: list[str], out: Path, limit: float, training: float) -> dict[str, Any]:
    """Runs a command; kills it after so many seconds, or so many after the first step, and some.

    Raises SystemExit with what it said last if it fails.
    """
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent),
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
        "LIGHTLY_TRAIN_CACHE_DIR": str(out / "cache"),
    }
    seen: list[tuple[float, int]] = []  # seconds and steps, whenever there are more of them
    peak, ticks, killed = 0.0, 0, False
    start = time.perf_counter()
    with (out / "said").open("wb") as said:
        process = subprocess.Popen(
            words, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        try:
            while process.poll() is None:
                now, steps = time.perf_counter() - start, steps_done(out)
                if steps > (seen[-1][1] if seen else 0):
                    seen.append((now, steps))
                if ticks % 4 == 0:
                    peak = max(peak, memory(process.pid))
                killed = now > limit or (len(seen) > FEWEST and now > seen[0][0] + training)
                if killed:
                    break
                ticks += 1
                time.sleep(0.25)
        finally:
            seconds = time.perf_counter() - start
            for left in session(process.pid):
                os.kill(int(left.name), signal.SIGKILL)
            process.wait()
    if process.returncode and not killed:
        end = (out / "said").read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(words)}: ended with {process.returncode}:\n{end}")
    found = {"seen": seen, "steps": steps_done(out), "killed": killed}
    return found | {"seconds": seconds, "memory": peak}


def speed(seen: list[tuple[float, int]]) -> float:
    """Steps a second of training. Raises SystemExit if too few were seen to tell."""
    if len(seen) < 2:
        raise SystemExit("fewer than two steps were seen to be done; give more --minutes")
    (first, before), (last, after) = seen[0], seen[-1]
    return (after - before) / (last - first)


def epochs_that_fit(limit: float, start_up: float, epoch: float, until_the_limit: bool) -> int:
    """How many epochs, of so many seconds, are planned. Raises SystemExit if not even one fits.

    A loop that ends at the limit has one of which a part is run.
    """
    fit = (limit - start_up) / epoch
    if until_the_limit:
        return max(1, math.ceil(fit))
    if fit * (1 - SPARE) < 1:
        needed = f"starts for {start_up:.0f} s and takes {epoch:.0f} s an epoch"
        raise SystemExit(f"it {needed}: give more --minutes, or less --percent")
    return int(fit * (1 - SPARE))


def probe(given: argparse.Namespace, name: str, images: Path) -> tuple[float, float]:
    """Seconds until its first step is done, and steps a second from then on."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        words = command(given, name, images, out, MANY, seed=0)
        found = watched(words, out, math.inf, given.probe_seconds)
    return found["seen"][0][0] if found["seen"] else 0.0, speed(found["seen"])


def backbone_of(name: str, arch: str, out: Path) -> torch.nn.Module:
    """The trained network, with the normalization of its training."""
    if name in OURS:
        return cgh_models.create_model(out / "run").eval()
    network = timm.create_model(arch, num_classes=0)
    network.load_state_dict(torch.load(out / "backbone.pt", weights_only=True))
    imagenet = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    network.pretrained_cfg = {**network.pretrained_cfg, **imagenet}
    return network.eval()


def commit() -> str:
    words = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run(
    given: argparse.Namespace, name: str, seed: int, epochs: int, images: Path, sets: list[ImageSet]
) -> dict[str, Any]:
    """Trains and measures; what the line of the results holds."""
    limit = given.minutes * 60
    train, val = sets
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        words = command(given, name, images, out, epochs, seed)
        if name in UNTIL_THE_LIMIT:
            words += ["--until", str(time.time() + limit - 1)]  # a second to end in
        found = watched(words, out, limit * LATEST, math.inf)
        knn = None
        if not found["killed"]:
            knn = round(knn_accuracy(backbone_of(name, given.arch, out), train, val), 2)
        if name in OURS:
            versions = checkpoint.read_run(out / "run")["versions"]
        else:
            versions = json.loads((out / "versions.json").read_text())
    return {
        "contender": name,
        "versions": versions,
        "commit": commit(),
        "seed": seed,
        "data": given.data.name,
        "on": given.on,
        "images": len(train),
        "arch": given.arch,
        "batch_size": given.batch_size,
        "threads": THREADS,
        "minutes": given.minutes,
        "epochs_planned": epochs,
        "epochs": round(found["steps"] / (len(train) // given.batch_size), 2),
        "start_up": round(found["seen"][0][0], 1) if found["seen"] else None,
        "images_per_second": round(speed(found["seen"]) * given.batch_size, 1),
        "memory": round(found["memory"]),
        "seconds": round(found["seconds"], 1),
        "killed": found["killed"],
        "knn": knn,
        "n": len(val),
    }


def row_of(result: dict[str, Any]) -> str:
    names = ["lightly-train", "lightly", "torch"]
    versions = [f"{key} {result['versions'][key]}" for key in names if key in result["versions"]]
    if result["contender"] in OURS:
        versions.append(result["commit"][:7])
    knn = "none: killed, too late" if result["killed"] else f"{result['knn']:.2f}"
    cells = [result["contender"], ", ".join(versions), result["seed"], f"{result['epochs']:g}"]
    cells += [f"{result['images_per_second']:,.0f}", f"{result['memory']:,}"]
    return f"| {' | '.join(map(str, [*cells, round(result['seconds']), knn]))} |"


def tables(results: list[dict[str, Any]]) -> str:
    """A table of the results for each length, and each set of images measured on."""
    text = ""
    kinds = dict.fromkeys((r["data"], r["on"], r["images"], r["n"], r["minutes"]) for r in results)
    for kind in kinds:
        data, on, images, n, minutes = kind
        what = "test images" if on == "test" else "held-out training images"
        text += f"{data}, {minutes:g} minutes, {images:,} images, kNN of {n:,} {what}:\n\n{HEAD}\n"
        for r in results:
            if (r["data"], r["on"], r["images"], r["n"], r["minutes"]) == kind:
                text += row_of(r) + "\n"
        text += "\n"
    return text.rstrip()


def contend(given: argparse.Namespace, name: str, images: Path, sets: list[ImageSet]) -> None:
    """Chooses the epochs and runs each seed; prints and keeps the results."""
    start_up, steps = probe(given, name, images)
    epoch = len(sets[0]) // given.batch_size / steps
    epochs = epochs_that_fit(given.minutes * 60, start_up, epoch, name in UNTIL_THE_LIMIT)
    print(f"{name}: {start_up:.1f} s, then {epoch:.1f} s an epoch: {epochs} planned", flush=True)
    for seed in given.seeds if name in OURS else [0]:
        line = json.dumps(run(given, name, seed, epochs, images, sets))
        print(line, flush=True)
        with given.out.open("a") as file:
            file.write(line + "\n")


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is stopped, too
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        images, train, val = folder_of(given, Path(folder))
        for name in given.only:
            try:
                contend(given, name, images, [train, val])
            except SystemExit as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
    if given.out.exists():
        print(tables([json.loads(line) for line in given.out.read_text().splitlines()]))
    if failed:
        sys.exit(f"no result of {', '.join(failed)}")


if __name__ == "__main__":
    main()
