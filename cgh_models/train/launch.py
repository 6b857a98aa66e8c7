"""What torchrun or srun tells a process that it has started, by its environment."""

import os
import sys

from ..errors import InputError, Output, printable

# Slurm's numbers of steps that srun made end here; those after are of shells of a job.
_LAST_STEP = 0xFFFFFFF0


def take_from_slurm() -> None:
    """srun has words of its own for what torchrun says; it is meant where MASTER_ADDR is set.

    Raises InputError for a process of the job's script, which would wait for what never begins.
    """
    environ = os.environ
    if "RANK" in environ or "SLURM_PROCID" not in environ or "MASTER_ADDR" not in environ:
        return
    step = environ.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) > _LAST_STEP:  # a shell has a SLURM_PROCID too
        tasks = environ.get("SLURM_NTASKS", "1")
        if tasks == "1":
            return
        given = f"MASTER_ADDR in a Slurm job of {tasks} tasks, but srun did not start this process"
        hint = "type srun before the command, or `unset MASTER_ADDR` to train with one process"
        raise InputError(f"{given}; {hint}")
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    environ |= {name: environ[slurm] for name, slurm in names.items()}
    tasks = environ.get("SLURM_NTASKS_PER_NODE", "1")
    environ |= {"LOCAL_WORLD_SIZE": tasks, "MASTER_PORT": environ.get("MASTER_PORT", "29500")}


def was_restarted() -> bool:
    """Whether torchrun started this process again, after one of the run had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def is_launched() -> bool:
    """Whether torchrun or srun started this process, and passes signals on to it."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1


def tell(rank: int, count: int, error: object) -> None:
    """Says on stderr, which ranks above 0 do not use otherwise, what only this process knows."""
    Output(sys.__stderr__).write(f"process {rank} of {count}: error: {printable(error)}\n")
