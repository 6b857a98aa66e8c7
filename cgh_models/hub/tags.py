"""The manifest's rows as timm tags: `timm.create_model("<row>", pretrained=True)` works.

timm has no public call that adds a tag to an architecture, so five of its tables are written here.
A tag is appended and so never becomes the default of its architecture.
"""

import os
from typing import Any

from timm.models import _registry

from . import fetch, manifest
from .row import BACKBONE, Row
from .timm_models import check_fit, pretrained_cfg


class VerifiedFile(os.PathLike):
    """A path for timm's ``file`` field; the file is fetched and verified when timm opens it."""

    def __init__(self, row: Row, cache_dir: fetch.CacheDir = None):
        self.row = row
        self.cache_dir = cache_dir

    def __fspath__(self) -> str:
        path = fetch.fetch(self.row, BACKBONE, self.cache_dir)
        check_fit(self.row, path)  # timm accepts missing keys as soon as there is a new classifier
        return str(path)

    def __str__(self) -> str:  # timm reads the suffix
        return f"{self.row.name}/{BACKBONE}"

    __repr__ = __str__


def register() -> None:
    """Makes every row of the manifest a timm tag; a second call changes nothing."""
    for name, row in manifest.rows().items():
        # A DefaultCfg, whatever its annotation says; None: this timm does not have the architecture
        default: Any = _registry._model_default_cfgs.get(row.architecture)
        if default is None or row.tag in default.cfgs:
            continue
        cfg = pretrained_cfg(row, VerifiedFile(row))
        default.cfgs[row.tag] = cfg
        default.tags.append(row.tag)  # the first one is the default
        _registry._model_pretrained_cfgs[name] = cfg
        _registry._model_has_pretrained.add(name)
        _registry._model_with_tags[row.architecture].append(name)
