"""Shared fixtures: folders of small made images, a run and its weights, a Hub on loopback."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import types
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import Image

# Before huggingface_hub is imported, here and in every process a test starts: no test can reach a
# real Hub.
HUB = LoopbackHub()
_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": _HOME.name,
    "XDG_CACHE_HOME": _HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_ASSETS_CACHE"):
    os.environ.pop(_name, None)

# Where the tests were started in the background INT may be ignored, and then by the runs in them.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
PACKAGED = "resnet10_cifar_fast.cgh_cifar10"  # in the wheel; measured on CIFAR-10
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items) -> None:
    """Files with slow tests come first, so that several processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def make_images(root: Path, count: int, classes: int = 4, size: int = 32, seed: int = 0) -> Path:
    """``count`` PNG files in class folders: noise whose colour and stripes tell the class."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % classes
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(110, 30, (size, size, 3))
        pixels[:, :, label % 3] += 60
        pixels[:: 2 + label] -= 40
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.png")
    return root


def unpack_photographs(root: Path, train: int, val: int) -> Path:
    """ROOT with so many of the packaged photographs of each class in train/ and in val/."""
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(root)
    for split, kept in (("train", train), ("val", val)):
        for folder in (root / split).iterdir():
            for image in sorted(folder.iterdir())[kept:]:
                image.unlink()
    return root


@pytest.fixture(scope="session")
def image_root(tmp_path_factory) -> Path:
    """ROOT with train/ (64 images) and val/ (20 images), four class folders in both."""
    root = tmp_path_factory.mktemp("images")
    make_images(root / "train", 64)
    make_images(root / "val", 20, seed=1)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, image_root) -> Path:
    """A run folder of CGH on `test_resnet`, four steps."""
    from small_runs import train_run

    out = tmp_path_factory.mktemp("export") / "run"
    train_run(out, image_root)
    return out


@pytest.fixture(scope="module")
def weights(run) -> Path:
    """The weights folder exported from ``run``."""
    from cgh_models.hub.export import export

    export(run, run.parent / "weights", with_queue=True)
    return run.parent / "weights"


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """All of CIFAR-10 as JPEG files, train/ and val/."""
    root = Path(os.environ.get("CGH_DATA", "")) / "cifar10"
    if "CGH_DATA" not in os.environ or not root.is_dir():
        pytest.skip(
            "CIFAR-10 is not here: set CGH_DATA to a folder with cifar10/{train,val}/<class>/*.jpg"
        )
    return root


@pytest.fixture
def loopback(monkeypatch, tmp_path):
    """The Hub, empty and without faults, with a cache of its own for the test."""
    from huggingface_hub import constants

    HUB.repos.clear()
    HUB.log.clear()
    HUB.faults.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache" / "assets"))
    return HUB


@pytest.fixture
def counters():
    """`benchmarks/counters.py`: kernels, bytes, live memory and host syncs without a clock."""
    return benchmark("counters")


def benchmark(name: str):
    """A script of benchmarks/ as a module."""
    if (home := str(Path(__file__).parents[1] / "benchmarks")) not in sys.path:
        sys.path.append(home)
    return importlib.import_module(name)


def new_environment(folder: Path, *more: Path) -> Path:
    """Python of a new environment that finds the libraries of this one, and what lies in ``more``.

    For what changes an environment: other tests run in this one.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    found = (sysconfig.get_path("purelib"), *more)
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in found))
    return folder / "bin" / "python"


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in a folder of the test's; gives stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object):
        from cgh_models.cli.main import main

        monkeypatch.setattr(sys, "argv", ["cgh", *map(str, words)])
        capsys.readouterr()
        main()
        return capsys.readouterr()

    return run


# Processes that begin with torch and timm imported, which takes a fresh one five seconds.
FORKS = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
# torch._dynamo: torch imports it for an optimizer.
FORKS.set_forkserver_preload(["cgh_models.hub.registry", "cgh_models.train.loop", "torch._dynamo"])


CGH = "from cgh_models.cli.main import main; main()"


def cgh(*words: object, cwd: Path, env: dict | None = None) -> subprocess.CompletedProcess:
    """Runs the command line in a process of its own, in another folder."""
    return python(CGH, *words, cwd=cwd, env=env)


def python(
    code: str, *words: object, cwd: Path, env: dict | None = None
) -> subprocess.CompletedProcess:
    """Runs a program with these arguments, in a process that has imported torch and timm."""
    return Forked(code, *words, cwd=cwd, env=env).end()


class Forked:
    """A program in a process that has imported torch and timm, and that runs."""

    def __init__(self, code: str, *words: object, cwd: Path, env: dict | None = None):
        self.words = list(map(str, words))
        self.folder = tempfile.TemporaryDirectory(prefix="cgh-")
        self.files = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        args = (code, self.words, cwd, {**os.environ, **(env or {})}, self.files)
        self.process = FORKS.Process(target=_program, args=args)
        self.process.start()
        self.pid = self.process.pid

    def runs(self) -> bool:
        return self.process.exitcode is None

    def end(self, seconds: float = 600) -> subprocess.CompletedProcess:
        """Waits for its end, and gives what it said."""
        self.process.join(seconds)
        if self.runs():
            self.process.kill()
            raise TimeoutError(f"{self.words} took more than {seconds} s")
        out, err = (file.read_text("utf-8") if file.exists() else "" for file in self.files)
        self.folder.cleanup()
        return subprocess.CompletedProcess(["cgh", *self.words], self.process.exitcode, out, err)


def _program(
    code: str, words: list[str], cwd: Path, env: dict[str, str], files: list[Path]
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # as in a process that a user starts
    sys.argv = ["cgh", *words]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "a test's program", "exec"), vars(main))
