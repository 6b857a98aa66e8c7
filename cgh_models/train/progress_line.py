"""How far a run is, on stderr: a bar on a terminal, elsewhere one plain line a minute."""

import shutil
import sys
import time

from ..errors import Output
from ..progress import Bar

_A_LINE = 60.0  # seconds between the lines that are no bar
_MAIN = ("knn", "knn_train", "effective_rank")  # the first of them is shown
_BAR = 22  # columns that the bar and the count of steps have at least


class ProgressLine:
    """The loss first, the time that is left, images/s, a measurement; more where there is room."""

    def __init__(self, total: int, done: int, quiet: bool):
        self._stderr = Output(sys.stderr)
        self._terminal = self._stderr.isatty()
        self._quiet = quiet
        self._total = total
        self._first = self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar = Bar(
            total=total,
            initial=done,
            file=self._stderr,
            disable=quiet or not self._terminal,
            dynamic_ncols=True,
            mininterval=0.3,
            miniters=1,
            bar_format="{desc}|{bar}| {n_fmt}/{total_fmt}",
        )

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        Bar.write(text, file=self._stderr)

    def show(self, steps: int, texts: list[str], further: list[str]) -> None:
        """Counts steps, and shows ``texts`` and as many of ``further`` as there is room for."""
        self._done += steps
        if self._quiet:
            return
        texts = [texts[0], f"{self._left()} left", *texts[1:]]
        columns = shutil.get_terminal_size().columns - _BAR
        for text in further:
            if len(", ".join([*texts, text])) <= columns:
                texts.append(text)
        line = ", ".join(texts)
        if self._terminal:
            self._bar.set_description_str(f"{line} ", refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._last_line > _A_LINE:
            self._last_line = time.monotonic()
            self.say(f"step {self._done} of {self._total}: {line}")

    def _left(self) -> str:
        taken = self._done - self._first
        seconds = time.monotonic() - self._start
        left = seconds / taken * (self._total - self._done) if taken else 0
        return Bar.format_interval(left)


def progress_texts(
    row: dict[str, float],
    losses: list[str],
    fading: tuple[str, ...],
    measured: dict[str, float],
    speed: float,
    waiting: float,
) -> tuple[list[str], list[str]]:
    """What `ProgressLine.show` takes. Where a loss fades, the total falls: the others are shown."""
    fading = tuple(name for name in fading if name in losses)
    parts = [name for name in losses if name not in ("loss", "grad_norm", "finite", *fading)]
    first = parts if fading else ["loss"]
    texts = [", ".join(f"{name} {row[name]:.3f}" for name in first), f"{speed:.0f} images/s"]
    texts += [f"{name} {measured[name]:.3g}" for name in _MAIN if name in measured][:1]
    further = [f"{name} {row[name]:.3f}" for name in (*parts, *fading) if name not in first]
    return texts, [*further, f"{100 * waiting:.0f} % waiting for data"]
