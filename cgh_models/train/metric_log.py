"""What a run leaves to read: metrics.jsonl, the progress bar, and TensorBoard files."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..errors import DiskError, InputError, Output, printable, shell_command
from ..methods.method import Losses
from . import checkpoint
from .log_file import LONGEST_LINE, drop_lines, lines

ADVICE = "start anew with a lower --base-lr, or with --precision float32"

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Step:
    row: dict[str, float]  # of metrics.jsonl
    losses: Losses  # on the device, with grad_norm and finite
    indices: np.ndarray  # (N,) of its images


class MetricLogger:
    """Collects a run's numbers on the device and writes them every ``log_every`` steps.

    ``monitor`` measures a backbone; ``done`` steps of a ``resumed`` run were taken before.
    """

    def __init__(
        self,
        run_dir: Path,
        images: ImageSet,
        config: TrainConfig,
        device: torch.device,
        monitor: Callable[[nn.Module], dict[str, float]],
        done: int,
        resumed: bool,
        on_log: Callable[[dict[str, float]], object] | None = None,
    ):
        self.run_dir = run_dir
        self.images = images
        self.config = config
        self.monitor = monitor
        self.done = done
        self.path = run_dir / "metrics.jsonl"
        self.steps_per_epoch = len(images) // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        self.log_every = config.log_every or (1 if device.type == "cpu" else 10)
        self.measures = config.eval_every >= 0
        self.measured: dict[str, float] = {}  # the monitor's latest values
        epochs = config.eval_every or max(1, config.epochs / 10)
        self.measure_every = max(1, round(epochs * self.steps_per_epoch))
        self._stderr = Output(sys.stderr)
        self._steps: list[_Step] = []
        self._unwritten = b""
        self._warnings: set[str] = set()
        self._saved_step = done if resumed else -1  # of a new run, not even step 0 is saved
        self._resumed = resumed
        self._listeners = [on_log] if on_log else []
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "MetricLogger":
        if self.config.tensorboard:
            self._listeners.append(self._tensorboard())
        try:
            drop_lines(self.path, self.done)
            self._file = self._exits.enter_context(open(self.path, "ab", buffering=0))
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); check disk and permissions"
            raise DiskError(f"{printable(self.path)}: {reason}") from error
        interval = 0.3 if self._stderr.isatty() else 30
        self._bar = tqdm(
            total=self.total,
            initial=self.done,
            file=self._stderr,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
        )
        self._exits.enter_context(self._bar)
        self._restart_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _tensorboard(self) -> Callable[[dict[str, float]], None]:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            install = "type pip install '.[tensorboard]'"
            raise InputError(f"--tensorboard: not installed; {install}") from error
        board = SummaryWriter(self.run_dir / "tensorboard")
        self._exits.callback(board.close)

        def add(row: dict[str, float]) -> None:
            for key in row.keys() - {"step"}:
                board.add_scalar(key, row[key], row["step"])

        return add

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time spent waiting for each is added up."""
        start = time.perf_counter()
        for item in items:
            self._waited += time.perf_counter() - start
            yield item
            start = time.perf_counter()

    def log_step(
        self, step: int, lr: float, losses: Losses, indices: np.ndarray, backbone: nn.Module
    ) -> None:
        """Collects the numbers of one step; writes, or measures the backbone, if it is time to."""
        before = step - 1
        epoch = before // self.steps_per_epoch
        row = {"step": step, "epoch": epoch, "progress": before / self.total, "lr": lr}
        self._steps.append(_Step(row, losses, indices))
        if step == self.total or (self.measures and step % self.measure_every == 0):
            self.measure(step, backbone)
        elif step % self.log_every == 0:
            self.flush()

    def measure(self, step: int, backbone: nn.Module) -> None:
        """Writes the collected steps; the monitor's values go into the line of ``step``."""
        rows = self._finished_rows() or [{"step": step}]
        values = self.monitor(backbone) if self.measures else {}
        rows[-1] |= values
        self._write(rows)
        self._report(step, values)

    def _report(self, step: int, values: dict[str, float]) -> None:
        if values:
            self.measured = values
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            tqdm.write(f"step {step}: {numbers}", file=self._stderr)
        self._restart_clock()

    def missed(self, step: int) -> tuple[bytes, dict[str, float]] | None:
        """The last line and its row if a signal left out its measurement, due after ``step``."""
        if not self.measures or (step % self.measure_every and step != self.total):
            return None
        for line, row in list(lines(self.path, LONGEST_LINE))[-1:]:
            if row is not None and row["step"] == step and "feature_std" not in row:
                return line, row
        return None

    def start(self, method: Any, optimizer: torch.optim.Optimizer) -> None:
        """Measures and saves a new run; of a resumed one, measures what `missed` says."""
        backbone = method.student.backbone
        if self._saved_step < 0:
            self.measure(0, backbone)
            self.save_checkpoint(0, method, optimizer, must=True)
            return
        missed = self.missed(self.done)
        values = self.monitor(backbone) if missed else {}
        if missed and values:
            line, row = missed
            self._file.truncate(os.fstat(self._file.fileno()).st_size - len(line))
            self._write([row | values])
            self._report(self.done, values)

    def flush(self) -> None:
        """Writes the collected steps. Raises InputError if one of them was not finite."""
        self._write(self._finished_rows())

    def save_checkpoint(
        self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, must: bool = False
    ) -> None:
        """Saves the state after ``step`` steps, once; a full disk is a warning, unless it ``must``.

        Raises:
            InputError: the weights are not finite.
        """
        if step == self._saved_step:
            return
        self.flush()
        state = [value for value in method.state_dict().values() if value.is_floating_point()]
        if not torch.nn.utils.get_total_norm(state).isfinite():
            raise InputError(
                f"step {step}: the weights are not finite and were not saved; {ADVICE}"
            )
        try:
            checkpoint.save(self.run_dir, step, method, optimizer)
            self._saved_step = step
        except DiskError as error:
            if must:
                raise
            self._warn(f"{error}; training goes on")

    def rescue(self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Saves what was trained before an error; a clause that says so, empty if it is nothing."""
        if not step:
            return ""
        self.save_checkpoint(step, method, optimizer, must=True)
        return f"; saved at step {step}, {shell_command('cgh', 'resume', self.run_dir)}"

    def _finished_rows(self) -> list[dict[str, float]]:
        """The lines of the collected steps. One that is not finite ends the run."""
        steps = self._steps
        self._steps = []
        if not steps:
            return []
        tensors = [value.float() for step in steps for value in step.losses.values()]
        values = iter(torch.stack(tensors).tolist())  # one transfer for all
        rows = []
        for number, step in enumerate(steps):
            for name in step.losses:
                step.row[name] = next(values)
            if not step.row.pop("finite"):
                self._write(rows)
                self._refuse(steps[number:])
            rows.append(step.row)
        if self._resumed:
            rows[0]["resumed"] = 1  # a part of the run begins here
            self._resumed = False
        seconds = time.perf_counter() - self._since
        speed = len(rows) * self.config.batch_size / seconds
        waiting = self._waited / seconds
        names = [name for name in steps[-1].losses if name not in ("grad_norm", "finite")]
        losses = ", ".join(f"{name} {rows[-1][name]:.3f}" for name in names)
        rows[-1] |= {"images_per_second": round(speed, 1), "waiting": round(waiting, 4)}
        self._bar.set_postfix_str(
            f"{losses}, {speed:.0f} images/s, {100 * waiting:.0f} % waiting for data"
        )
        self._bar.update(len(rows))
        self._restart_clock()
        return rows

    def _restart_clock(self) -> None:
        self._waited = 0.0
        self._since = time.perf_counter()

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            tqdm.write(f"warning: {text}", file=self._stderr)

    def _write(self, rows: list[dict[str, float]]) -> None:
        """Appends lines. Those that a full disk refuses are kept and written with the next."""
        for row in rows:
            self._unwritten += (json.dumps(row) + "\n").encode()
            for listener in self._listeners:
                listener(row)
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(self._unwritten)
            if written < len(self._unwritten):  # a nearly full disk takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unwritten = b""
        except OSError as error:
            self._file.truncate(size)
            self._warn(f"{self.path}: cannot be written ({error.strerror}); make room")

    def _refuse(self, steps: list[_Step]) -> None:
        """Ends the run at the first of ``steps``; nonfinite_batches.txt names their images."""
        path = self.run_dir / "nonfinite_batches.txt"
        named = f"files since then: {path}"
        lines = []
        for step in steps:
            names = [printable(self.images.names[index]) for index in step.indices]
            lines += [f"{step.row['step']}\t{name}\n" for name in names]
        try:
            path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            named = f"its files could not be named: {error.strerror}"
        raise InputError(
            f"step {steps[0].row['step']}: loss or gradient is not finite ({named}); "
            f"nothing of it was kept; {ADVICE}"
        )
