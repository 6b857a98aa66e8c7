"""Processes that read images: how they are fed, the error when one dies, none is left."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import make_images
from torch.utils.data import Dataset

from cgh_models.config import TrainConfig
from cgh_models.data.eval_loader import eval_batches
from cgh_models.data.image_set import load
from cgh_models.data.loader import batches, order
from cgh_models.data.workers import Sample, read_batches
from cgh_models.errors import InputError
from cgh_models.view_recipes import RECIPES


def training(images):
    config = TrainConfig(batch_size=16, image_size=32, workers=2)
    return batches(images, RECIPES["weak_strong"], config, 0, 8, torch.device("cpu"))


def evaluation(images):
    return eval_batches(images, order(0, 0, len(images)), lambda _: torch.zeros(1), 16, 2)


SLOW = 600  # seconds that nothing may wait for; a busy machine may be slow itself
both = pytest.mark.parametrize("make", [training, evaluation])


@pytest.fixture
def images_that(image_root, monkeypatch):
    """Makes a set of 64 images that calls a function with the index before it reads an image."""

    def make(before):
        images = load(image_root / "train")
        real = type(images).image

        def image(self, index, min_side=0.0):
            before(index)
            return real(self, index, min_side)

        monkeypatch.setattr(type(images), "image", image)
        return images

    return make


class StopTraining(Exception):  # noqa: N818
    pass


@both
@pytest.mark.parametrize("delay", [0.001, 0.01, 1.0])
def test_an_exception_of_a_signal_handler_ends_slow_readers_at_once(images_that, make, delay):
    def stop(*_):
        raise StopTraining

    images = images_that(lambda _: time.sleep(SLOW))
    before = signal.signal(signal.SIGUSR1, stop)
    start = time.monotonic()
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1))

    def timed_next(batches):
        timer.start()
        return next(batches)

    try:
        with pytest.raises(StopTraining):
            timed_next(make(images))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - start < SLOW / 5
    assert not multiprocessing.active_children()


@both
def test_workers_say_nothing_of_a_trainer_that_leaves_them_in_the_middle_of_a_greeting(
    make, image_root, monkeypatch, capfd
):
    """As a signal's exception does that comes between a connection and its first words."""

    def greet(address):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
        time.sleep(0.5)  # in which the worker meets the end of the connection
        raise StopTraining

    monkeypatch.setattr(multiprocessing.connection, "SocketClient", greet)
    with pytest.raises(StopTraining):
        next(make(load(image_root / "train")))
    assert capfd.readouterr().err == ""


@both
def test_closing_the_batches_ends_slow_readers_at_once(images_that, make):
    slow = set(order(0, 0, 64)[16:].tolist())
    made = make(images_that(lambda index: time.sleep(SLOW * (index in slow))))
    next(made)
    assert len(multiprocessing.active_children()) == 2
    start = time.monotonic()
    made.close()
    assert time.monotonic() - start < SLOW / 5
    assert not multiprocessing.active_children()


