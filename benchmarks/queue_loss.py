"""CGH's two losses against a queue of 131072 x 512: whole matrices as published, and streamed.

python benchmarks/queue_loss.py
"""

import torch
import torch.nn.functional as F
from counters import LiveBytes
from published import losses
from side_by_side import milliseconds, table

from cgh_models.methods.losses import crossed_relation_losses


def published(student, hyper, taught, taught_hyper, rows):
    """Both terms, forward and backward; in ``rows``, as in the release, a column is an image."""
    losses(student, hyper, taught, taught_hyper, rows).backward()


def streamed(student, hyper, taught, taught_hyper, rows):
    """The same."""
    to_global, to_hyper = crossed_relation_losses(
        (student, hyper), (taught, taught_hyper), rows, (0.1, 0.08), (0.04, 0.08)
    )
    (0.5 * to_hyper + 0.5 * to_global).backward()


def vectors(batch: int, device: str) -> tuple:
    """Student's and teacher's unit vectors and the queues."""
    made = [F.normalize(torch.randn(batch, 512, device=device), dim=1) for _ in range(4)]
    return (
        *(v.requires_grad_(i < 2) for i, v in enumerate(made)),
        F.normalize(torch.randn(2, 131072, 512, device=device), dim=2),
    )


def peak(way, batch: int) -> float:
    """MiB that live beside vectors and queues at most."""
    given = vectors(batch, "meta")
    given = given if way is streamed else (*given[:4], given[4].transpose(1, 2).contiguous())
    with torch.device("meta"), LiveBytes() as live:
        way(*given)
    return live.peak / 2**20


if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.manual_seed(0)
    for batch in (32, 256):
        given = vectors(batch, "cpu")
        columns = *given[:4], [rows.t().contiguous() for rows in given[4]]
        ways = {
            "as published": lambda g=columns: published(*g),
            "streamed": lambda g=given: streamed(*g),
        }
        table(f"losses, batch {batch}", milliseconds(ways, 5 if batch == 32 else 3))
        whole, little = peak(published, batch), peak(streamed, batch)
        print(
            f"\nLive memory, batch {batch}: {whole:.4g} MiB as published, {little:.3g} MiB streamed"
        )
