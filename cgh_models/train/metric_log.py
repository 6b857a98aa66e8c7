"""What a run leaves to read: metrics.jsonl, what it says while it trains, TensorBoard files."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..errors import DiskError, InputError, printable
from ..methods.method import Losses
from ..one_process import ALONE, OneProcess
from . import checkpoint
from .log_file import LONGEST_LINE, drop_lines, lines, read_log
from .nonfinite import not_finite
from .progress_line import ProgressLine, progress_texts
from .run_folder import how_to_resume
from .tensorboard import TensorBoard
from .verdict import ADVICE, Row, Verdict, verdict

SHOWN = ("knn", "knn_train", "view_match", "feature_std", "effective_rank")

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Step:
    row: Row  # of metrics.jsonl
    losses: Losses  # on the device, with grad_norm and finite
    indices: np.ndarray  # (N,) of its images


class MetricLogger:
    """Collects a run's numbers on the device and writes them every ``log_every`` steps.

    ``monitor`` is a `Monitor`; ``done`` steps of a ``resumed`` run were taken before. Of several
    ``processes`` rank 0 writes; all have one of these, and ask each other at the same steps.
    """

    def __init__(
        self,
        run_dir: Path,
        images: ImageSet,
        config: TrainConfig,
        device: torch.device,
        monitor: Any,
        done: int,
        resumed: bool,
        on_log: Callable[[Row], object] | None = None,
        processes: OneProcess = ALONE,
    ):
        self.run_dir = run_dir
        self.processes = processes
        self.images = images
        self.config = config
        self.monitor = monitor
        self.done = done
        self.path = run_dir / "metrics.jsonl"
        self.steps_per_epoch = len(images) // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        self.log_every = config.log_every or (1 if device.type == "cpu" else 10)
        self.measures = config.eval_every >= 0
        self.measured: Row = {}  # the monitor's latest values
        epochs = config.eval_every or max(1, config.epochs / 10)
        self.measure_every = max(1, round(epochs * self.steps_per_epoch))
        self.verdict: Verdict | None = None
        self._measurements: list[Row] = []  # the rows that have one
        self._steps: list[_Step] = []
        self._unwritten = b""
        self._warnings: set[str] = set()
        self._saved_step = done if resumed else -1  # of a new run, not even step 0 is saved
        self._resumed = resumed
        self._fading: tuple[str, ...] = ()  # losses that a warm-up takes away
        self._listeners = [on_log] if on_log and processes.rank == 0 else []
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "MetricLogger":
        self._measurements = self.processes.from_first(self._open)
        if self.processes.rank:
            self._file = self._exits.enter_context(open(os.devnull, "ab", buffering=0))
        self._line = ProgressLine(self.total, self.done, self.config.quiet)
        self._exits.callback(self._line.close)
        self._restart_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _open(self) -> list[Row]:
        """Opens what is written into; returns the rows of earlier measurements."""
        if self.config.tensorboard:
            folder = self.run_dir / "tensorboard"
            board = TensorBoard(folder, self.images, self.config, self.monitor)
            self._listeners.append(self._exits.enter_context(board))
        try:
            drop_lines(self.path, self.done)
            file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - until the run ends
            self._file = self._exits.enter_context(file)
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); check disk and permissions"
            raise DiskError(f"{printable(self.path)}: {reason}") from error
        return [row for row in read_log(self.path) if "feature_std" in row]

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time spent waiting for each is added up."""
        start = time.perf_counter()
        for item in items:
            self._waited += time.perf_counter() - start
            yield item
            start = time.perf_counter()

    def log_step(
        self,
        step: int,
        lr: float,
        losses: Losses,
        indices: np.ndarray,
        method: Any,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Collects the numbers of one step; writes, measures and saves where it is time to.

        Raises InputError, after saving, if ``stop_when_collapsed`` and the embeddings have.
        """
        before = step - 1
        epoch = before // self.steps_per_epoch
        row = {"step": step, "epoch": epoch, "progress": before / self.total, "lr": lr}
        self._steps.append(_Step(row, losses, indices))
        if step == self.total or (self.measures and step % self.measure_every == 0):
            self.measure(step, method)
            if self.config.stop_when_collapsed and self.verdict and self.verdict.collapsed:
                raise InputError(
                    f"step {step}: {self.verdict}{self.rescue(step, method, optimizer)}"
                )
        elif step % self.log_every == 0:
            self.flush()
        if step % self.config.checkpoint_every == 0:
            self.save_checkpoint(step, method, optimizer)

    def measure(self, step: int, method: Any) -> None:
        """Writes the collected steps; the monitor's values go into the line of ``step``."""
        last = self._steps[-1:]
        rows = self._finished_rows() or [{"step": step}]
        values = self.monitor(method) if self.measures else {}
        if self.measures and last:
            jumps = np.abs(np.diff(last[0].indices))
            rows[-1]["order_jump"] = float(jumps.mean()) / len(self.images)
        rows[-1] |= values
        self._write(rows)
        self._report(rows[-1], values, method)

    def _report(self, row: Row, values: Row, method: Any) -> None:
        """Says what was measured and what it means."""
        if values:
            self.measured = values
            self._measurements.append(row)
            run = {"train": vars(self.config), "method_config": vars(method.config)}
            self.verdict = verdict(self._measurements, run)
            names = [name for name in SHOWN if name in values]
            numbers = ", ".join(f"{name} {values[name]:.4g}" for name in names)
            said = f"{self.verdict}; " if self.verdict else ""
            self._line.say(f"step {row['step']}: {said}{numbers}")
        self._restart_clock()

    def missed(self, step: int) -> tuple[bytes, Row] | None:
        """The last line and its row if a signal left out its measurement, due after ``step``."""
        if not self.measures or (step % self.measure_every and step != self.total):
            return None
        for line, row in list(lines(self.path, LONGEST_LINE))[-1:]:
            if row is not None and row["step"] == step and "feature_std" not in row:
                return line, row
        return None

    def start(self, method: Any, optimizer: torch.optim.Optimizer) -> None:
        """Measures and saves a new run; of a resumed one, measures what `missed` says."""
        self._fading = getattr(method, "fading", ())
        if self._saved_step < 0:
            self.measure(0, method)
            self.save_checkpoint(0, method, optimizer, must=True)
            return
        missed = self.processes.from_first(lambda: self.missed(self.done))
        values = self.monitor(method) if missed else {}
        if missed and values:
            line, row = missed
            if self.processes.rank == 0:
                self._file.truncate(os.fstat(self._file.fileno()).st_size - len(line))
            self._write([row | values])
            self._report(row | values, values, method)

    def flush(self) -> None:
        """Writes the collected steps. Raises InputError if one of them was not finite."""
        self._write(self._finished_rows())

    def save_checkpoint(
        self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, must: bool = False
    ) -> None:
        """Saves the state after ``step`` steps, once; a full disk is a warning, unless it ``must``.

        Raises InputError if the weights are not finite.
        """
        if step == self._saved_step:
            return
        self.flush()
        state = [value for value in method.state_dict().values() if value.is_floating_point()]
        if not torch.nn.utils.get_total_norm(state).isfinite():
            raise InputError(
                f"step {step}: the weights are not finite and were not saved; {ADVICE}"
            )

        def save() -> bool:
            try:
                checkpoint.save(self.run_dir, step, method, optimizer)
                return True
            except DiskError as error:
                if must:
                    raise
                self._warn(f"{error}; training goes on")
                return False

        if self.processes.from_first(save):
            self._saved_step = step

    def rescue(self, step: int, method: nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Saves what was trained before an error; a clause that says so, empty if it is nothing."""
        if not step:
            return ""
        self.save_checkpoint(step, method, optimizer, must=True)
        return f"; saved at step {step}, {how_to_resume(self.run_dir)}"

    def _finished_rows(self) -> list[Row]:
        """The lines of the collected steps. One that is not finite ends the run."""
        steps = self._steps
        self._steps = []
        if not steps:
            return []
        tensors = [value.float() for step in steps for value in step.losses.values()]
        means = torch.stack(tensors)
        self.processes.average([means])
        values = iter(means.tolist())  # one transfer for all
        rows = []
        for number, step in enumerate(steps):
            for name in step.losses:
                step.row[name] = next(values)
            if not step.row.pop("finite"):
                self._write(rows)
                later = [int(step.row["step"]) for step in steps[number:]]
                raise not_finite(
                    self.run_dir, self.images, self.config, later, not self.processes.rank
                )
            rows.append(step.row)
        if self._resumed:
            rows[0]["resumed"] = 1  # a part of the run begins here
            self._resumed = False
        seconds = time.perf_counter() - self._since
        speed = len(rows) * self.config.batch_size / seconds
        waiting = self.processes.largest(self._waited / seconds)
        rows[-1] |= {"images_per_second": round(speed, 1), "waiting": round(waiting, 4)}
        losses = list(steps[-1].losses)
        texts = progress_texts(rows[-1], losses, self._fading, self.measured, speed, waiting)
        self._line.show(len(rows), *texts)
        self._restart_clock()
        return rows

    def _restart_clock(self) -> None:
        self._waited = 0.0
        self._since = time.perf_counter()

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self._line.say(f"warning: {text}")

    def _write(self, rows: list[Row]) -> None:
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
