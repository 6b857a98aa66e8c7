"""Devices by name, and the precision that a processor is fast in."""

import pytest
import torch

from cgh_models.errors import InputError
from cgh_models.evaluate import pick_device, pick_precision


def test_a_device_that_is_not_there_is_one_sentence():
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(
            InputError, match=f"--device {name}: cannot be used .*; try --device cpu"
        ):
            pick_device(name)


def test_bfloat16_is_taken_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert pick_precision("auto", torch.device("cpu")) is torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert pick_precision("auto", torch.device("cpu")) is torch.bfloat16
