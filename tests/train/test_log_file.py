"""The file metrics.jsonl: whatever is in it, a run goes on and a reader gets the rows."""

import json

import pytest

from cgh_models.train.log_file import drop_lines, read_log

ROWS = [json.dumps({"step": step, "loss": 0.5}).encode() + b"\n" for step in range(8)]
STRAYS = {
    "numbers": b"5\n-1.5\nNaN\nInfinity\n",
    "no row": b'{"a": 1}\n[1]\nnull\ntrue\n"step"\n{}\n',
    "no step": b'{"step": "x"}\n{"step": true}\n{"step": 1.5}\n{"step": null}\n{"step": -1}\n',
    "no numbers": b'{"step": 3, "loss": "x"}\n{"step": 3, "loss": [1]}\n{"step": 3, "loss": {}}\n',
    "huge numbers": b'{"step": 1' + b"0" * 400 + b'}\n{"step": 1' + b"0" * 5000 + b"}\n",
    "half a line": ROWS[3][:9] + b"\n",
    "two in one": ROWS[3].strip() + ROWS[3],
    "binary": bytes(range(256)) + b"\n",
    "zeros, as a crash leaves them": bytes(5000) + b"\n",
    "not UTF-8": b'{"step": 3, "\xff\xfe": 1}\n\xff\n',
    "UTF-16": '{"step": 3}\n'.encode("utf-16"),
    "a huge line": b"x" * 3_000_000 + b"\n",
    "deep": b"[" * 100_000 + b"\n" + b'{"step":' * 50_000 + b"\n",
    "empty lines": b"\n \n\r\n",
}


@pytest.mark.parametrize("stray", STRAYS)
def test_lines_that_are_no_rows_of_a_run_are_dropped_and_said(tmp_path, capsys, stray):
    log = tmp_path / "metrics.jsonl"
    for content in (
        b"".join([*ROWS[:2], STRAYS[stray], *ROWS[2:]]),
        b"".join([*ROWS[:6], STRAYS[stray].rstrip(b"\n")]),
    ):
        log.write_bytes(content)
        assert read_log(log) == [json.loads(row) for row in ROWS[: 8 if ROWS[7] in content else 6]]
        assert "damaged lines left out" in capsys.readouterr().err
        drop_lines(log, 5)
        assert log.read_bytes() == b"".join(ROWS[:6])
        assert f"{log}: " in capsys.readouterr().err
        drop_lines(log, 5)
        assert log.read_bytes() == b"".join(ROWS[:6]) and capsys.readouterr().err == ""


def test_a_last_row_without_its_newline_stays_and_gets_one(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b"".join(ROWS[:3]).rstrip())
    drop_lines(log, 5)
    assert log.read_bytes() == b"".join(ROWS[:3])


def test_lines_of_another_systems_editor_are_rows(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b"\xef\xbb\xbf" + b"".join(ROWS[:3]).replace(b"\n", b"\r\n"))
    assert [row["step"] for row in read_log(log)] == [0, 1, 2]


def test_a_log_that_needs_nothing_is_not_written(tmp_path):
    """A full disk does not keep a run from going on."""
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b"".join(ROWS[:3]))
    before = log.stat()
    drop_lines(log, 2)
    assert (before.st_ino, before.st_mtime_ns) == (log.stat().st_ino, log.stat().st_mtime_ns)


def test_what_is_not_a_file_gets_another_name(tmp_path, capsys):
    log = tmp_path / "metrics.jsonl"
    log.mkdir()
    (log / "mine").touch()
    assert read_log(log) == []
    drop_lines(log, 5)
    (aside,) = tmp_path.iterdir()
    assert (aside / "mine").exists() and f"not a file; renamed to {aside.name}" in (
        capsys.readouterr().err
    )
    drop_lines(log, 5)
    assert not log.exists() and capsys.readouterr().err == ""
