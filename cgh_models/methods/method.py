"""What a method is: the members that trainer and exporter use; the check of its Config."""

import typing
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from ..config import check_range
from ..errors import InputError
from .losses import MIN_TEMPERATURE

Losses = dict[str, Tensor]  # named scalar losses in nats; "loss" is the one that is minimized


class Method(Protocol):
    """An nn.Module with these members; nothing has to be inherited or registered to be trained.

    ``progress`` is the share of the run that is done, in [0, 1].
    """

    name: ClassVar[str]  # what `--method` and weights tags call it
    paper: ClassVar[str]  # "arXiv:<id>"
    Config: ClassVar[type]  # frozen dataclass; defaults are the paper's ImageNet values
    view_recipe: str  # a name in `view_recipes.RECIPES`; set where the Config decides
    config: Any  # the Config it was built with
    student: nn.Module  # its `.backbone` is the untouched timm module

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """Losses of one batch of views, in recipe order."""
        ...

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Moves teacher and queues after the optimizer's step; queues only if ``finite``, 0-dim."""
        ...


def check_config(config: object) -> None:
    """Raises InputError for an impossible temperature, weight, share, count or word.

    Names and types of the fields tell which is which. Configs use it as their ``__post_init__``.
    """
    types = typing.get_type_hints(type(config))
    for name, value in vars(config).items():
        choices = typing.get_args(types[name])
        if typing.get_origin(types[name]) is Literal and value not in choices:
            raise InputError(f"{name}={value!r}: expected one of {', '.join(choices)}")
        if name.endswith("temperature"):
            check_range(config, MIN_TEMPERATURE, 1e6, name)
        elif name.endswith("weight"):
            check_range(config, 0, 1e6, name)
        elif isinstance(value, float):
            check_range(config, 0, 1, name)
        elif isinstance(value, int) and not isinstance(value, bool):
            check_range(config, 1, 2**24, name)
