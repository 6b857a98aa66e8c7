"""A training run: one visible loop, and what it leaves in its run folder.

`loop` is the run from top to bottom and `step` one optimizer step; `optim` chooses what is decayed;
`checkpoint` is the private, resumable state; `run_folder`, `signals` and `memory` are for what can
go wrong around a run; `metric_log` and `monitor` write and measure what a reader sees of it.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import pretrain

__all__ = ["pretrain"]
__getattr__, __dir__ = public_names(__name__, {"pretrain": "loop"})
