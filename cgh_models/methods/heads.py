"""Projectors and predictors, and the branch that most methods train: a backbone with its projector."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import embed, widths


def mlp(*widths: int, norm: bool = False, last_norm: bool = False, last_bias: bool = True) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them: (N, widths[0]) -> (N, widths[-1]).

    Args:
        norm: batch norm before each ReLU; the linear layer before it then has no bias, which the norm would cancel.
        last_norm: batch norm, in place of the bias, after the last layer too.
        last_bias: False leaves the last layer without a bias.

    Source: ReSSL (arXiv 2107.09282), CGH (arXiv 2308.13392) and MoCo v2 (arXiv 2003.04297) use no norm; BYOL
    (arXiv 2006.07733) one norm; NNCLR (arXiv 2104.14548) and MNCLGLF (arXiv 2306.15930) norms to the end.
    """
    layers: list[nn.Module] = []
    for place in range(1, len(widths)):
        last = place == len(widths) - 1
        normed = last_norm if last else norm
        layers.append(nn.Linear(widths[place - 1], widths[place], bias=not normed and (last_bias or not last)))
        layers += [nn.BatchNorm1d(widths[place])] if normed else []
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Branch(nn.Module):
    """Backbone and projector: images (N, 3, H, W) -> projections (N, P) in float32, as the projector leaves them.

    Args:
        backbone: a headless timm module.
        projector: makes the projector for an embedding of the given width.
    """

    def __init__(self, backbone: nn.Module, projector: Callable[[int], nn.Module]):
        super().__init__()
        self.backbone = backbone
        self.projector = projector(widths(backbone)[0])

    def forward(self, images: Tensor, splits: int = 1) -> Tensor:
        embedding, _ = embed(self.backbone, images, splits=splits)
        return self.projector(embedding).float()

    def unit(self, images: Tensor, splits: int = 1) -> Tensor:
        """Projections (N, P) of length one."""
        return F.normalize(self(images, splits))
