"""Whether weights are what their row says: hashes, tensors, finite values, fingerprint."""

import math
import os
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ..errors import IntegrityError, printable
from ..files import read_json
from ..tensors import read_tensors
from . import fetch, manifest, tags
from .registry import create_model, load_method

TOLERANCE = 1e-4  # of the fingerprint's largest number; float32 on other CPUs and thread counts differs by some 1e-6


@torch.no_grad()
def fingerprint(model: Any, input_size: Any) -> list[float]:
    """Eight numbers (six digits) of a headless model: the means of eighths of its embedding of one fixed image.

    The image (C, H, W), values in [-1, 1), is made of whole numbers, so that it is the same everywhere.
    """
    place = torch.arange(math.prod(input_size))
    image = ((place * 2654435761) % 65536).float().view(1, *input_size) / 32768 - 1
    training = model.training
    embedding = model.eval()(image)[0].double()  # (D,)
    model.train(training)
    return [float(f"{part.mean():.6g}") for part in embedding.tensor_split(8)]


def verify(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """Checks published weights (fetched if need be) or a weights folder, all the way.

    Returns:
        ``name``, ``files`` (those that were checked), ``parameters`` and ``fingerprint_error``, the largest difference
        relative to the fingerprint's largest number.

    Raises:
        InputError: nothing of this name, or a folder without its description.
        NetworkError: published weights are not here and could not be fetched.
        IntegrityError: a hash, a tensor, a value or the fingerprint is another.
    """
    path = Path(weights)
    if str(weights) in manifest.rows() or not path.is_dir():
        row = manifest.row(str(weights))
        checked = [f for f in row["files"] if f == manifest.BACKBONE or fetch.where(row, f) in fetch.HERE]
        tensors = {file: fetch.read(row, file) for file in checked}
    else:
        row = manifest.read_row(path)
        checked = list(row["files"])
        tensors = {file: read_tensors(path / file, row["files"][file]["sha256"]) for file in checked}
        _check_size(path, row)
        _check_config(path, row)
    for file, content in tensors.items():
        _check_values(f"{printable(weights)}/{file}", content)
    model = create_model(weights)
    found = sum(p.numel() for p in model.parameters())
    if (found, model.num_features) != (row["parameters"], row["num_features"]):
        raise IntegrityError(
            f"{printable(weights)}: {found} parameters, width {model.num_features}; its description says "
            f"{row['parameters']}, {row['num_features']}; export it again"
        )
    if manifest.HEADS in checked:
        load_method(weights)
    error = _fingerprint_error(model, row)
    if not error <= TOLERANCE:
        raise IntegrityError(
            f"{printable(weights)}: its fingerprint is off by {error:.2g} of its size, expected at most {TOLERANCE}: "
            f"timm {timm.__version__} computes something else than the version it was made with"
        )
    return {"name": row["name"], "files": checked, "parameters": found, "fingerprint_error": error}


def _check_size(path: Path, row: manifest.Row) -> None:
    for file, entry in row["files"].items():
        size = (path / file).stat().st_size
        if size != entry["bytes"]:
            raise IntegrityError(f"{printable(path / file)}: {size} bytes, {entry['bytes']} expected; export it again")


def _check_config(path: Path, row: manifest.Row) -> None:
    """What timm reads beside the weights has to be what follows from the row, to the last field."""
    told, expected = _flat(read_json(path / "config.json", "timm's config.json")), _flat(tags.timm_config(row))
    if odd := [key for key in {**expected, **told} if told.get(key, ...) != expected.get(key, ...)]:
        raise IntegrityError(
            f"{printable(path / 'config.json')}: {printable(odd[0])[:60]} is {printable(told.get(odd[0]))[:60]}, "
            f"{manifest.ROW_FILE} says {printable(expected.get(odd[0]))[:60]}; export it again"
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("pretrained_cfg")
    inner = inner if isinstance(inner, dict) else {}
    return {k: v for k, v in config.items() if k != "pretrained_cfg"} | {f"pretrained_cfg.{k}": inner[k] for k in inner}


def _check_values(name: str, tensors: dict[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise IntegrityError(f"{name}: {printable(key)[:60]} holds values that are not finite; export it again")
        if key.endswith("weight") and not tensor.is_floating_point():
            raise IntegrityError(
                f"{name}: {printable(key)[:60]} is {tensor.dtype}, not floating point; export it again"
            )


def _fingerprint_error(model: Any, row: manifest.Row) -> float:
    found = fingerprint(model, row["preprocessing"]["input_size"])
    size = max(abs(value) for value in row["fingerprint"])
    if not size > 0 or not all(map(math.isfinite, found)):  # max() would pass over a NaN
        return math.inf
    return max(abs(a - b) for a, b in zip(found, row["fingerprint"], strict=True)) / size
