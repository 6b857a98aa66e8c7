"""The commands that show what networks learned: side by side, and as pages."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..errors import InputError, printable
from ..evaluate.protocols import EvalSettings
from .evaluate import Embeddings
from .flags import File, Folder, Machine, Name

if TYPE_CHECKING:
    from ..evaluate.comparison import Comparison, Interval


@dataclass
class Compare:
    """Two sets of weights on the same images: accuracy, neighbours, speed, size."""

    a: Annotated[Positional[str], arg(metavar="A")]
    """A name of `cgh list` or of timm, a weights folder, or a run folder."""
    b: Annotated[Positional[str], arg(metavar="B")]
    """The other one."""
    data: Folder
    """Folder with train/ and val/, class folders in both."""
    k: int = 20
    """Nearest training images of each val image: they vote, and are compared."""
    json: bool = False
    """Print JSON in place of the table."""
    seed: int = 0
    """Seed of the resampled val images, and of the held-out images of the linear layer."""
    machine: Machine = field(default_factory=Machine)
    follow_links: bool = False
    """Also read linked folders, and links that lead out of the data folder."""
    embeddings: Embeddings = field(default_factory=Embeddings)

    def run(self) -> None:
        from ..data.image_set import load_splits
        from ..evaluate.comparison import compare
        from ..hub.registry import create_model
        from ..hub.trained_reading import trained_reading

        how, other = (trained_reading(weights) for weights in (self.a, self.b))
        how["reader"] = ""
        if how["pixel_range"] != other["pixel_range"]:
            how["pixel_range"] = "auto"
        train, val = load_splits(self.data, self.follow_links, **how)
        flags, made = vars(self.machine), self.embeddings
        settings = EvalSettings(**flags, fast=made.fast, cache_dir=made.cache, seed=self.seed)
        found = compare(create_model(self.a), create_model(self.b), train, val, settings, self.k)
        if self.json:
            named = {"weights": {"a": self.a, "b": self.b}, "data": self.data}
            print(json.dumps(named | dataclasses.asdict(found)))
            return
        print(f"A: {printable(self.a)}\nB: {printable(self.b)}\n{_table(found)}")


def _table(found: "Comparison") -> str:
    """Lines of text: a measure each, of A and B, and what B has more."""
    a, b = found.a, found.b
    faster = f"x {b.images_per_second / a.images_per_second:.2f}"
    larger = f"x {b.parameters / a.parameters:.2f}"
    rows = [
        ["", "A", "B", "B - A"],
        ["kNN %", _share(a.knn), _share(b.knn), _difference(found.knn)],
        ["linear (ridge) %", _share(a.linear), _share(b.linear), _difference(found.linear)],
        ["images/s, here", f"{a.images_per_second:,}", f"{b.images_per_second:,}", faster],
        ["parameters", f"{a.parameters:,}", f"{b.parameters:,}", larger],
        ["MB in memory", f"{a.bytes / 1e6:.1f}", f"{b.bytes / 1e6:.1f}", ""],
        ["embedding", str(a.width), str(b.width), ""],
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f"neighbours in common, of {found.k}: {_share(found.common)} %")
    drawn = f"{found.resamples:,} bootstrap samples of the val images (seed {found.seed})"
    counts = f"{found.val:,} val images against {found.train:,}"
    lines.append(f"{counts}; in brackets 95 % of {drawn}, the same for A and B")
    return "\n".join(lines)


def _share(of: "Interval") -> str:
    return f"{of.value:.2f} ({of.low:.2f} to {of.high:.2f})"


def _difference(of: "Interval") -> str:
    sure = "" if of.low > 0 or of.high < 0 else ": no difference that these images show"
    return f"{of.value:+.2f} ({of.low:+.2f} to {of.high:+.2f}){sure}"


_GIVEN = arg(metavar="RUN [RUN ...] | WEIGHTS", help_behavior_hint="")
_IMAGES = arg(metavar="IMAGES", help_behavior_hint="(default: the first run's)")


@dataclass
class Report:
    """A page of what runs or weights have learned: curves, neighbours, maps, views."""

    given: Annotated[Positional[tuple[str, ...]], _GIVEN]
    """Run folders, finished or going on; or a name of `cgh list`, or a weights folder."""
    out: File = "report.html"
    """The page to write: one file, which fetches nothing."""
    data: Annotated[str, _IMAGES] = ""
    """Images to show; weights have neighbours and a map only with it."""
    reader: Name = ""
    """MODULE:FUNCTION that reads the files; what a run's folder names is not called."""
    images: int = 0
    """Images that the networks are shown; 0: 2,000, or fewer where that takes minutes."""
    every: float = 0
    """Seconds after which the page is written again, until the runs end; 0: once."""
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        from ..report.run_report import report

        if not self.given:
            raise InputError("no run and no weights are given; type `cgh report RUN`")
        if self.images < 20 and self.images:
            raise InputError(f"--images {self.images}: expected at least 20")
        if not 0 <= self.every <= 86_400:
            raise InputError(f"--every {self.every:g}: expected 0 to 86400, the seconds of a day")
        settings = EvalSettings(**vars(self.machine))
        out = Path(self.out)
        report(list(self.given), out, self.data, self.images, settings, self.every, self.reader)
        print(f"{printable(out)}: {out.stat().st_size / 1e6:.1f} MB, open it in a browser")
