"""First-in, first-out queues of normalized projections, kept index-aligned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..one_process import ALONE


class FeatureQueue(nn.Module):
    """``count`` queues of ``length`` unit vectors of ``width``, written at one common position.

    Row j of every queue comes from the same image, as CGH's crossed targets need it. The queues
    start as random unit vectors. The papers call this the memory bank. In a run of several
    ``processes`` each collects its rows of a batch, and all write those of the whole batch.
    """

    rows: Tensor  # (count, length, width)
    position: Tensor  # where the next image goes, 0-dim int64

    def __init__(self, length: int, width: int, count: int = 1):
        super().__init__()
        rows = torch.randn(count, length, width)
        self.register_buffer("rows", F.normalize(rows, dim=-1, out=rows))  # in place: no copy
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.processes = ALONE
        self._pending: list[Tensor] = []

    @property
    def pending(self) -> int:
        """Rows of each queue that were collected, by all processes, and not yet written."""
        return self.processes.count * sum(batch.shape[1] for batch in self._pending)

    def collect(self, *projections: Tensor) -> None:
        """Remembers a batch (N, width) for each queue, row i of all from the same image.

        Does nothing without gradient, where no step will follow.
        """
        if torch.is_grad_enabled():
            self._pending.append(torch.stack(projections).detach().to(self.rows.dtype))

    def discard_pending(self) -> None:
        """Forgets what was collected."""
        self._pending.clear()

    @torch.no_grad()
    def enqueue(self, finite: Tensor | None = None) -> None:
        """Overwrites the oldest rows with what was collected if ``finite``; no host sync."""
        if not self._pending:
            return
        length = self.rows.shape[1]
        collected: Tensor = self.processes.gather(torch.cat(self._pending, 1), dim=1)
        new = collected[:, -length:]  # (count, N, width)
        self._pending.clear()
        count: Tensor | int = new.shape[1]
        places = (self.position + torch.arange(count, device=new.device)) % length  # (N,)
        if finite is not None:
            new = torch.where(finite, new, self.rows.index_select(1, places))
            count = count * finite.long()
        self.rows.index_copy_(1, places, new)
        self.position.add_(count).remainder_(length)
