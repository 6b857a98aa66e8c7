"""Safetensors files: equal tensors give equal bytes, reads are hashed, bad headers refused."""

import contextlib
import json
import random
import sys
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cgh_models.errors import DiskError, InputError, IntegrityError
from cgh_models.files import write_json
from cgh_models.hashing import sha256
from cgh_models.tensors import (
    MAX_TENSORS,
    describe_mismatch,
    layout,
    read_shapes,
    read_tensors,
    write_tensors,
)

STATE = {
    "b": torch.arange(6.0).view(2, 3).t(),
    "a": torch.ones(2, dtype=torch.int64),
    "step": torch.tensor(7),
    "half": torch.randn(3, 2).half(),
    "brain": torch.randn(5).bfloat16(),
    "none": torch.zeros(0, 4),
    "flag": torch.tensor([True, False]),
}


@pytest.fixture
def file(tmp_path):
    write_tensors(tmp_path / "one.safetensors", STATE)
    return tmp_path / "one.safetensors"


def test_equal_tensors_give_equal_bytes(file, tmp_path):
    write_tensors(tmp_path / "two", dict(reversed(STATE.items())))
    assert file.read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_what_is_read_is_what_safetensors_reads(file):
    theirs = load_file(file)
    for ours in (read_tensors(file), read_tensors(file, sha256(file))):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype and torch.equal(ours[key], value)
    assert {k: v.shape for k, v in read_shapes(file).items()} == {
        k: v.shape for k, v in theirs.items()
    }


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    with pytest.raises(DiskError, match="cannot be written"):
        write_json(tmp_path / "none" / "a.json", {})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), ["x" * 2**20], {1: [-float("inf")]}])
def test_json_that_could_not_be_read_is_not_written(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"a.json: not written, because .*; give"):
        write_json(path, {"a": value})
    assert path.read_text() == "{}" and list(tmp_path.iterdir()) == [path]


def test_every_single_changed_byte_is_refused(file):
    whole, good = file.read_bytes(), sha256(file)
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IntegrityError, match="sha256 differs|not a readable safetensors file"):
            read_tensors(file, good)


def test_a_file_that_is_not_there_is_not_a_damaged_one(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_tensors(tmp_path / "none")


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


BAD = {
    "a list": [],
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "another key": {"a": entry(x=1)},
    "an unknown dtype": {"a": entry(dtype="F5")},
    "a list as dtype": {"a": entry(dtype=[])},
    "a negative side": {"a": entry(shape=[-2])},
    "a side of true": {"a": entry(shape=[True, 2])},
    "a float side": {"a": entry(shape=[2.0])},
    "too large": {"a": entry(shape=[2**62, 2**62])},
    "swapped offsets": {"a": entry(data_offsets=[8, 0])},
    "a hole": {"a": entry(data_offsets=[4, 12])},
    "an overlap": {"a": entry(), "b": entry()},
    "beyond the end": {"a": entry(), "b": entry(data_offsets=[8, 16])},
    "nothing": {},
    "empty but huge": {"a": entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "b": entry()},
    "a hundred sides": {"a": entry(shape=[1] * 100)},
    "too many": {str(i): entry(shape=[0], data_offsets=[0, 0]) for i in range(MAX_TENSORS + 1)},
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_a_header_the_format_does_not_allow_is_refused(header):
    with pytest.raises(ValueError):
        layout(json.dumps(header).encode(), 8)


def test_mutated_files_end_in_one_error_and_little_memory(file):
    whole, rng = file.read_bytes(), random.Random(0)
    tracemalloc.start()
    for _ in range(3000):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(min(len(body), 700))
            if rng.random() < 0.7:
                body[place] = rng.randrange(256)
            else:
                del body[place : place + rng.randint(1, 40)]
        file.write_bytes(body)
        with contextlib.suppress(IntegrityError):
            read_tensors(file)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


def test_a_mismatch_is_described_by_count_and_first_keys():
    assert describe_mismatch(STATE, dict(STATE)) == ""
    other = {k: v for k, v in STATE.items() if k != "a"} | {
        "b": torch.zeros(3),
        "zz": torch.zeros(1),
    }
    assert (
        describe_mismatch(STATE, other)
        == "3 of 7 tensors are missing, unknown or of another shape, the first are a, b, zz"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mem, whose start is an EIO")
@pytest.mark.parametrize("read", [read_shapes, read_tensors])
def test_a_file_that_the_system_does_not_read_just_now_is_not_damaged(read, tmp_path):
    path = tmp_path / "a.safetensors"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DiskError, match=f"^{path}: cannot be read .Input/output error."):
        read(path)