def test_the_end_of_the_program_does_not_wait_for_readers_that_nobody_closed(image_root):
    code = f"""
import time
from cgh_models.data.eval_loader import eval_batches
from cgh_models.data.image_set import ImageSet, load
ImageSet.image = lambda self, index: time.sleep(600 * (index > 7))
made = eval_batches(load({str(image_root / "train")!r}), range(64), lambda _: torch.ones(1), 8, 2)
import torch
next(made)
raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, start_new_session=True)
    assert done.returncode == 3


@both
def test_a_signal_to_all_processes_ends_no_reader(images_that, make):
    """As a terminal, a container or a cluster sends it: the trainer decides."""
    first = order(0, 0, 64)[0]

    def signalled(index):
        if index == first:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    assert len(list(make(images_that(signalled)))) >= 4


def test_a_folder_that_goes_away_ends_a_run_in_one_sentence(tmp_path):
    make_images(tmp_path / "photos", 400)
    settings = (
        "--data photos --out run --method ressl --set queue_length=64 --arch resnet18_cifar_w16 "
        "--image-size 32 --batch-size 16 --epochs 1000 --eval-every -1 --memory-gib 0 --workers 2 "
        "--device cpu"
    )
    command = [sys.executable, "-m", "cgh_models", "pretrain", *settings.split()]
    run = subprocess.Popen(
        command, cwd=tmp_path, text=True, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()
            time.sleep(0.1)
        (tmp_path / "photos").rename(tmp_path / "elsewhere")
        _, stderr = run.communicate(timeout=120)
        lines = [line for line in re.split(r"[\r\n]+", stderr) if "error" in line.lower()]
        assert run.returncode == 2 and len(lines) == 1
        assert re.match(r"error: photos/class\d/\d+.png: cannot be opened: No such file", lines[0])
        assert "Traceback" not in stderr
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)  # nobody is left
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


@both
def test_an_error_in_a_reader_is_its_sentence_and_nothing_more(image_root, tmp_path, make):
    shutil.copytree(image_root / "train", tmp_path / "photos")
    images = load(tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(InputError) as caught:
        list(make(images))
    assert str(caught.value).startswith(str(tmp_path / "photos"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert not multiprocessing.active_children()


@both
def test_a_reader_that_was_killed_names_its_batch(images_that, make):
    """By the kernel, in the middle of an image, as where memory ends."""
    indices = order(0, 0, 64)

    def die(index):
        if index == indices[20]:  # of the second batch
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    images = images_that(die)
    batch = f"a batch of 16 images, the first of them {re.escape(str(images.path(indices[16])))}"
    message = rf"^a process that reads images ended \(SIGKILL\) at {batch}; often memory"
    with pytest.raises(InputError, match=message):
        list(make(images))
    assert not multiprocessing.active_children()


def test_a_reader_that_was_killed_during_a_step_lets_the_step_end(images_that):
    indices = order(0, 0, 64)

    def die(index):
        if index == indices[31]:  # of the second batch
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    images = images_that(die)
    steps = []

    def train():
        for _ in training(images):
            steps.append("begun")
            time.sleep(2)
            steps.append("ended")

    first = re.escape(str(images.path(indices[16])))
    with pytest.raises(InputError, match=rf"ended \(SIGKILL\) at .* of them {first};"):
        train()
    assert steps == ["begun", "ended"]
    assert not multiprocessing.active_children()


class Blank(Dataset):
    def __getitem__(self, key):
        return Sample(key[1], [torch.zeros(1)], [])


@pytest.mark.parametrize("which", [0, 1])
def test_a_reader_that_is_killed_while_the_trainer_is_busy_is_seen(which):
    """What it sends is shorter than the pipe: half a message would be waited for for ever."""
    keys = [[(0, index) for index in range(20_000)]] * 6
    made = read_batches(Blank(), keys, lambda index: Path(str(index)), 2)
    assert next(made).indices.tolist() == list(range(20_000))
    time.sleep(1)  # it has sent the next one, or is in the middle of that
    multiprocessing.active_children()[which].kill()
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(10)
    try:
        with pytest.raises(InputError, match=r"ended \(SIGKILL\) at a batch of 20000 images"):
            list(made)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def few_files(number):
    return lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def long_folder(path):
    tempfile.tempdir = str(path / ("x" * 200))
    os.mkdir(tempfile.tempdir)
    multiprocessing.current_process()._config.pop("tempdir", None)  # of processes begun before


@pytest.mark.parametrize(
    "limit, reason",
    [
        (few_files(30), "Too many open files"),  # the processes cannot be made
        (few_files(48), "Too many open files"),  # their batches cannot be taken
        (long_folder, "path too long"),
    ],
)
def test_what_processes_need_and_lack_is_one_sentence(
    image_root, tmp_path, monkeypatch, capfd, limit, reason
):
    """In a process of its own, which keeps all batches."""
    monkeypatch.setattr("cgh_models.data.workers._processors", lambda: 8)
    images = load(image_root / "train")
    child = os.fork()
    if not child:
        limit(tmp_path)
        signal.alarm(10)
        with contextlib.suppress(BaseException):
            try:
                list(eval_batches(images, range(64), lambda _: torch.zeros(1), 4, 8))
            except InputError as error:
                os.write(1, str(error).encode())
        os._exit(0 if not multiprocessing.active_children() else 1)
    assert os.waitpid(child, 0)[1] == 0
    said = capfd.readouterr().out
    assert re.fullmatch(
        rf"processes that read images cannot send them \(.*{reason}\); give fewer --workers, or "
        "--workers 0",
        said,
    ), said


SMALL_SHM = """
import subprocess, sys, time, torch
from cgh_models.data.eval_loader import eval_batches
from cgh_models.data.image_set import load
images = load(sys.argv[1])
for size in ("64k", "4k"):
    while subprocess.call(["mount", "-o", "remount,size=" + size, "/dev/shm"]):
        time.sleep(0.1)  # until what was in it is gone
    made = eval_batches(images, range(64), lambda _: torch.zeros(3, 99, 99), 16, 1)
    print("read", sum(len(tensors) for tensors, _ in made), flush=True)
"""


def test_a_small_dev_shm_is_enough_and_none_is_one_sentence(image_root):
    """As in a container; a batch of images is larger than either."""
    alone = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no name space of its own is allowed here, so /dev/shm cannot be made small")
    command = [*alone, sys.executable, "-c", SMALL_SHM, str(image_root / "train")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "read 64\n", done
    last = done.stderr.splitlines()[-1]
    assert re.search(r"InputError: .* cannot send them \(.*No space left on device\); give", last)
    assert "Exception ignored" not in done.stderr
