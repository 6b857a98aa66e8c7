"""Each line of a run's log, sent to Weights & Biases as it is written."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import InputError, printable


@contextlib.contextmanager
def wandb_log(
    project: str, run_dir: str | Path, settings: dict[str, object]
) -> Iterator[Callable[[dict[str, float]], object] | None]:
    """A function for ``on_log`` of `pretrain`, until the run ends; None for an empty ``project``.

    The run there is called like the run folder; WANDB_MODE=offline keeps it on this machine.
    Raises InputError without the library, or if it refuses.
    """
    if not project:
        yield None
        return
    try:
        import wandb
        from wandb.errors import Error
    except ImportError as error:
        raise InputError("--wandb: not installed; type pip install '.[wandb]'") from error
    name = Path(run_dir).resolve().name
    quiet = wandb.Settings(console="off", silent=True)
    try:
        run = wandb.init(project=project, name=name, config=settings, settings=quiet)
    except Error as error:
        reason = printable(" ".join(str(error).split()))[:200]
        advice = "type `wandb login`, or set WANDB_MODE=offline"
        raise InputError(f"--wandb {printable(project)}: {reason}; {advice}") from error
    with run:
        yield lambda row: run.log(row, step=int(row["step"]))
