"""Whether weights are what their row says: hashes, tensors, finite values, fingerprint."""

import json
import math
import os
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from ..backbone import TimmModel
from ..errors import IntegrityError, printable
from ..files import read_json
from ..methods import build_method
from . import fetch, manifest, timm_models, weights_folder
from .row import BACKBONE, Row

# Of the fingerprint's largest number; float32 on other CPUs and thread counts differs by some 1e-6.
TOLERANCE = 1e-4


def verify(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """Checks published weights (fetched if need be) or a weights folder, all the way.

    Returns:
        ``name``, ``files`` (those that were checked), ``parameters`` and ``fingerprint_error``, the
        largest difference relative to the fingerprint's largest number.

    Raises:
        InputError: nothing of this name, or a folder without its row.
        NetworkError: published weights are not here and could not be fetched.
        IntegrityError: a hash, a tensor, a value or the fingerprint differs.
    """
    row, folder = manifest.find(weights)
    checked = []
    for file in row.files:  # published heads that are not here are not fetched
        if folder or file == BACKBONE or fetch.location(row, file) in fetch.HERE:
            checked.append(file)
    tensors = {file: weights_folder.read(row, file, folder) for file in checked}
    if folder:
        _check_sizes(folder, row)
        _check_config(folder, row)
    for file, content in tensors.items():
        _check_values(f"{printable(weights)}/{file}", content)
    model = timm_models.filled(row, tensors[BACKBONE], f"{weights}/{BACKBONE}")
    parameters = sum(p.numel() for p in model.parameters())
    if (parameters, model.num_features) != (row.parameters, row.num_features):
        raise IntegrityError(
            f"{printable(weights)}: {parameters} parameters, width {model.num_features}; its "
            f"description says {row.parameters}, {row.num_features}; export it again"
        )
    if row.heads_file in checked:
        _check_heads(row, tensors, weights)
    error = _fingerprint_error(model, row)
    if not error <= TOLERANCE:
        raise IntegrityError(
            f"{printable(weights)}: its fingerprint is off by {error:.2g} of its size, expected at "
            f"most {TOLERANCE}: timm {timm.__version__} computes something else than the version "
            "it was made with"
        )
    return {
        "name": row.name,
        "files": checked,
        "parameters": parameters,
        "fingerprint_error": error,
    }


def _check_sizes(folder: Path, row: Row) -> None:
    for file, entry in row.files.items():
        size = (folder / file).stat().st_size
        if size != entry.bytes:
            raise IntegrityError(
                f"{printable(folder / file)}: {size} bytes, {entry.bytes} expected; export it again"
            )


def _check_config(folder: Path, row: Row) -> None:
    """timm's config beside the weights has to follow from the row, to the last field."""
    path = folder / "config.json"
    found = _flatten(read_json(path, "timm's config.json"))
    expected = _flatten(json.loads(json.dumps(timm_models.timm_config(row))))
    for key in expected | found:
        if key not in found or key not in expected or found[key] != expected[key]:
            raise IntegrityError(
                f"{printable(path)}: {printable(key)[:60]} is {printable(found.get(key))[:60]}, "
                f"{manifest.ROW_FILE} says {printable(expected.get(key))[:60]}; export it again"
            )


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    """timm's config with the fields of ``pretrained_cfg`` as ``pretrained_cfg.<field>``."""
    flat = dict(config)
    inner = flat.pop("pretrained_cfg", None)
    if isinstance(inner, dict):
        flat |= {f"pretrained_cfg.{key}": value for key, value in inner.items()}
    return flat


def _check_values(name: str, tensors: dict[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        problem = ""
        if tensor.is_floating_point() and not tensor.isfinite().all():
            problem = "holds values that are not finite"
        elif key.endswith("weight") and not tensor.is_floating_point():
            problem = f"is {tensor.dtype}, not floating point"
        if problem:
            raise IntegrityError(f"{name}: {printable(key)[:60]} {problem}; export it again")


def _check_heads(row: Row, tensors: dict[str, dict[str, Tensor]], weights: object) -> None:
    """Raises IntegrityError unless backbone and heads fill the row's method."""
    images = row.preprocessing.to_timm()
    method = build_method(row.method, row.architecture, images, row.method_config, **row.model_args)
    weights_folder.load_state(method, tensors[BACKBONE], tensors[row.heads_file or ""], weights)


def _fingerprint_error(model: TimmModel, row: Row) -> float:
    found = timm_models.fingerprint(model, row.preprocessing.input_size)
    size = max(abs(value) for value in row.fingerprint)
    if not size > 0 or not all(map(math.isfinite, found)):  # max() would pass over a NaN
        return math.inf
    return max(abs(a - b) for a, b in zip(found, row.fingerprint, strict=True)) / size
