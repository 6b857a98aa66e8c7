"""`cgh publish` on the loopback Hub: one commit, read back, pinned, loaded by plain timm."""

import collections
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import timm
import torch
from conftest import HUB
from huggingface_hub import ModelCard, snapshot_download
from loopback_hub import TOKEN
from test_manifest import ROW, write

from cgh_models import load_method
from cgh_models.cli.main import main
from cgh_models.hub import fetch as hub
from cgh_models.hub import manifest
from cgh_models.hub.export import record
from cgh_models.hub.publish import _content, _upload
from cgh_models.hub.row import BACKBONE, HEADS, OLD_HEADS, HubPin, Metric, Row

REPO = "org/test_resnet.cgh"
METRIC = Metric("Some Set", "kNN", {"k": 3}, 61.25, 20, "cgh x")


@pytest.fixture
def folder(weights, tmp_path, loopback, monkeypatch):
    """A weights folder with a measured number, a picture and files that must not be published."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights, tmp_path / "w")
    record(tmp_path / "w", "knn", METRIC)
    (tmp_path / "w" / "curve.png").write_bytes(b"\x89PNG")
    (tmp_path / "w" / "secrets.json").write_text("{}")
    (tmp_path / "w" / "evil.pth").write_bytes(b"pickle")
    write(tmp_path / "m.json", ROW | {"name": "test_resnet.other"})
    return tmp_path / "w"


def publish(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(
        sys, "argv", ["cgh", "publish", "w", "--repo", REPO, "--manifest", "m.json", *words]
    )
    try:
        main()
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


def test_published_weights_load_in_plain_timm_to_the_bit(
    folder,
    weights,
    tmp_path,
    monkeypatch,
    capsys,
):
    assert publish(monkeypatch) == 0
    said = capsys.readouterr().out
    known = HUB.repos[REPO]
    commit, files = known["commits"][-1]
    assert len(known["commits"]) == 2 and list(known["tags"].values()) == [
        commit
    ]  # the empty one, and ours
    described = {".gitattributes", "config.json", "weights.json", "README.md", "curve.png"}
    assert files.keys() == described | {BACKBONE, HEADS}
    assert "not published: evil.pth, secrets.json" in said and commit in said
    pinned = manifest.read(tmp_path / "m.json")
    assert [row.name for row in pinned] == ["test_resnet.other", "test_resnet.cgh"]
    assert pinned[1].hub == HubPin(REPO, commit) == manifest.read_row(folder).hub
    card = ModelCard(files["README.md"].decode())
    results = [(r.metric_value, r.dataset_name) for r in card.data.eval_results]
    assert results == [(pinned[1].metrics["knn"].value, "Some Set")] and "| 61.25 % |" in card.text
    code = f"""
import sys, json, torch, timm
model = timm.create_model('hf-hub:{REPO}', pretrained=True).eval()
assert 'cgh_models' not in sys.modules
print(json.dumps(model(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))[0].tolist()))
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    local = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()
    assert (
        json.loads(done.stdout)
        == local(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))[0].tolist()
    )
    monkeypatch.setattr(manifest, "rows", lambda: {row.name: row for row in pinned})
    loaded, ours = load_method("test_resnet.cgh").state_dict(), load_method(weights).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in ours.items())


def test_publishing_again_makes_one_commit_more_and_moves_the_pin(folder, monkeypatch, tmp_path):
    assert publish(monkeypatch) == 0
    first = manifest.read(tmp_path / "m.json")[1].hub.revision
    (folder / "curve.png").unlink()
    record(folder, "linear", dataclasses.replace(METRIC, value=70.5))  # writes the card anew
    assert publish(monkeypatch) == 0
    assert (
        "curve.png" not in HUB.repos[REPO]["commits"][-1][1] and len(HUB.repos[REPO]["tags"]) == 2
    )
    second = manifest.read(tmp_path / "m.json")[1]
    assert second.hub.revision != first and second.metrics["linear"].value == 70.5
    assert len(HUB.repos[REPO]["commits"]) == 3
    row = manifest.read_row(
        Path(snapshot_download(REPO, revision=first, cache_dir=tmp_path / "old"))
    )
    assert row.metrics["linear"] is None  # a pinned commit stays what it was


