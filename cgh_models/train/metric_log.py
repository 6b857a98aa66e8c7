"""What a run leaves to read: metrics.jsonl, the progress bar, TensorBoard, and measurements of the backbone."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import files
from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..errors import DiskError, InputError, printable
from . import checkpoint

ADVICE = "start anew with a lower --base-lr, or with --precision float32"

Item = TypeVar("Item")


class Journal:
    """Collects a run's numbers on the device and looks at them every ``log_every`` steps."""

    def __init__(self, run_dir: Path, config: TrainConfig, images: ImageSet, monitor: Any, done: int, total: int):
        self.run_dir, self.config, self.images, self.monitor = run_dir, config, images, monitor
        self.done, self.total, self.per_epoch = done, total, total // config.epochs
        self.log_every = config.log_every or (1 if monitor.device.type == "cpu" else 10)
        self.measure_every = max(1, round((config.eval_every or max(1, config.epochs / 10)) * self.per_epoch))
        self.measured = config.eval_every >= 0
        self._rows: list[dict[str, Any]] = []
        self._batches: list[np.ndarray] = []
        self._unwritten, self._warned = b"", set()
        self._waited, self._since = 0.0, time.perf_counter()
        self._exits = contextlib.ExitStack()
        self._board = self._tensorboard() if config.tensorboard else None

    def __enter__(self) -> "Journal":
        path = self.run_dir / "metrics.jsonl"
        _cut(path, self.done)
        self._file = self._exits.enter_context(open(path, "ab", buffering=0))
        terminal = sys.stderr.isatty()
        self._bar = self._exits.enter_context(
            tqdm(
                total=self.total,
                initial=self.done,
                unit="step",
                mininterval=0.3 if terminal else 30,
                dynamic_ncols=True,
            )
        )
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()
        self._exits.close()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, with the time spent waiting for each added up."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield item

    def step(self, done: int, lr: float, losses: dict[str, Tensor], indices: np.ndarray, backbone: nn.Module) -> None:
        """Notes one step, and looks or measures if it is time to.

        Raises:
            InputError: a loss or gradient since the last look was not finite.
        """
        progress = (done - 1) / self.total
        self._rows.append(
            {"step": done, "epoch": (done - 1) // self.per_epoch, "progress": progress, "lr": lr, **losses}
        )
        self._batches.append(indices)
        if (self.measured and done % self.measure_every == 0) or done == self.total:
            self.measure(done, backbone)
        elif done % self.log_every == 0:
            self.flush()

    def measure(self, done: int, backbone: nn.Module) -> None:
        """Adds the monitor's values, if it is to look at all, to the line of step ``done``."""
        *rows, last = self._look() or [{"step": done}]
        values = self.monitor(backbone) if self.measured else {}
        for row in (*rows, last | values):
            self._write(row)
        if values:
            tqdm.write(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), file=sys.stderr)
        self._waited, self._since = 0.0, time.perf_counter()

    def flush(self) -> None:
        """Writes the noted steps."""
        for row in self._look():
            self._write(row)

    def keep(self, done: int, method: nn.Module, optimizer: torch.optim.Optimizer, must: bool) -> None:
        """Saves a checkpoint. A full disk is said and tried again next time, unless this one ``must`` be."""
        self.flush()
        state = [value for value in method.state_dict().values() if value.is_floating_point()]
        if not torch.nn.utils.get_total_norm(state).isfinite():
            raise InputError(f"step {done}: the weights are not finite and were not saved; {ADVICE}")
        try:
            checkpoint.save(self.run_dir, done, method, optimizer)
        except DiskError as error:
            if must:
                raise
            self._warn(f"{error}; training goes on")

    def _look(self) -> list[dict[str, Any]]:
        """The noted steps, brought to the host at once. A non-finite one ends the run; those before it are written."""
        rows, batches = self._rows, self._batches
        if not rows:
            return []
        self._rows, self._batches = [], []
        hosted = _to_host(rows)
        for row, values in zip(rows, hosted, strict=True):
            row.update(values)
        bad = next((i for i, row in enumerate(rows) if not row.pop("finite")), None)
        if bad is not None:
            for row in rows[:bad]:
                self._write(row)
            self._refuse(rows[bad]["step"], batches[bad:])
        seconds = time.perf_counter() - self._since
        speed, waiting = len(rows) * self.config.batch_size / seconds, self._waited / seconds
        rows[-1] |= {"images_per_second": round(speed, 1), "waiting": round(waiting, 4)}
        losses = ", ".join(f"{k} {v:.3f}" for k, v in hosted[-1].items() if k not in ("grad_norm", "finite"))
        self._bar.set_postfix_str(f"{losses}, {speed:.0f} images/s, {100 * waiting:.0f} % waiting for data")
        self._bar.update(len(rows))
        self._waited, self._since = 0.0, time.perf_counter()
        return rows

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def _write(self, row: dict[str, Any]) -> None:
        self._unwritten += (json.dumps(row) + "\n").encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(self._unwritten) < len(self._unwritten):  # a nearly full disk takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unwritten = b""
        except OSError as error:  # kept, and tried again with the next line
            self._file.truncate(size)
            self._warn(f"{self.run_dir / 'metrics.jsonl'}: cannot be written ({error.strerror}); make room")
        if self._board:
            for key, value in row.items():
                if isinstance(value, (int, float)) and key != "step":
                    self._board.add_scalar(key, value, row["step"])

    def _refuse(self, step: int, batches: list[np.ndarray]) -> None:
        path = self.run_dir / "nonfinite_batches.txt"
        lines = [
            f"{step + number}\t{printable(self.images.names[index])}\n"
            for number, batch in enumerate(batches)
            for index in batch
        ]
        try:
            path.write_text("".join(lines), encoding="utf-8")
            named = f"files since then: {path}"
        except OSError as error:
            named = f"its files could not be named: {error.strerror}"
        raise InputError(f"step {step}: loss or gradient is not finite ({named}); nothing of it was kept; {ADVICE}")

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("--tensorboard: not installed; type pip install 'cgh-models[tensorboard]'") from error
        return SummaryWriter(self.run_dir / "tensorboard")


def _to_host(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The tensors among the values as floats, with one transfer for all of them."""
    keys = [[k for k, v in row.items() if isinstance(v, Tensor)] for row in rows]
    flat = torch.stack([row[k].float() for row, names in zip(rows, keys, strict=True) for k in names]).tolist()
    values = iter(flat)
    return [{k: next(values) for k in names} for names in keys]


def _cut(path: Path, done: int) -> None:
    """Drops lines of steps after the checkpoint that a run resumes from, and half-written ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > done:
                break
        except ValueError:
            continue
        kept.append(line)
    with files.atomic(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
