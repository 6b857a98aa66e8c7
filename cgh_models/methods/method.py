"""What a method is: the members the trainer, the exporter and the registry use, and what their fields may be."""

from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from torch import Tensor, nn

from ..config import check_range
from ..errors import InputError
from .losses import MIN_TEMPERATURE

Losses = dict[str, Tensor]  # named scalar losses in nats; "loss" is the one that is minimized


@runtime_checkable
class Method(Protocol):
    """An nn.Module with these members; nothing has to be inherited or registered to be trained."""

    name: ClassVar[str]  # what `--method` and weights tags call it
    paper: ClassVar[str]  # "arXiv:<id>"
    Config: ClassVar[type]  # frozen dataclass with a default for every field: the paper's ImageNet values
    view_recipe: str  # a name in `view_recipes.RECIPES`; a property where the Config decides
    config: Any  # the Config it was built with
    student: nn.Module  # its `.backbone` is the untouched timm module

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """Losses of one batch of views, in recipe order; ``progress`` in [0, 1] of the run."""
        ...

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Called after the optimizer's step: teacher and queues move. A 0-dim False in ``finite`` holds the queues."""
        ...


def check_config(config: Any) -> None:
    """Raises InputError for a temperature, a weight, a share (momentum, warm-up), a count or a word that cannot be."""
    kinds = get_type_hints(type(config))
    for name, value in vars(config).items():
        if isinstance(value, bool):
            continue
        if get_origin(kinds[name]) is Literal and value not in get_args(kinds[name]):
            raise InputError(f"{name}={value!r}: expected one of {', '.join(get_args(kinds[name]))}")
        if name.endswith("temperature"):
            check_range(config, MIN_TEMPERATURE, 1e6, name)
        elif name.endswith("weight"):
            check_range(config, 0, 1e6, name)
        elif isinstance(value, float):
            check_range(config, 0, 1, name)
        elif isinstance(value, int):
            check_range(config, 1, 2**24, name)
