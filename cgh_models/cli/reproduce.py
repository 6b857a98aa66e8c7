"""The command that measures a published number again."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from ..config import BEFORE
from ..errors import InputError, NotReproduced, say, shell_command
from ..evaluate.protocols import EvalSettings
from ..hub import manifest
from .flags import Folder, Name, Weights


@dataclass
class Reproduce:
    """Measures a published number again; exit code 0 if it agrees, 1 if not."""

    weights: Weights
    """A name of `cgh list`, or a weights folder."""
    data: Folder
    """Folder with train/ and val/ of the images that the number was measured on."""
    metric: Literal["knn", "linear"] = "knn"
    """knn agrees within 0.1 percent points, linear (sgd, with the chosen rate) within 0.5."""
    batch_size: int = 256
    """Images that are embedded at once; changes speed and memory only."""
    workers: int = 2
    """Processes that read images."""
    device: Name = "auto"
    """cpu, cuda, cuda:1, ...; auto: a GPU if there is one."""
    follow_links: bool = False
    """Also read linked folders, and links that lead out of the data folder."""
    reader: Name = ""
    """As of `cgh pretrain`: MODULE:FUNCTION that makes an array of a path."""

    def run(self) -> None:
        from ..data.image_set import load_splits
        from ..evaluate import measurement
        from ..hub.registry import create_model

        row, _ = manifest.find(self.weights)
        published = row.metrics[self.metric]
        if not published:
            others = ", ".join(name for name, metric in row.metrics.items() if metric) or "none"
            missing = f"no {self.metric} was published of it (there are: {others})"
            raise InputError(f"{self.weights}: {missing}")
        pixel_range = published.parameters.get("pixel_range", BEFORE["pixel_range"])
        how = {"pixel_range": pixel_range, "in_chans": row.in_chans, "reader": self.reader}
        train, val = load_splits(self.data, self.follow_links, **how)
        model = create_model(self.weights)
        settings = EvalSettings(self.batch_size, self.workers, self.device, log=say)
        numbers = dataclasses.asdict(published)
        got = measurement.remeasure(self.metric, numbers, model, train, val, settings)
        value = published.value
        tolerance = measurement.TOLERANCE[self.metric]
        agrees = round(abs(got - value), 6) <= tolerance
        line = {"metric": self.metric, "published": value, "got": got, "tolerance": tolerance}
        print(json.dumps(line | {"agrees": agrees, "weights": self.weights, "data": self.data}))
        if agrees:
            return
        verify = shell_command("cgh", "verify", self.weights)
        hint = f"{verify} says whether the file is the published one"
        if published.data == row.data.name and train.digest != row.data.digest:
            images = f"the images of {row.data.name} it was trained on"
            hint = f"{self.data}/train has other names or sizes than {images}"
        numbers = f"published {self.metric} {value:.2f} %, got {got:.2f} %"
        raise NotReproduced(f"{self.weights}: {numbers}, more than {tolerance} apart; {hint}")