@pytest.mark.parametrize("status", [403, 500])
def test_a_repository_that_could_not_be_filled_is_removed_again(
    folder, monkeypatch, capsys, status
):
    monkeypatch.setattr("cgh_models.hub.sources.time.sleep", lambda seconds: None)
    HUB.faults["commit_status"] = [status] * 99
    code, said = refused(folder, monkeypatch, capsys)
    assert code == 3 and f"HTTP {status}" in said and REPO not in HUB.repos
    HUB.faults.clear()
    HUB.add(REPO, {".gitattributes": b""})  # an empty one of the user's own stays
    HUB.faults["commit_status"] = [status] * 99
    refused(folder, monkeypatch, capsys)
    assert REPO in HUB.repos


def test_a_commit_that_came_in_between_is_not_written_over(folder, monkeypatch, capsys):
    HUB.faults["pushed_before"] = {"README.md": b"Of somebody else."}
    code, _ = refused(folder, monkeypatch, capsys)
    assert code == 3 and len(HUB.repos[REPO]["commits"]) == 2
    assert HUB.repos[REPO]["commits"][-1][1]["README.md"] == b"Of somebody else."


def test_a_private_repository_is_private(folder, monkeypatch):
    assert publish(monkeypatch, "--private") == 0
    assert HUB.repos[REPO]["private"]


def test_a_public_repository_does_not_take_what_was_meant_to_be_private(
    folder, monkeypatch, capsys
):
    HUB.add(REPO, {".gitattributes": b""})
    code, said = refused(folder, monkeypatch, capsys, "--private")
    assert code == 2 and "is public already" in said and len(HUB.repos[REPO]["commits"]) == 1


def test_a_repository_with_other_files_is_left_alone(folder, monkeypatch, capsys):
    HUB.add(REPO, {"pytorch_model.bin": b"pickle"})
    code, said = refused(folder, monkeypatch, capsys)
    assert (
        code == 2 and "holds other files (pytorch_model.bin); give a repository of its own" in said
    )


def test_a_failed_second_publish_keeps_the_pin_of_the_first(folder, monkeypatch, capsys):
    assert publish(monkeypatch) == 0
    monkeypatch.setattr("cgh_models.hub.sources.time.sleep", lambda seconds: None)
    HUB.faults["create"] = [500] * 99
    code, _ = refused(folder, monkeypatch, capsys)
    assert code == 3 and manifest.read_row(folder).hub.repo_id == REPO


def test_a_manifests_mirrors_stay_and_its_notes_are_not_lost(folder, monkeypatch, capsys, tmp_path):
    known = manifest.read_row(folder)
    mirror = ["https://example.com/model.safetensors"]
    known.files[BACKBONE].urls = mirror
    write(tmp_path / "m.json", known.to_json() | {"notes": ["By hand."]})
    code, said = refused(folder, monkeypatch, capsys)
    assert (
        code == 2
        and "its notes on test_resnet.cgh differ from the folder's" in said
        and not HUB.repos
    )
    write(tmp_path / "m.json", known.to_json())
    assert publish(monkeypatch) == 0
    assert manifest.read(tmp_path / "m.json")[0].files[BACKBONE].urls == mirror


def test_only_pictures_that_are_pictures_go_up(folder, monkeypatch, capsys):
    (folder / "link.png").symlink_to("/etc/passwd")
    (folder / ".hidden.png").write_bytes(b"\x89PNG")
    (folder / "pickle.png").write_bytes(b"\x80\x04")
    assert publish(monkeypatch) == 0
    assert (
        "not published: .hidden.png, evil.pth, link.png, pickle.png, secrets.json"
        in capsys.readouterr().out
    )


def test_a_heads_file_in_a_subfolder_takes_the_place_of_an_earlier_one(folder, monkeypatch, capsys):
    row = manifest.read_row(folder)
    (folder / "heads" / "notes.txt").write_text("not for everybody")
    content, left_out = _content(folder, row)
    assert content[HEADS] == (folder / HEADS).read_bytes() and "heads/notes.txt" in left_out
    HUB.add(REPO, {".gitattributes": b"", OLD_HEADS: b"earlier", "old.png": b""})
    commit = _upload(content, REPO, row, False)
    assert HUB.repos[REPO]["commits"][-1] == (commit, content | {".gitattributes": b""})


