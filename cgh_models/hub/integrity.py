"""Whether weights are what their row says: hashes, tensors, finite values, fingerprint."""

import json
import math
import os
from pathlib import Path
from typing import Any

import timm

from ..backbone import TimmModel
from ..errors import IntegrityError, printable
from ..files import read_json
from ..methods import method_of_file
from ..tensors import Tensors, plain_defaults
from . import fetch, manifest, memory_limit, timm_models, weights_folder
from .row import BACKBONE, Row

# Of the fingerprint's largest number; float32 on other CPUs and thread counts differs by some 1e-6.
TOLERANCE = 1e-4


@plain_defaults()
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
    shown = printable(weights)
    tensors = {}
    for file in row.files:  # published heads that are not here are not fetched
        if folder or file == BACKBONE or fetch.location(row, file) in fetch.HERE:
            tensors[file] = fetch.read(row, file, folder)
    if folder:
        _check_description(folder, row)
    for file, content in tensors.items():
        _check_values(f"{shown}/{file}", content)
    with memory_limit.limit_of_method(row, folder):
        error, parameters = _check_networks(row, tensors, shown)
    if not error <= TOLERANCE:
        what = f"{shown}: its fingerprint is off by {error:.2g} of its size"
        why = f"timm {timm.__version__} computes something else than when it was made"
        raise IntegrityError(f"{what}, expected at most {TOLERANCE}: {why}")
    found = {"name": row.name, "files": list(tensors), "parameters": parameters}
    return found | {"fingerprint_error": error}


def _check_networks(row: Row, tensors: dict[str, Tensors], shown: str) -> tuple[float, int]:
    """The error of the fingerprint and the number of parameters, after backbone and heads fit."""
    model = timm_models.model_with_tensors(row, tensors[BACKBONE], f"{shown}/{BACKBONE}")
    parameters = sum(p.numel() for p in model.parameters())
    if (parameters, model.num_features) != (row.parameters, row.num_features):
        what = f"{shown}: {parameters} parameters, width {model.num_features}"
        described = f"its description says {row.parameters}, {row.num_features}"
        raise IntegrityError(f"{what}; {described}; export it again")
    if row.heads_file in tensors:
        method = method_of_file(**row.of_method)
        file = row.heads_file
        weights_folder.load_state(method, tensors[BACKBONE], tensors[file], shown, file)
    return _fingerprint_error(model, row), parameters


def _check_description(folder: Path, row: Row) -> None:
    """Sizes and timm's config have to follow from the row, to the last field."""
    for file, entry in row.files.items():
        size = (folder / file).stat().st_size
        if size != entry.bytes:
            reason = f"{size} bytes, {entry.bytes} expected; export it again"
            raise IntegrityError(f"{printable(folder / file)}: {reason}")
    path = folder / "config.json"
    found = _flatten(read_json(path, "timm's config.json"))
    expected = _flatten(json.loads(json.dumps(timm_models.timm_config(row))))
    for key in expected | found:
        if key not in found or key not in expected or found[key] != expected[key]:
            what = f"{printable(key)[:60]} is {printable(found.get(key))[:60]}"
            described = f"{manifest.ROW_FILE} says {printable(expected.get(key))[:60]}"
            raise IntegrityError(f"{printable(path)}: {what}, {described}; export it again")


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("pretrained_cfg")
    if not isinstance(inner, dict):
        return config
    return config | {"pretrained_cfg": {}} | {f"pretrained_cfg.{k}": v for k, v in inner.items()}


def _check_values(name: str, tensors: Tensors) -> None:
    for key, tensor in tensors.items():
        problem = ""
        if tensor.is_floating_point() and not tensor.isfinite().all():
            problem = "holds values that are not finite"
        elif key.endswith("weight") and not tensor.is_floating_point():
            problem = f"is {tensor.dtype}, not floating point"
        if problem:
            raise IntegrityError(f"{name}: {printable(key)[:60]} {problem}; export it again")


def _fingerprint_error(model: TimmModel, row: Row) -> float:
    found = timm_models.fingerprint(model, row.preprocessing.input_size)
    size = max(abs(value) for value in row.fingerprint)
    if not size > 0 or not all(map(math.isfinite, found)):  # max() would pass over a NaN
        return math.inf
    return max(abs(a - b) for a, b in zip(found, row.fingerprint, strict=True)) / size
