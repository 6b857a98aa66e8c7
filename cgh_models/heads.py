"""Projector heads."""

from itertools import pairwise

from torch import nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them: (N, widths[0]) -> (N, widths[-1]).

    Source: ReSSL (arXiv 2107.09282) and CGH (arXiv 2308.13392) use Linear-ReLU-Linear with biases, no norm.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
