"""Projectors, predictors, and the branch that most methods train: a backbone with its projector."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import embed, widths


def mlp(
    *widths: int, norm: bool = False, last_norm: bool = False, last_bias: bool = True
) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them: (N, widths[0]) -> (N, widths[-1]).

    Args:
        norm: batch norm before each ReLU; it takes the place of the linear layer's bias.
        last_norm: batch norm, in place of the bias, after the last layer too.
        last_bias: False leaves the last layer without a bias.

    Source: ReSSL (arXiv 2107.09282), CGH (arXiv 2308.13392) and MoCo v2 (arXiv 2003.04297) have no
    norm; BYOL (arXiv 2006.07733) and SCE's CIFAR-10 run (arXiv 2111.14585) one; NNCLR (arXiv
    2104.14548) and MNCLGLF (arXiv 2306.15930) all.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers.append(nn.Linear(inputs, outputs, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias and not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(widths[-1]))
    return nn.Sequential(*layers)


class Branch(nn.Module):
    """Backbone and projector: images (N, 3, H, W) -> projections (N, P) in float32, of any length.

    ``projector_widths`` and ``norms`` are those of `mlp`, without the embedding's width.
    """

    passes = ("forward", "normalized")  # what a CUDA graph may replay, see `train.cuda_graphs`
    predictor: nn.Module  # set by methods whose student has one, after the teacher was copied

    def __init__(self, backbone: nn.Module, *projector_widths: int, **norms: bool):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(widths(backbone)[0], *projector_widths, **norms)

    def forward(self, images: Tensor, splits: int = 1) -> Tensor:
        embedding, _ = embed(self.backbone, images, splits=splits)
        return self.projector(embedding).float()

    def normalized(self, images: Tensor, splits: int = 1) -> Tensor:
        """Projections (N, P) of length one."""
        return F.normalize(self(images, splits))
