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

    @torch.no_grad()
    def push(self, *projections: Tensor, finite: Tensor | None = None) -> None:
        """Writes one (N, width) batch per queue, oldest rows first to go; any N, without a host sync.

        Args:
            projections: one per queue, row i of each from the same image.
            finite: 0-dim bool; False writes nothing and moves nothing.
        """
        length = self.rows.shape[1]
        new = torch.stack(projections)[:, -length:].to(self.rows.dtype)  # (count, N, width)
        places = (self.position + torch.arange(new.shape[1], device=new.device)) % length  # (N,)
        steps: Tensor | int = new.shape[1]
        if finite is not None:
            new = torch.where(finite, new, self.rows.index_select(1, places))
            steps = steps * finite.long()
        self.rows.index_copy_(1, places, new)
        self.position.add_(steps).remainder_(length)
