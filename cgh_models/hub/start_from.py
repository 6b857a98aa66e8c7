"""Weights that a new method starts from, `cgh pretrain --init`."""

import os
from pathlib import Path
from typing import Any

from .. import backbone
from ..errors import InputError, IntegrityError
from . import fetch, manifest
from .registry import create_model, find_folder, is_run, load_method
from .row import Row
from .weights_folder import load_strictly


def start_from(method: Any, weights: str | os.PathLike[str]) -> str:
    """Copies weights into a new method: all of them if method and shapes agree, else the backbone.

    Returns:
        a sentence that says what was taken and what was left out. The method keeps it as
        ``started_from``; it goes into the description of what is trained and exported.

    Raises:
        InputError: the backbone does not fit.
    """
    folder = find_folder(weights)
    name = folder or str(weights)
    reason = "the weights have none"
    source = None
    if _has_heads(weights, folder):
        source = load_method(name)
        reason = _why_not_all(source, method)
    if source is not None and not reason:
        method.load_state_dict(source.state_dict())
        method.started_from = f"started from {name}: backbone, heads, teacher and queues"
        return method.started_from
    if source is not None and folder is not None and is_run(folder):
        loaded = source.student.backbone
    else:  # timm resamples position embeddings to the new image size
        loaded = create_model(name, **backbone.model_args(method.student.backbone))
    branches = [method.student]
    if hasattr(method, "teacher"):
        branches.append(method.teacher)
    for branch in branches:
        try:
            load_strictly(branch.backbone, loaded.state_dict(), name)
        except IntegrityError as error:
            raise InputError(str(error)) from error
    method.started_from = f"started from {name}: backbone; heads: left out, {reason}"
    return method.started_from


def _has_heads(weights: str | os.PathLike[str], folder: Path | None) -> bool:
    if folder is None:
        row = manifest.rows().get(str(weights))
        return row is not None and _location_of_heads(row) != "nowhere"
    if (folder / manifest.ROW_FILE).is_file():
        heads = manifest.read_row(folder).heads_file
        return heads is not None and (folder / heads).is_file()
    return is_run(folder)


def _location_of_heads(row: Row) -> str:
    return fetch.location(row, row.heads_file) if row.heads_file else "nowhere"


def _why_not_all(source: Any, method: Any) -> str:
    """Why a method cannot take all of another's state; "" if it can."""
    if source.name != method.name:
        return f"they are {source.name}'s and not {method.name}'s"
    given = {key: value.shape for key, value in source.state_dict().items()}
    expected = {key: value.shape for key, value in method.state_dict().items()}
    keys = list(expected) + [key for key in given if key not in expected]
    mismatched = [key for key in keys if given.get(key) != expected.get(key)]
    if not mismatched:
        return ""
    more = f" (and {len(mismatched) - 1} more)" if len(mismatched) > 1 else ""
    return f"the shape of {mismatched[0]}{more} is another"
