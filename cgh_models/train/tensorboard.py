"""A run's log as TensorBoard files, with pictures of views and of nearest neighbours."""

from typing import Any

import numpy as np

from ..data.loader import exact_views, order
from ..data.pixels import as_picture
from ..errors import InputError
from ..evaluate.neighbours import nearest
from ..view_recipes import OwnView
from .run import Run

_ROWS = 8  # images that are shown
_NEAREST = 5  # neighbours beside each
_SIDE = 64  # pixels of a thumbnail


class TensorBoard:
    """Takes the rows of a run's log and draws what its ``monitor`` saw, until ``writer`` is closed.

    Raises InputError if TensorBoard is not installed.
    """

    def __init__(self, run: Run, monitor: Any):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            install = "type pip install '.[tensorboard]'"
            raise InputError(f"--tensorboard: not installed; {install}") from error
        self.writer = SummaryWriter(run.folder / "tensorboard")
        self.run = run
        self.monitor = monitor

    def __call__(self, row: dict[str, float]) -> None:
        """Writes the numbers of a row; of a measurement also what it saw."""
        step = int(row["step"])
        for key in row.keys() - {"step"}:
            self.writer.add_scalar(key, row[key], step)
        if "feature_std" not in row or self.monitor.embedded is None:
            return
        if step == 0:
            self._draw_views()
        self._draw_neighbours(step)

    def _draw_views(self) -> None:
        """The views of the first images of the run, as `data.views` makes them."""
        run = self.run
        chosen = order(run.config.seed, 0, len(run.images))[:_ROWS]
        made = exact_views(run.images, run.recipe, run.config, 0, chosen)
        for number, (view, views) in enumerate(zip(run.recipe, made, strict=True)):
            if isinstance(view, OwnView) and views.is_floating_point():
                views = views.permute(0, 2, 3, 1)
            if run.config.in_chans != 3:
                views = views[..., :1].expand(*views.shape[:3], 3)
            self.writer.add_images(f"views/{number}", views, 0, dataformats="NHWC")

    def _draw_neighbours(self, step: int) -> None:
        """A row for each of some images: itself, then its nearest among all that were measured."""
        embedded = self.monitor.embedded
        nearest_rows, _ = nearest(embedded, embedded[:_ROWS], 1 + _NEAREST)
        rows = []
        for indices in self.monitor.spread.indices[nearest_rows]:
            found = [self.run.images.load_or_substitute(int(index))[0] for index in indices]
            thumbnails = [np.asarray(as_picture(image).resize((_SIDE, _SIDE))) for image in found]
            rows.append(np.concatenate(thumbnails, axis=1))
        self.writer.add_image("neighbours", np.concatenate(rows), step, dataformats="HWC")
