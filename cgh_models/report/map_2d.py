"""Embeddings as points in a plane."""

from importlib import import_module
from typing import Any

import numpy as np

from ..errors import InputError


def check(method: str) -> Any:
    """umap's module where it is needed. Raises InputError if that is not installed."""
    if method != "umap":
        return None
    try:
        return import_module("umap")
    except ImportError as error:
        advice = "type pip install umap-learn, or give --map pca"
        raise InputError(f"--map umap: umap-learn is not installed; {advice}") from error


def project(embeddings: np.ndarray, method: str = "pca") -> np.ndarray:
    """Points (N, 2) in [0, 1] for embeddings (N, D), of the unit rows, which kNN compares.

    ``pca``: the two directions of most variance, signs fixed. ``umap``: with `umap-learn`, seeded.
    Raises InputError if that is not installed.
    """
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    if method == "umap":
        umap = check(method).UMAP(metric="cosine", random_state=0, n_jobs=1)
        points = umap.fit_transform(rows)
    else:
        rows -= rows.mean(0)
        _, axes = np.linalg.eigh(rows.T @ rows)
        axes = axes[:, ::-1][:, :2]  # (D, 2), most variance first
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        points = rows @ axes
    low, high = np.quantile(points, (0.005, 0.995), axis=0)  # a few far images must not shrink all
    return ((points - low) / np.maximum(high - low, 1e-12)).clip(0, 1).astype(np.float32)
