"""What is taken of an image: the pooled embedding, one of timm's maps, or CGH's hypercolumn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..backbone import map_names, stack_maps
from ..errors import InputError, printable


@dataclass(frozen=True)
class Features:
    """The pooled embedding, unless a layer or taps are given."""

    layer: str = ""  # the mean over a map, by timm's name or number, from the end if negative
    taps: int = 0  # the mean over the hypercolumn of so many of the deepest maps
    dense: bool = False  # the map itself; without layer and taps, the deepest

    def __post_init__(self):
        if self.layer and self.taps:
            given = f"--layer {printable(self.layer)} and --hypercolumn"
            raise InputError(f"{given}: expected one of them; a hypercolumn has layers of its own")


POOLED = Features()


def feature_function(network: Any, features: Features) -> Callable[[Tensor], Tensor]:
    """A function from images (N, 3, H, W) to (N, D), or to maps (N, C, h, w) if they are dense.

    Raises InputError if the network has no such map.
    """
    if features == POOLED:
        return network
    indices = [_number(network, features.layer or "-1")]
    if features.taps:
        count = len(map_names(network))
        if not 1 <= features.taps <= count:
            raise InputError(f"--taps {features.taps}: expected 1 to {count}, all maps there are")
        indices = list(range(count - features.taps, count))

    def take(images: Tensor) -> Tensor:
        maps = network.forward_intermediates(images, indices=indices, intermediates_only=True)
        stacked = stack_maps(maps)
        return stacked if features.dense else stacked.mean((2, 3))

    return take


def _number(network: nn.Module, layer: str) -> int:
    """The number of a map, from 0."""
    names = map_names(network)
    if layer in names:
        return names.index(layer)
    if layer.removeprefix("-").isdecimal() and -len(names) <= int(layer) < len(names):
        return int(layer) % len(names)
    what = f"--layer {printable(layer)}: a {type(network).__name__} has no such map"
    numbers = f"0 to {len(names) - 1}, from the end -1 to {-len(names)}"
    expected = f"expected {numbers}, or one of {', '.join(names)}" if names else "take none"
    raise InputError(f"{what}; {expected}")
