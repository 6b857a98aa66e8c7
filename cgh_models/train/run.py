"""What a run is made of: handed to all that takes part in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import TrainConfig
from ..one_process import ALONE, OneProcess
from ..view_recipes import Recipe

if TYPE_CHECKING:
    from ..data.image_set import ImageSet


@dataclass(frozen=True)
class Run:
    """The arguments of `pretrain` but for the method, checked (`arguments.checked_run`)."""

    folder: Path
    images: "ImageSet"
    config: TrainConfig  # with what "auto" stands for
    device: torch.device  # of this process
    recipe: Recipe
    processes: OneProcess = ALONE
    norm_sync: str = ""  # as `norm_sync_of` says

    @property
    def steps_per_epoch(self) -> int:
        """The last, smaller batch of an epoch is dropped."""
        return len(self.images) // self.config.batch_size

    @property
    def total(self) -> int:
        """Steps from the first to the last."""
        return self.steps_per_epoch * self.config.epochs
