"""First-in, first-out queues of normalized projections, kept index-aligned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """``count`` queues of ``length`` unit vectors of ``width``, written at one common position.

    Row j of every queue comes from the same image: CGH's crossed targets mean nothing otherwise. They start as random
    unit vectors. The papers call this the memory bank.

    Attributes:
        rows: (count, length, width).
        position: where the next image goes, 0-dim int64.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, length: int, width: int, count: int = 1):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(count, length, width), dim=-1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

        self._held: list[Tensor] = []

    @property
    def held(self) -> int:
        """Rows of each queue that wait to be written."""
        return sum(batch.shape[1] for batch in self._held)

    def hold(self, *projections: Tensor) -> None:
        """Keeps one (N, width) batch per queue until the step is done; without gradient there is no step to come.

        Args:
            projections: one per queue, row i of each from the same image.
        """
        if torch.is_grad_enabled():
            self._held.append(torch.stack(projections).detach().to(self.rows.dtype))

    def drop(self) -> None:
        """Forgets what is held."""
        self._held.clear()

    @torch.no_grad()
    def push(self, finite: Tensor | None = None) -> None:
        """Writes what is held, oldest rows first to go; any number of rows, without a host sync.

        Args:
            finite: 0-dim bool; False writes nothing and moves nothing.
        """
        if not self._held:
            return
        length = self.rows.shape[1]
        new = torch.cat(self._held, 1)[:, -length:]  # (count, N, width)
        self._held.clear()
        places = (self.position + torch.arange(new.shape[1], device=new.device)) % length  # (N,)
        steps: Tensor | int = new.shape[1]
        if finite is not None:
            new = torch.where(finite, new, self.rows.index_select(1, places))
            steps = steps * finite.long()
        self.rows.index_copy_(1, places, new)
        self.position.add_(steps).remainder_(length)
