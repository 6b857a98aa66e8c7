"""What a run leaves to read: metrics.jsonl, what it says while it trains, TensorBoard files."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..data.loader import batch_indices
from ..errors import DiskError, InputError, os_error_as, printable
from ..methods.method import Losses
from . import checkpoint
from .log_file import LONGEST_LINE, drop_lines, lines, read_log
from .progress_line import ProgressLine, progress_texts
from .run import Run
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
    """Collects a run's numbers on the device, to be written all at once every ``log_every`` steps.

    ``done`` steps of a ``resumed`` run were taken before. Of several processes rank 0 writes; all
    have one of these, and ask each other at the same steps.
    """

    def __init__(
        self,
        run: Run,
        monitor: Any,  # a `Monitor`
        done: int,
        resumed: bool,
        on_log: Callable[[Row], object] | None,
    ):
        self.run = run
        self.processes = run.processes
        self.monitor = monitor
        self.done = done
        self.path = run.folder / "metrics.jsonl"
        self.log_every = run.config.log_every or (1 if run.device.type == "cpu" else 10)
        self.measures = run.config.eval_every >= 0
        epochs = run.config.eval_every or max(1, run.config.epochs / 10)
        self.measure_every = max(1, round(epochs * run.steps_per_epoch))
        self.measured: Row = {}  # the monitor's latest values
        self.verdict: Verdict | None = None
        self._measurements: list[Row] = []  # the rows that have one
        self._steps: list[_Step] = []
        self._unwritten = b""
        self._warnings: set[str] = set()
        self._saved_step = done if resumed else -1  # of a new run, not even step 0 is saved
        self._resumed = resumed
        self._listeners = [on_log] if on_log and run.processes.rank == 0 else []
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "MetricLogger":
        self._measurements = self.processes.from_first(self._open)
        if self.processes.rank:
            self._file = self._exits.enter_context(open(os.devnull, "ab", buffering=0))
        self._line = ProgressLine(self.run.total, self.done, self.run.config.quiet)
        self._exits.callback(self._line.close)
        self._restart_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _open(self) -> list[Row]:
        """Opens what is written into; returns the rows of earlier measurements."""
        if self.run.config.tensorboard:
            board = TensorBoard(self.run, self.monitor)
            self._exits.enter_context(board.writer)
            self._listeners.append(board)
        with os_error_as(DiskError, self.path, "cannot be written", "check disk and permissions"):
            drop_lines(self.path, self.done)
            file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - until the run ends
            self._file = self._exits.enter_context(file)
        return [row for row in read_log(self.path) if "feature_std" in row]

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items; the time spent waiting for each is added up."""
        start = time.perf_counter()
        for item in items:
            self._waited += time.perf_counter() - start
            yield item
            start = time.perf_counter()

    def start(self, method: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Measures and saves a new run; of a resumed one, measures what `unmeasured` says."""
        self._method = method
        self._optimizer = optimizer
        if self._saved_step < 0:
            self.measure(0)
            self.save_checkpoint(0, must=True)
            return
        unmeasured = self.unmeasured(self.done)
        values = self.monitor(method) if unmeasured else {}
        if unmeasured and values:
            line, row = unmeasured
            if self.processes.rank == 0:
                self._file.truncate(os.fstat(self._file.fileno()).st_size - len(line))
            self._write([row | values])
            self._report(row | values, values)

    def unmeasured(self, step: int) -> tuple[bytes, Row] | None:
        """The last line and its row if a signal left out its measurement, due after ``step``."""
        if not self.measures or not self.is_measured_after(step):
            return None

        def last_line() -> tuple[bytes, Row] | None:
            for line, row in list(lines(self.path, LONGEST_LINE))[-1:]:
                if row is not None and row["step"] == step and "feature_std" not in row:
                    return line, row
            return None

        return self.processes.from_first(last_line)

    def is_measured_after(self, step: int) -> bool:
        """Whether a measurement is due; without any the last step is written all the same."""
        return step == self.run.total or (self.measures and step % self.measure_every == 0)

    def add_step(self, step: int, lr: float, losses: Losses, indices: np.ndarray) -> None:
        """Collects the numbers of one step, which stay on the device."""
        before = step - 1
        epoch = before // self.run.steps_per_epoch
        row = {"step": step, "epoch": epoch, "progress": before / self.run.total, "lr": lr}
        self._steps.append(_Step(row, losses, indices))

    def measure(self, step: int) -> None:
        """Writes the collected steps; the monitor's values go into the line of ``step``."""
        last = self._steps[-1:]
        rows = self._finished_rows() or [{"step": step}]
        values = self.monitor(self._method) if self.measures else {}
        if self.measures and last:
            jumps = np.abs(np.diff(last[0].indices))
            rows[-1]["order_jump"] = float(jumps.mean()) / len(self.run.images)
        rows[-1] |= values
        self._write(rows)
        self._report(rows[-1], values)

    def _report(self, row: Row, values: Row) -> None:
        """Says what was measured and what it means."""
        if values:
            self.measured = values
            self._measurements.append(row)
            run = {"train": vars(self.run.config), "method_config": vars(self._method.config)}
            self.verdict = verdict(self._measurements, run)
            numbers = ", ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
            said = f"{self.verdict}; " if self.verdict else ""
            self._line.say(f"step {row['step']}: {said}{numbers}")
        self._restart_clock()

    def flush(self) -> None:
        """Writes the collected steps. Raises InputError if one of them was not finite."""
        self._write(self._finished_rows())

    def save_checkpoint(self, step: int, must: bool = False) -> None:
        """Saves the state after ``step`` steps, once; a full disk is a warning, unless it ``must``.

        Raises InputError if the weights are not finite.
        """
        if step == self._saved_step:
            return
        self.flush()
        state = self._method.state_dict().values()
        floats = [value for value in state if value.is_floating_point()]
        if not torch.nn.utils.get_total_norm(floats).isfinite():
            what = f"step {step}: the weights are not finite and were not saved"
            raise InputError(f"{what}; {ADVICE}")

        def save() -> bool:
            try:
                checkpoint.save(self.run.folder, step, self._method, self._optimizer)
                return True
            except DiskError as error:
                if must:
                    raise
                self._warn(f"{error}; training goes on")
                return False

        if self.processes.from_first(save):
            self._saved_step = step

    def rescue(self, step: int) -> str:
        """Saves what was trained before an error; a clause that says so, empty if it is nothing."""
        if not step:
            return ""
        self.save_checkpoint(step, must=True)
        return f"; saved at step {step}, {how_to_resume(self.run.folder)}"

    def _finished_rows(self) -> list[Row]:
        """The lines of the collected steps. One that is not finite ends the run."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        means = torch.stack([value.float() for step in steps for value in step.losses.values()])
        self.processes.average([means])
        values = iter(means.tolist())  # one transfer for all
        rows = []
        for number, step in enumerate(steps):
            for name in step.losses:
                step.row[name] = next(values)
            if not step.row.pop("finite"):
                self._write(rows)
                raise self._not_finite([int(step.row["step"]) for step in steps[number:]])
            rows.append(step.row)
        if self._resumed:
            rows[0]["resumed"] = 1  # a part of the run begins here
            self._resumed = False
        seconds = time.perf_counter() - self._since
        speed = len(rows) * self.run.config.batch_size / seconds
        waiting = self.processes.largest(self._waited / seconds)
        rows[-1] |= {"images_per_second": round(speed, 1), "waiting": round(waiting, 4)}
        losses = list(steps[-1].losses)
        fading = getattr(self._method, "fading", ())  # losses that a warm-up takes away
        texts = progress_texts(rows[-1], losses, fading, self.measured, speed, waiting)
        self._line.show(len(rows), *texts)
        self._restart_clock()
        return rows

    def _not_finite(self, steps: list[int]) -> InputError:
        """The error of the first of ``steps``; nonfinite_batches.txt names the images of all."""
        path = self.run.folder / "nonfinite_batches.txt"
        named = f"files since then: {path}"
        images = self.run.images
        text = ""
        for step in steps:
            for index in batch_indices(self.run.config, len(images), step - 1):
                text += f"{step}\t{printable(images.names[index])}\n"
        try:
            if self.processes.rank == 0:
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            named = f"its files could not be named: {error.strerror}"
        what = f"step {steps[0]}: loss or gradient is not finite ({named})"
        return InputError(f"{what}; nothing of it was kept; {ADVICE}")

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
