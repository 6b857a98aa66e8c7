"""Whatever happens to stdout and stderr ends no training, and no command with a false 0."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import cgh
from small_runs import QUICK, build, lines

from cgh_models.cli.main import main
from cgh_models.errors import Output, say, shell_command
from cgh_models.train.loop import pretrain

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
CGH = f"{sys.executable} -m cgh_models"
TRAIN = "--recipe cifar --arch resnet18_cifar_w16 --batch-size 16 --epochs 1 --set queue_length=16"


def shell(command, cwd, **env):
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )


def test_a_training_outlives_its_terminal_its_reader_and_signals_that_were_ignored(
    image_root, tmp_path
):
    """As `nohup cgh pretrain ... 2>&1 | tee log &`, where all but the training ends."""
    script = "trap '' HUP INT TERM USR1; exec \"$@\" >&- <&-"
    command = ["bash", "-c", script, "bash", *CGH.split(), "pretrain", *TRAIN.split()]
    command += ["--data", str(image_root / "train"), "--out", str(tmp_path / "run")]
    reading, writing = os.pipe()
    run = subprocess.Popen([*command, "--memory-gib", "0", "--workers", "2"], stderr=writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    while run.poll() is None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            run.send_signal(number)
        time.sleep(0.05)
    assert run.returncode == 0
    assert [row["step"] for row in lines(tmp_path / "run")] == list(range(5))
    assert (tmp_path / "run" / "checkpoint-00000004.safetensors").exists()


class Notebook:
    """A stream with the least that print needs."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text.encode("ascii").decode()


def full():
    return open("/dev/full", "w")


def without_a_reader():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")


@pytest.mark.parametrize("stream", [lambda: None, full, without_a_reader, Notebook])
def test_a_training_in_python_trains_on_whatever_stderr_is(
    image_root, tmp_path, monkeypatch, stream
):
    made = stream()
    monkeypatch.setattr(sys, "stderr", made)
    pretrain(build(), image_root / "train", replace(QUICK, epochs=1), tmp_path / "run")
    assert [row["step"] for row in lines(tmp_path / "run")] == list(range(5))
    if isinstance(made, Notebook):
        assert "done after 4 steps" in made.text
    elif made:
        with contextlib.suppress(OSError):
            made.close()


@pytest.mark.parametrize(
    "words, streams, code, said",
    [
        ("list", ">/dev/full", 5, "error: stdout: not written (No space left on device); the res"),
        ("--help", ">/dev/full", 5, "error: stdout: not written (No space left on device); the r"),
        ("--help", ">&-", 5, "error: stdout: not written (it is closed); the result is lost"),
        ("--version", ">&-", 5, "error: stdout: not written (it is closed); the result is lost"),
        ("--version", "2>&- >/dev/full", 5, ""),
        ("info no.such", "2>&-", 2, ""),
        ("--version", "2>/dev/full", 0, ""),
        ("info no.such", "2>/dev/full", 2, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_nobody_got_is_no_success(tmp_path, words, streams, code, said, unbuffered):
    done = shell(f"{CGH} {words} {streams}", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code and done.stderr.startswith(said), done
    assert done.stderr.count("\n") == bool(said)


def test_a_number_is_recorded_though_nobody_reads_it(weights, image_root, tmp_path, monkeypatch):
    shutil.copytree(weights, tmp_path / "w")
    words = ["evaluate", "knn", str(tmp_path / "w"), "--data", str(image_root), "--k", "5"]
    monkeypatch.setattr(sys, "argv", ["cgh", *words, "--record"])
    lost = full()
    monkeypatch.setattr(sys, "stdout", lost)
    with pytest.raises(SystemExit, match="5"):
        main()
    with contextlib.suppress(OSError):
        lost.close()
    assert json.loads((tmp_path / "w" / "weights.json").read_text())["metrics"]["knn"]


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LANG": "C"}])
def test_letters_that_the_encoding_lacks_are_escaped(tmp_path, env):
    name = os.fsdecode(b"gro\xc3\x9f \xff")
    (tmp_path / name).mkdir()
    done = cgh("info", name, cwd=tmp_path, env=env)
    assert done.returncode == 2 and done.stderr.startswith("error: gro"), done.stderr
    assert done.stderr[:-1].isprintable()


def test_a_stream_of_a_notebook_is_enough(monkeypatch):
    stream = Notebook()
    assert not Output(stream).isatty()
    monkeypatch.setattr(sys, "stderr", stream)
    say("größer\x1b\udcff")
    assert stream.text == "gr\\xf6\\xdfer\\x1b\\udcff\n"
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody reads")


@pytest.mark.parametrize(
    "name", ["plain", "sp  ace", "it's", "-x", "$HOME `ls`", "é", "\n\x1b\udcff'"]
)
def test_a_proposed_command_can_be_pasted(tmp_path, name):
    command = shell_command("printf", "%s.", Path(name), "WEIGHTS")
    done = subprocess.run(["bash", "-c", command.strip("`")], capture_output=True, check=True)
    assert done.stdout == os.fsencode(f"{'./' * name.startswith('-')}{name}.WEIGHTS.")
    assert command.isprintable()
