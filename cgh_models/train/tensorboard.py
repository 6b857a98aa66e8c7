"""Rows of a run's log as TensorBoard files."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError


def scalars(folder: Path, exits: contextlib.ExitStack) -> Callable[[dict[str, float]], None]:
    """What takes the rows of a log and writes their numbers; closed by ``exits``.

    Raises InputError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        install = "type pip install '.[tensorboard]'"
        raise InputError(f"--tensorboard: not installed; {install}") from error
    board = SummaryWriter(folder)
    exits.callback(board.close)

    def add(row: dict[str, float]) -> None:
        for key in row.keys() - {"step"}:
            board.add_scalar(key, row[key], row["step"])

    return add
