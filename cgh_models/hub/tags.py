"""The manifest's rows as timm tags: `timm.create_model("<row>", pretrained=True)` loads them, verified.

timm has no public call that adds a tag to an architecture, so five of its tables are written, here and nowhere else.
A tag is appended and so never becomes the default of its architecture.
"""

import os
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, _registry, get_pretrained_cfg, is_model
from timm.version import __version__ as timm_version

from .. import backbone
from ..errors import InputError, IntegrityError, printable
from ..tensors import misfit, read_shapes
from . import fetch, manifest

_TABLES = ("_model_pretrained_cfgs", "_model_has_pretrained", "_model_with_tags")


class VerifiedFile(os.PathLike):
    """A path whose file is fetched and verified when it is asked for; timm takes it for the name of a weight file."""

    def __init__(self, row: manifest.Row, cache_dir: str | os.PathLike[str] | None = None):
        self.row, self.cache_dir = row, cache_dir

    def __fspath__(self) -> str:
        path = fetch.fetch(self.row, manifest.BACKBONE, self.cache_dir)
        check_fit(self.row, path)  # timm itself accepts missing keys as soon as there is a new classifier
        return str(path)

    def __str__(self) -> str:  # timm looks at the ending
        return f"{self.row['name']}/{manifest.BACKBONE}"

    __repr__ = __str__


def check_fit(row: manifest.Row, path: Path) -> None:
    """Raises IntegrityError unless a file has just the tensors of the row's architecture without a head."""
    if odd := misfit(skeleton(row).state_dict(), read_shapes(path)):
        raise IntegrityError(
            f"{path}: does not fit {row['architecture']} of timm {timm_version}: {odd}; install another timm"
        )


def skeleton(row: manifest.Row, **kwargs: Any) -> Any:
    """The row's model without memory for its weights. Raises InputError if this timm cannot build it."""
    arch, args = row["architecture"], row["model_args"]
    if not is_model(arch):
        raise InputError(f"{row['name']}: timm {timm_version} has no {arch}; install another timm")
    try:
        return backbone.skeleton(arch, **args, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        reason = printable(" ".join(str(error).split())[:100])
        raise InputError(f"{row['name']}: timm {timm_version} cannot build {arch} with {args} ({reason})") from error


def timm_config(row: manifest.Row) -> dict[str, Any]:
    """timm's config.json of a row, every field of provenance and preprocessing ours."""
    stock = get_pretrained_cfg(row["architecture"]) or PretrainedCfg()
    pool = getattr(skeleton(row), "global_pool", None)
    return {
        "architecture": row["architecture"],
        "num_classes": 0,
        "num_features": row["num_features"],
        "global_pool": getattr(pool, "pool_type", None) or (pool if isinstance(pool, str) else "avg"),
        "model_args": row["model_args"],
        "pretrained_cfg": {
            "tag": row["name"].partition(".")[2],
            "custom_load": False,
            **row["preprocessing"],
            "fixed_input_size": stock.fixed_input_size,
            "num_classes": 0,
            "pool_size": row["pool_size"],
            "first_conv": list(stock.first_conv) if isinstance(stock.first_conv, tuple) else stock.first_conv,
            "classifier": list(stock.classifier) if isinstance(stock.classifier, tuple) else stock.classifier,
            "license": row["license"],
            "origin_url": None,
            "paper_ids": row["paper_ids"],
        },
    }


def pretrained_cfg(row: manifest.Row, file: str | os.PathLike[str] | None = None) -> PretrainedCfg:
    """timm's description of a row: what it says of weights and images is ours, the names of its layers timm's.

    Args:
        file: where timm finds the weights; None: wherever they are, verified.
    """
    stock = get_pretrained_cfg(row["architecture"]) or PretrainedCfg()
    images: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row["preprocessing"].items()}
    return PretrainedCfg(
        file=file or VerifiedFile(row),  # pyright: ignore[reportArgumentType]
        architecture=row["architecture"],
        tag=row["name"].partition(".")[2],
        num_classes=0,
        pool_size=tuple(row["pool_size"]),
        first_conv=stock.first_conv,
        classifier=stock.classifier,
        fixed_input_size=stock.fixed_input_size,
        license=row["license"],
        paper_ids=tuple(row["paper_ids"]),
        **images,
    )


def register() -> None:
    """Makes every row of the manifest a timm tag; a second call changes nothing.

    Raises:
        AttributeError: this timm has its tables elsewhere.
    """
    for name, row in manifest.rows().items():
        arch, _, tag = name.partition(".")
        known: Any = _registry._model_default_cfgs.get(arch)  # a DefaultCfg, whatever its annotation says
        if known is None or tag in known.cfgs:  # an architecture that this timm does not have, or a second call
            continue
        cfg = pretrained_cfg(row)
        named, weighted, tagged = (getattr(_registry, table) for table in _TABLES)
        known.cfgs[tag] = cfg
        known.tags.append(tag)  # the first one is the default
        named[name] = cfg
        weighted.add(name)
        tagged[arch].append(name)
