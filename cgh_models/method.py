"""What a method is: the members the trainer, the exporter and the registry use."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

Losses = dict[str, Tensor]  # named scalar losses in nats; "loss" is the one that is minimized


@runtime_checkable
class Method(Protocol):
    """An nn.Module with these members; nothing has to be inherited or registered to be trained."""

    name: ClassVar[str]  # what `--method` and weights tags call it
    paper: ClassVar[str]  # "arXiv:<id>"
    Config: ClassVar[type]  # frozen dataclass with a default for every field: the paper's ImageNet values
    view_recipe: ClassVar[str]  # a name in `views.RECIPES`
    config: Any  # the Config it was built with
    student: nn.Module  # its `.backbone` is the untouched timm module

    def forward(self, views: list[Tensor], progress: float) -> Losses:
        """Losses of one batch of views, in recipe order; ``progress`` in [0, 1] of the run."""
        ...

    def after_step(self, progress: float, finite: Tensor | None = None) -> None:
        """Called after the optimizer's step: teacher and queues move. A 0-dim False in ``finite`` holds the queues."""
        ...