@pytest.mark.parametrize("call", ["tempfile.TemporaryFile", "open"])
def test_a_folder_or_manifest_that_cannot_be_written_is_refused_before_anything_is_uploaded(
    folder, monkeypatch, capsys, call
):
    def refuse(*_, **__):  # a test that runs as root cannot take the right to write away
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(f"cgh_models.hub.publish.{call}", refuse, raising=False)
    code, said = refused(folder, monkeypatch, capsys)
    assert code == 5 and "cannot be written (Permission denied); nothing was published" in said
    assert HUB.log == [] and not HUB.repos


def test_a_stumbling_hub_is_asked_again(folder, monkeypatch):
    monkeypatch.setattr("cgh_models.hub.sources.time.sleep", lambda seconds: None)
    HUB.faults["create"] = [500, 503]
    assert publish(monkeypatch) == 0


def refused(folder, monkeypatch, capsys, *words):
    """Exit code and the one line of a publish that must change nothing."""
    listing = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    before = (folder.parent / "m.json").read_bytes()
    code = publish(monkeypatch, *words)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and len(said[0]) < 420, said
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == listing
    assert (folder.parent / "m.json").read_bytes() == before
    return code, said[0]


def test_a_temporary_folder_without_room_is_named_before_anything_is_uploaded(
    folder, monkeypatch, capsys
):
    full = collections.namedtuple("Usage", "free")(1000)
    monkeypatch.setattr("cgh_models.hub.publish.shutil.disk_usage", lambda path: full)
    code, said = refused(folder, monkeypatch, capsys)
    assert code == 5 and said.startswith(f"error: {tempfile.gettempdir()}")
    assert "bytes are needed; make room, or set TMPDIR to another disk" in said
    assert REPO not in HUB.repos


def test_what_verify_refuses_never_leaves_the_machine(folder, monkeypatch, capsys):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, said = refused(folder, monkeypatch, capsys)
    assert code == 4 and "sha256 differs" in said and HUB.log == []


def test_a_card_with_words_of_ones_own_is_not_overwritten(folder, monkeypatch, capsys):
    (folder / "README.md").write_text("my own words")
    code, said = refused(folder, monkeypatch, capsys)
    assert code == 2 and "move your text to its `notes`" in said and HUB.log == []
    (folder / "README.md").unlink()
    assert publish(monkeypatch) == 0


def test_bytes_that_come_back_altered_are_not_pinned(folder, monkeypatch, capsys):
    HUB.faults["alter"] = True
    code, said = refused(folder, monkeypatch, capsys)
    assert (
        code == 4 and "model.safetensors came back with another sha256; nothing was pinned" in said
    )


def test_without_a_token_nothing_is_made(folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, said = refused(folder, monkeypatch, capsys)
    assert (
        code == 3
        and "nothing was pinned: HTTP 401; `hf auth login` with a token that may do this" in said
        and not HUB.repos
    )


def test_a_hub_that_is_down_is_said(folder, monkeypatch, capsys):
    monkeypatch.setattr("cgh_models.hub.sources.time.sleep", lambda seconds: None)
    HUB.faults["create"] = [500] * 99
    code, said = refused(folder, monkeypatch, capsys)
    assert code == 3 and "nothing was pinned: HTTP 500; try again later" in said


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--repo", "no such name"], 2, "--repo no such name: expected ORG/NAME"),
        (["--repo", "justname"], 2, "--repo justname: expected ORG/NAME"),
        (["--repo", "org/two..dots"], 2, "--repo org/two..dots: expected ORG/NAME"),
        (["--manifest", "none.json"], 2, "none.json: not found; expected a weights manifest"),
        (
            ["--manifest", "w/config.json"],
            2,
            "w/config.json: schema None, keys architecture",
        ),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    folder, monkeypatch, capsys, words, code, message
):
    found = refused(folder, monkeypatch, capsys, *words)
    assert found[0] == code and message in found[1]


def test_where_a_row_is_is_told(loopback):
    row = Row.from_json(ROW | {"name": "test_resnet.nowhere"})
    assert hub.location(row, BACKBONE) == "nowhere" == hub.location(row, HEADS)
    row.hub = HubPin(REPO, "0" * 40)
    assert hub.location(row, BACKBONE) == "Hub" and hub.location(row, HEADS) == "nowhere"
