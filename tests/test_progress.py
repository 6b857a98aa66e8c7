"""Bars: on a terminal, of what takes longer than a second, with the time left."""

import contextlib
import io
import time
from collections.abc import Iterator

import torch

from cgh_models import progress
from cgh_models.files import sha256
from cgh_models.progress import watched
from cgh_models.tensors import read_tensors, write_tensors


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
