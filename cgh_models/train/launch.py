"""What processes are told when torchrun or srun starts them, and what each takes of a run."""

import os
import sys

import torch

from ..config import TrainConfig
from ..errors import InputError, Output, printable, say
from ..one_process import OneProcess
from .watch import Watch

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


def own_device(processes: OneProcess, name: str) -> str:
    """The device of this process, by the config's. Raises InputError for one that all would use."""
    count = processes.count
    if count == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name not in ("auto", "cuda"):
        given = f"--device {name} with {count} processes"
        raise InputError(f"{given}: all would use it; leave it out, each takes a GPU of its own")
    number, found = int(os.environ.get("LOCAL_RANK", processes.rank)), torch.cuda.device_count()
    if number >= found:
        given = f"{processes.on_machine} processes"
        hint = f"start {found} (--nproc-per-node {found}), or give --device cpu"
        raise InputError(f"{given} on a machine with {found} GPUs; {hint}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def check_shares(processes: OneProcess, config: TrainConfig) -> None:
    """Raises InputError unless each process gets as much of each part of a batch."""
    parts = processes.count * config.accumulate
    if config.batch_size % parts or (parts > 1 and config.batch_size < 2 * parts):
        of = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        given = f"batch size {config.batch_size}{of} for {processes.count} processes"
        fits = max(2, round(config.batch_size / parts)) * parts
        raise InputError(f"{given}: each needs as many images, two at least; --batch-size {fits}")
    if processes.count > 1 and config.cuda_graphs:
        given = f"--cuda-graphs with {processes.count} processes"
        raise InputError(f"{given}: only one process can replay its steps; leave it out")


def say_processes(processes: OneProcess, config: TrainConfig, norm_sync: str) -> None:
    """Says how many there are, what each does, and what happens when one goes silent."""
    if processes.count > 1 and processes.rank == 0:
        share = config.batch_size // processes.count
        say(
            f"{processes.count} processes, {share} images of a batch each, norms: {norm_sync}; "
            f"one that is silent for {Watch.SILENT} s ends the run, which can then be resumed"
        )


def does_not_fit(config: TrainConfig, device: torch.device, processes: OneProcess) -> InputError:
    """The error of a process whose images do not fit; the others learn that it ended."""
    share = config.batch_size // config.accumulate // processes.count
    what = f"{share} images at once do not fit in the memory of {device}"
    advice = "give a smaller --batch-size, more --accumulate or --grad-checkpointing"
    error = InputError(f"{what}; {advice}; the run can be resumed from its last checkpoint")
    if processes.rank:
        tell(processes.rank, processes.count, f"error: {error}")
    return error


def tell(rank: int, count: int, text: str) -> None:
    """Says what only this process knows, on stderr."""
    Output(sys.__stderr__).write(f"process {rank} of {count}: {printable(text)}\n")
