"""A signal ends waiting at once and lets work finish; a second one ends the process."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from small_runs import QUICK, build, final

from cgh_models.data.image_set import ImageSet
from cgh_models.errors import Interrupted
from cgh_models.train import checkpoint, loop
from cgh_models.train.signals import StopSignals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
SLOW = 600  # seconds that nothing may wait for; a busy machine may be slow itself


def signal_me(after: float) -> None:
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGTERM)).start()


def test_a_signal_ends_a_wait_at_once_and_nothing_else():
    def slowly():
        yield from (0, 1)
        signal_me(0.2)
        time.sleep(SLOW)
        yield 2

    with StopSignals() as signals:
        start = time.monotonic()
        assert list(signals.until_stopped(slowly())) == [0, 1]
        assert signals.received == "SIGTERM" and time.monotonic() - start < SLOW / 5
        assert signals.unless_stopped(lambda: 1) is None
        assert list(signals.until_stopped(iter([1, 2]))) == []


def test_a_signal_while_an_item_is_used_lets_that_go_on():
    with StopSignals() as signals:
        used = []
        for item in signals.until_stopped(iter([1, 2, 3])):
            os.kill(os.getpid(), signal.SIGUSR1)
            used.append(item)
        assert used == [1] and signals.received == "SIGUSR1"


def test_without_a_signal_all_items_come_and_handlers_are_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGTERM) != before
        assert list(signals.until_stopped(iter([1, 2, 3]))) == [1, 2, 3]
        assert signals.unless_stopped(lambda: 4) == 4 and signals.received == ""
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_was_ignored_stays_ignored():
    """As nohup starts a program: the end of the terminal does not end the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert list(signals.until_stopped(iter([1, 2]))) == [1, 2] and signals.received == ""
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SECOND = """
import os, signal
from cgh_models.train.signals import StopSignals
with StopSignals() as signals:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)  # a worker that gets one takes no notice
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("is not reached", flush=True)
"""


def test_a_second_signal_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
    assert done.stdout == "goes on\n" and done.returncode == 128 + signal.SIGTERM, done.stderr


SLOW_READS = """
import sys, time
from cgh_models.cli.main import main
from cgh_models.data.image_set import ImageSet
def image(*_):
    sys.stdout.write("reading\\n")
    sys.stdout.flush()
    for _ in range(6000):  # Python sees a signal just before a system call only when that has ended
        time.sleep(0.1)
ImageSet.image = image
sys.argv = ["cgh", *sys.argv[1:]]
main()
"""


def test_the_process_does_not_wait_for_threads_that_read_slowly(image_root, tmp_path):
    words = ["pretrain", "--data", str(image_root / "train"), "--out", str(tmp_path / "run")]
    words += ["--recipe", "cifar", "--arch", "resnet18_cifar_w16", "--batch-size", "16"]
    words += ["--epochs", "1", "--eval-every", "-1", "--set", "queue_length=16"]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_READS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None and run.stdout.readline() == "reading\n"
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=SLOW / 5)
    assert run.returncode == 75 and "saved: " in said.splitlines()[-1], said


@pytest.mark.parametrize("phase", ["images are decoded", "step 0 is measured", "workers read"])
def test_a_signal_during_slow_reads_saves_and_does_not_wait_for_them(
    image_root, tmp_path, monkeypatch, phase
):
    """Each image takes ten minutes; a resumed run goes on as if nothing had happened."""
    data, run, slow = image_root / "train", tmp_path / "run", tmp_path / "slow"
    config = dataclasses.replace(QUICK, memory_gib=int(phase == "images are decoded"))
    if phase == "workers read":
        config = dataclasses.replace(config, eval_every=-1.0)
    reading = tmp_path / "reading"
    real_image, real_step, real_optimizer = ImageSet.image, loop.train_step, loop.create_optimizer
    signalled, entered = [], []

    def image(self, *rest):
        if slow.exists():
            reading.touch()
            until = time.monotonic() + SLOW
            while slow.exists() and time.monotonic() < until:
                time.sleep(0.1)
        return real_image(self, *rest)

    def train_step(*args):
        slow.touch()
        return real_step(*args)

    def create_optimizer(*args):
        if phase == "step 0 is measured":
            slow.touch()
        return real_optimizer(*args)

    class Signals(StopSignals):
        def __enter__(self):
            entered.append(self)
            return super().__enter__()

    def send_signal():
        while not reading.exists():
            time.sleep(0.1)
        waited = 0
        while waited < 20:  # what workers have read in advance is used up, and the run waits
            time.sleep(0.1)
            waited = waited + 1 if entered[0]._interrupts else 0
        signalled.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "image", image)
        patch.setattr(loop, "train_step", train_step)
        patch.setattr(loop, "StopSignals", Signals)
        patch.setattr(loop, "create_optimizer", create_optimizer)
        if phase == "images are decoded":
            slow.touch()
        threading.Thread(target=send_signal, daemon=True).start()
        with pytest.raises(Interrupted, match="SIGTERM at step .* of 12, saved"):
            loop.pretrain(build(config=config), data, config, run)
        assert time.monotonic() - signalled[0] < SLOW / 5
    slow.unlink()  # Python's end waits for the threads that still read
    step = checkpoint.newest(run, print)[0]
    if phase != "workers read":
        assert step == 0
        return
    assert 1 <= step < 12
    loop.pretrain(build(config=config), data, config, run, resume=True)
    loop.pretrain(build(config=config), data, config, tmp_path / "whole")
    whole, parts = final(tmp_path / "whole"), final(run)
    assert not [key for key in whole if not torch.equal(whole[key], parts[key])]
