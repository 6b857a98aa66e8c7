"""What ends a run whose loss or gradient is not finite, and which images it was."""

from pathlib import Path

from ..config import TrainConfig
from ..data.image_set import ImageSet
from ..data.loader import batch_indices
from ..errors import InputError, printable
from .verdict import ADVICE


def not_finite(
    run_dir: Path, images: ImageSet, config: TrainConfig, steps: list[int], writes: bool
) -> InputError:
    """The error of the first of ``steps``, counted from 1; nonfinite_batches.txt names the images.

    Of several processes, one ``writes`` that file.
    """
    path = run_dir / "nonfinite_batches.txt"
    named = f"files since then: {path}"
    lines = []
    for step in steps:
        indices = batch_indices(config, len(images), step - 1)
        lines += [f"{step}\t{printable(images.names[index])}\n" for index in indices]
    try:
        if writes:
            path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        named = f"its files could not be named: {error.strerror}"
    return InputError(
        f"step {steps[0]}: loss or gradient is not finite ({named}); "
        f"nothing of it was kept; {ADVICE}"
    )
