"""A training run: one visible loop, and what it leaves in its run folder.

`loop` is the run from top to bottom, `step` one optimizer step, `checkpoint` the resumable state.
`run` is what a run is made of, which `arguments` checks and all others are handed. `metric_log`,
`log_file` and `monitor` write, read and measure what a reader sees. Of several processes `launch`
reads what started them, `distributed` is what they tell each other, `liveness` ends those that wait
for a dead one.
"""

from ..public_names import public_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .loop import pretrain

__all__ = ["pretrain"]
__getattr__, __dir__ = public_names(__name__, {"pretrain": "loop"})
