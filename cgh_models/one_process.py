"""A run of one process, which has nobody to ask; several have the same members, and ask."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


class OneProcess:
    """What a run asks of its processes; `train.distributed.Processes` answers for several.

    Rank r of N takes the rows r, r + N, r + 2 N, ... of each batch. What is gathered is in the
    order of the whole batch again, so that nothing depends on N.
    """

    rank = 0  # of this process
    count = 1  # of the processes
    on_machine = 1  # of them that share this machine's memory
    shuffles = False  # whether teachers see other rows of the batch than their students

    def gather(self, rows: "Tensor", dim: int = 0) -> "Tensor":
        """The rows of all processes, a tensor's, along ``dim``; with gradient."""
        return rows

    def own(self, rows: "Tensor") -> "Tensor":
        """This process's rows of what was gathered along the first dimension."""
        return rows

    def average(self, tensors: "list[Tensor]") -> None:
        """Makes each of the floating-point tensors the mean over the processes, in place."""

    def largest(self, value: float) -> float:
        """The largest of the processes' values."""
        return value

    def all_finite(self, finite: "Tensor") -> "Tensor":
        """Whether a 0-dim bool tensor is true on all; does not wait for the device."""
        return finite

    def any(self, flag: bool) -> bool:
        """Whether it is true on one."""
        return flag

    def together(self, work: Callable[[], Item]) -> Item:
        """What ``work`` returns here; an error that a user can cause on one is raised on all."""
        return work()

    def from_first(self, work: Callable[[], Item]) -> Item:
        """What ``work`` returns on rank 0, which alone calls it; its errors are raised on all."""
        return work()

    def items(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of this process, until those of one have ended, or ended in an error."""
        return items


ALONE = OneProcess()
