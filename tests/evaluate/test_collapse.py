"""Spread sees a collapse of embeddings."""

import numpy as np
import pytest

from cgh_models.evaluate import spread


def test_spread_tells_collapsed_from_even_embeddings():
    rng = np.random.default_rng(0)
    even = rng.normal(size=(2000, 32))
    flat = even @ np.diag([1.0] * 4 + [0.0] * 28)
    same = np.ones((2000, 32)) + 1e-6 * even
    assert (
        spread(even)["feature_std"] == pytest.approx(1, abs=0.02)
        and spread(even)["effective_rank"] > 31
    )
    assert spread(flat)["effective_rank"] == pytest.approx(4, abs=0.1)
    assert spread(same)["feature_std"] < 1e-4
