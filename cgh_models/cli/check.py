"""The command that looks at images before they are trained on."""

import dataclasses
import json as json_text
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..config import READING
from ..errors import InputError, say
from .flags import Folder, Name, Recipe
from .pretrain import IMAGES, Pretrain, ViewChanges


@dataclass
class Check:
    """Says what images hold, what is wrong with them, and what to type."""

    data: Annotated[Positional[str], arg(metavar="IMAGES", help=IMAGES)]
    recipe: Recipe = "imagenet"
    """The recipe of the training, whose views and colours the images are compared with."""
    method: Name = "cgh"
    """The method of the training, whose views are drawn."""
    image_size: int = 0
    """Side of the views, in pixels; 0: the recipe's."""
    view: ViewChanges = ()
    """A change of the views, as of `cgh pretrain`: weak.scale=0.4,1."""
    out: Folder = ""
    """Folder for check.json, keep.csv (images worth training on) and views.png (their views)."""
    weights: Annotated[Name, arg(metavar="WEIGHTS")] = ""
    """Find near duplicates by the embeddings of these weights, not by perceptual hashes."""
    json: bool = False
    """Print one JSON object, with the names of all files, in place of text."""
    workers: int = 2
    """Processes that read images."""
    follow_links: bool = False
    """Also read linked folders, and links that lead out of the data folder."""
    pixel_range: Name = "auto"
    """As of `cgh pretrain`: LOW,HIGH, or 12-bit; auto: as images show."""
    in_chans: int = 3
    """As of `cgh pretrain`: channels of an image."""
    reader: Name = ""
    """As of `cgh pretrain`: MODULE:FUNCTION that makes an array of a path."""

    def run(self) -> None:
        from ..data.image_set import load
        from ..files import make_folder
        from ..report.check_text import advice, as_text
        from ..report.image_check import FILES, check, write_files

        how = {name: getattr(self, name) for name in READING}
        size = {"image_size": self.image_size} if self.image_size else {}
        settings = Pretrain(
            self.data, self.out, size | how, self.method, recipe=self.recipe, view=self.view
        )
        config, views = settings.trainer_settings(), ()
        if self.out or self.view or self.method != Check.method:
            from ..report.contact_sheet import views_of  # torch and timm take seconds to import

            _, method_config = settings.configs()
            views = views_of(self.method, method_config, self.view)
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: expected 0 or more")
        images = load(self.data, self.follow_links, splits=True, **how)
        out = Path(self.out)
        if self.out:
            make_folder(out, *FILES)
        checked = check(images, config, self.workers, self.weights)
        found = {"data": self.data, "recipe": self.recipe} | checked.found
        found["advice"] = advice(found, self.data, self.out)
        checked = dataclasses.replace(checked, found=found)
        if self.out:
            write_files(out, checked, images)
            if len(checked.trained) < 2:
                say("views.png: needs two readable images; give more")
            else:
                from ..report.contact_sheet import draw_views

                if self.in_chans != 3:
                    own = {name: tuple(found[name]) for name in ("mean", "std")}
                    config = dataclasses.replace(config, **own)
                draw_views(out / "views.png", checked.trained, views, config)
        print(json_text.dumps(found) if self.json else as_text(found))
