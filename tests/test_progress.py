"""Bars: on a terminal, of what takes longer than a second, with the time left."""

import contextlib
import io
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cgh_models import progress
from cgh_models.hashing import sha256
from cgh_models.progress import watched
from cgh_models.tensors import read_tensors, write_tensors
from cgh_models.train.progress_line import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    with contextlib.redirect_stderr(Terminal()) as stderr:
        yield stderr


def test_what_is_over_within_a_second_shows_nothing(tmp_path):
    path = tmp_path / "small"
    path.write_bytes(bytes(1000))
    with terminal() as stderr:
        assert len(sha256(path)) == 64 and list(watched(range(9), "tries", 9)) == list(range(9))
    assert stderr.getvalue() == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
def test_a_forked_process_that_is_killed_leaves_no_bar_waiting():
    shown = progress.bar(9, "tries")
    child = os.fork()
    if not child:
        shown.get_lock().acquire()  # as while it draws
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    another = threading.Thread(target=progress.bar, args=(9, "others"), daemon=True)
    another.start()
    another.join(60)
    assert not another.is_alive(), "a bar waits for a lock that nobody gives back"


def test_what_takes_longer_shows_how_far_it_is_and_the_time_left():
    with terminal() as stderr:
        for _ in watched(range(4), "tries", 4, "try"):
            time.sleep(0.5)
    assert "3/4 [00:0" in stderr.getvalue() and "tries" in stderr.getvalue()


def test_without_a_terminal_there_is_no_bar():
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        for _ in watched(range(4), "tries", 4, "try"):
            time.sleep(0.5)
    assert stderr.getvalue() == ""


def test_bytes_are_counted_while_a_file_is_hashed_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    path = tmp_path / "large.safetensors"
    write_tensors(path, {"a": torch.zeros(2**22), "b": torch.zeros(2**22)})
    with terminal() as stderr:
        digest = sha256(path)
    assert "hash of large.safetensors" in stderr.getvalue() and "33.6M" in stderr.getvalue()
    with terminal() as stderr:
        read_tensors(path, digest)
    assert "reading large.safetensors" in stderr.getvalue() and "33.6M" in stderr.getvalue()


def test_embedding_and_neighbours_of_a_measurement_have_bars(image_root, weights, monkeypatch):
    from cgh_models.data.image_set import load_splits
    from cgh_models.evaluate.measurement import knn
    from cgh_models.evaluate.protocols import EvalSettings
    from cgh_models.hub.registry import create_model

    monkeypatch.setattr(progress, "_DELAY", 0.0)
    model = create_model(str(weights), pretrained=True)
    with terminal() as stderr:
        knn(model, *load_splits(image_root), EvalSettings(device="cpu", workers=0), k=5)
    assert "embedding" in stderr.getvalue() and "kNN" in stderr.getvalue()


def test_a_log_file_gets_plain_lines_of_a_training_at_most_one_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        line = ProgressLine(1000, 0, quiet=False)
        for _ in range(1000):
            now[0] += 0.5
            line.show(1, ["loss 1.234", "90 images/s"], ["other 5.678"])
        line.close()
    said = stderr.getvalue()
    assert all(character.isprintable() or character == "\n" for character in said)
    assert len(said.splitlines()) == 8  # of 500 seconds
    assert said.startswith("step 121 of 1000: loss 1.234, 07:19 left, 90 images/s")
