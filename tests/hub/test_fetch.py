"""From a row to verified bytes: the right ones or one sentence, whatever the Hub, the network and the disk do."""

import copy
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from conftest import HUB
from huggingface_hub import constants, hf_hub_download
from loopback_hub import TOKEN
from small_runs import small
from test_export import run, weights  # noqa: F401 - fixtures

from cgh_models import create_model, load_method
from cgh_models.cli.main import main
from cgh_models.errors import DiskError, InputError, IntegrityError, NetworkError
from cgh_models.files import sha256
from cgh_models.hub import download, manifest, tags
from cgh_models.hub import fetch as hub
from cgh_models.hub.registry import build_method, start_from

REPO, NAME, FILE = "org/test_resnet.cgh", "test_resnet.cgh", manifest.BACKBONE


def put(weights, **flags) -> dict:  # noqa: F811
    """The folder's files in a repository of the loopback Hub, and the row that pins them."""
    commit = HUB.add(REPO, {path.name: path.read_bytes() for path in weights.iterdir()}, **flags)
    row = manifest.read_row(weights)
    row["hub"] = {"repo_id": REPO, "revision": commit}
    return row


@pytest.fixture
def row(loopback, weights, monkeypatch):  # noqa: F811
    """A row that is only on the Hub, known to this package and to timm for the length of a test."""
    row = put(weights)
    monkeypatch.setattr(manifest, "rows", lambda: {NAME: row})
    monkeypatch.setattr(hub, "_verified", {})
    default = timm.models._registry._model_default_cfgs["test_resnet"]
    tags.register()
    yield row
    default.tags.remove("cgh")
    del default.cfgs["cgh"], timm.models._registry._model_pretrained_cfgs[NAME]
    timm.models._registry._model_has_pretrained.discard(NAME)
    timm.models._registry._model_with_tags["test_resnet"].remove(NAME)


def cached(tmp_path) -> list[str]:
    """What a test left on disk, but for locks and pieces that a later download goes on with."""
    return sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and not p.name.endswith((".lock", ".part")))


def verify_command(name, monkeypatch, capsys):
    """`cgh verify NAME`, its one line on stderr turned into the error again."""
    monkeypatch.setattr(sys, "argv", ["cgh", "verify", name])
    try:
        main()
    except SystemExit as stop:
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and len(said[0]) < 420, said
        kinds = {e.exit_code: e for e in (InputError, NetworkError, IntegrityError, DiskError)}
        raise kinds[int(str(stop.code))](said[0].removeprefix("error: ")) from stop


ENTRIES = {
    "create_model": lambda *_: create_model(NAME),
    "timm": lambda *_: timm.create_model(NAME, pretrained=True),
    "timm with a new head": lambda *_: timm.create_model(NAME, pretrained=True, num_classes=3),
    "load_method": lambda *_: load_method(NAME),
    "cgh verify": lambda *tools: verify_command(NAME, *tools),
}


@pytest.fixture(params=ENTRIES)
def load(request, monkeypatch, capsys):
    return lambda: ENTRIES[request.param](monkeypatch, capsys)


def test_every_way_loads_what_was_exported_and_asks_nothing_once_cached(row, load, weights, tmp_path):  # noqa: F811
    load()
    assert FILE in cached(tmp_path) and HUB.gets(FILE)
    HUB.log.clear()
    hub._verified.clear()
    load()
    assert HUB.log == []


def test_the_loaded_model_is_the_exported_one_to_the_bit(row, weights):  # noqa: F811
    x = torch.randn(2, 3, 64, 64)
    expected = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()(x)
    for model in (create_model(NAME), create_model(NAME), timm.create_model(NAME, pretrained=True)):
        assert torch.equal(model.eval()(x), expected)
        assert {p.dtype for p in model.parameters()} == {torch.float32}


FAULTS = {
    "altered bytes of equal length": (
        {"alter": True},
        IntegrityError,
        r"sha256 differs: expected \w{64}, found \w{64}",
    ),
    "a web page instead of weights": ({"html": True}, IntegrityError, "sha256 differs: expected"),
    "another commit": ({"commit": "f" * 40}, IntegrityError, "asked for commit .*, the Hub answered fff"),
    "server errors without end": ({"status": [500] * 99}, NetworkError, "the Hub was not reached .*; try again later"),
    "too many requests": ({"status": [429] * 99}, NetworkError, "the Hub was not reached"),
    "a body that breaks off": ({"truncate": 99, "no_ranges": True}, NetworkError, "not reached .*; try again later"),
    "a redirect to another scheme": ({"redirect": "file:///etc/passwd"}, NetworkError, "refused: expected|not reached"),
    "a redirect without encryption": (
        {"redirect": "http://93.184.216.34/x"},
        NetworkError,
        "refused: expected an https",
    ),
    "a redirect into the network": (
        {"redirect": "https://10.0.0.1/x"},
        NetworkError,
        "10.0.0.1 is not a public address",
    ),
    "a redirect to nowhere": ({"redirect": "https://[::1"}, NetworkError, "not reached|an address that is none"),
    "a redirect to the cloud's metadata": ({"redirect": "https://169.254.169.254/x"}, NetworkError, "not a public"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_one_sentence_and_leaves_no_weights(row, load, tmp_path, monkeypatch, fault):
    faults, error, message = FAULTS[fault]
    HUB.faults |= copy.deepcopy(faults)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(error, match=message):
        load()
    assert cached(tmp_path) == []
    HUB.faults.clear()
    load()


def test_a_redirect_in_circles_ends(row, tmp_path):
    HUB.faults["redirect"] = f"{HUB.url}/{REPO}/resolve/main/{FILE}"
    row["hub"], row["files"][FILE]["urls"] = None, [HUB.faults["redirect"]]
    with pytest.raises(NetworkError, match="more than 5 redirects"):
        create_model(NAME)
    assert len(HUB.gets(FILE)) == 6 and cached(tmp_path) == []


@pytest.mark.parametrize(
    "faults", [{"status": [500]}, {"truncate": 2}, {"truncate": 1, "no_ranges": True}, {"etag": "../../../../evil"}]
)
def test_what_passes_or_does_not_matter_is_got_over(row, load, tmp_path, faults):
    before = sorted(p.name for p in tmp_path.parent.parent.iterdir())
    HUB.faults |= copy.deepcopy(faults)
    load()
    assert set(cached(tmp_path)) <= {FILE, manifest.HEADS}
    assert sorted(p.name for p in tmp_path.parent.parent.iterdir()) == before


def test_a_broken_download_goes_on_where_it_stopped(row):
    HUB.faults["truncate"] = 1
    create_model(NAME)
    assert [headers.get("range") for _, headers in HUB.gets(FILE)] == [None, f"bytes={_half(row)}-"]


def _half(row) -> int:
    return row["files"][FILE]["bytes"] // 2


def test_a_server_that_cannot_go_on_begins_again(row):
    HUB.faults |= {"truncate": 1, "no_resume": True}
    create_model(NAME)
    assert [headers.get("range") for _, headers in HUB.gets(FILE)] == [None, f"bytes={_half(row)}-", None]


def test_headers_without_end_end_at_the_deadline(row, load, monkeypatch):
    monkeypatch.setattr(download, "MIN_SECONDS", 0.3)
    monkeypatch.setattr(download, "MIN_RATE", 1e12)
    monkeypatch.setattr(download, "_GRACE", 0.2)
    HUB.faults["drip"] = True
    with pytest.raises(NetworkError, match="the server kept it waiting until the deadline; try again later"):
        load()
    HUB.faults["stop"] = True  # the abandoned connection: its lock is free again afterwards
    time.sleep(0.3)


def test_a_damaged_piece_of_an_earlier_download_is_not_the_end(row):
    target = hub._places(row, FILE, None)[-1][1]
    target.parent.mkdir(parents=True)
    piece = target.with_name(f".{FILE}.{row['files'][FILE]['sha256'][:12]}.part")
    for damaged in (b"x" * 100, b"x" * row["files"][FILE]["bytes"], b"x" * (row["files"][FILE]["bytes"] + 5)):
        target.unlink(missing_ok=True)
        piece.write_bytes(damaged)
        create_model(NAME)
        assert not piece.exists()


def test_a_body_longer_than_promised_is_not_read_to_its_end(row, tmp_path):
    files = HUB.repos[REPO]["commits"][-1][1]
    files[FILE] += b"x" * 10_000_000
    with pytest.raises(IntegrityError, match="sha256 differs"):
        hub.fetch(row, FILE)
    assert cached(tmp_path) == []


def test_a_slow_body_ends_at_the_deadline_and_is_gone_on_with(row, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MIN_SECONDS", 1.5)
    monkeypatch.setattr(download, "MIN_RATE", 1e12)
    HUB.faults["slow"] = 0.05
    with pytest.raises(
        NetworkError, match=r"too slow: \d+ of \d+ bytes came in time; try again, it goes on from there"
    ):
        create_model(NAME)
    assert cached(tmp_path) == []
    HUB.faults.clear()
    create_model(NAME)
    assert int(HUB.gets(FILE)[-1][1]["range"].split("=")[1].rstrip("-")) > 0


def test_gated_private_and_missing_repositories_say_what_to_do(row, load, weights, tmp_path):  # noqa: F811
    known = HUB.repos[REPO]
    for flags, message in (
        ({"gated": True}, "gated: accept its terms there, then `hf auth login` or"),
        ({"gated": False, "private": True}, "not found, or private: `hf auth login` or set HF_TOKEN"),
    ):
        known.update(flags)
        with pytest.raises(NetworkError, match=message):
            load()
    HUB.repos.clear()
    with pytest.raises(NetworkError, match="not found, or private"):
        load()
    HUB.add(REPO, {"README.md": b""})
    with pytest.raises(NetworkError, match=r"has no model.safetensors at commit|has no pretrain.safetensors at commit"):
        load()
    assert cached(tmp_path) == []


def test_a_private_repository_opens_with_a_token_that_no_other_host_sees(row, monkeypatch):
    from loopback_hub import LoopbackHub

    other = LoopbackHub()
    other.add(REPO, HUB.repos[REPO]["commits"][-1][1])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HUB.repos[REPO]["private"] = True
    HUB.faults["redirect"] = f"{other.url}/{REPO}/resolve/main/{FILE}"
    create_model(NAME)
    assert HUB.gets(FILE)[0][1]["authorization"] == f"Bearer {TOKEN}"
    assert [headers.get("authorization") for _, headers in other.gets(FILE)] == [None]
    other.close()


def test_a_mirror_helps_when_the_hub_has_nothing_but_not_when_it_lies(row, monkeypatch):
    HUB.add("org/mirror", {FILE: HUB.repos[REPO]["commits"][-1][1][FILE]})
    row["files"][FILE]["urls"] = [
        f"{HUB.url}/org/gone/resolve/main/{FILE}",
        f"{HUB.url}/org/mirror/resolve/main/{FILE}",
    ]
    HUB.faults["alter"] = True
    with pytest.raises(IntegrityError):
        create_model(NAME)
    HUB.faults.clear()
    HUB.repos.pop(REPO)
    create_model(NAME)
    assert HUB.gets()[-1][0] == f"/org/mirror/resolve/main/{FILE}"


def test_offline_without_a_cache_is_said_at_once(row, load, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set; fetch it once online"):
        load()
    assert HUB.log == []


def test_a_row_that_is_nowhere_says_so(row, load, monkeypatch):
    row["hub"] = None
    with pytest.raises(NetworkError, match="not on this machine and no Hub repository or URL of it is published yet"):
        load()


def test_a_file_that_the_hubs_client_cached_is_used_and_checked(row, load, tmp_path):
    pinned = row["hub"]["revision"]
    for file in (FILE, manifest.HEADS):
        path = Path(hf_hub_download(REPO, file, revision=pinned, cache_dir=constants.HF_HUB_CACHE))
    HUB.log.clear()
    load()
    assert HUB.log == []
    path = path.with_name(FILE)
    whole = path.read_bytes()
    blob = path.resolve()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="sha256 differs: .* removed from the cache: load again"):
        load()
    assert not path.exists() and not blob.exists()
    load()


def test_a_link_in_the_cache_that_points_elsewhere_costs_nobody_a_file(row, tmp_path):
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"somebody's own weights")
    path = Path(hf_hub_download(REPO, FILE, revision=row["hub"]["revision"], cache_dir=constants.HF_HUB_CACHE))
    path.unlink()
    path.symlink_to(precious)
    with pytest.raises(IntegrityError, match="sha256 differs"):
        create_model(NAME)
    assert precious.read_bytes() == b"somebody's own weights" and not path.is_symlink()


def test_a_file_changed_after_it_was_verified_is_verified_again(row, load):
    load()
    for file in row["files"]:
        path = hub._places(row, file, None)[-1][1]
        if path.exists():
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="sha256 differs"):
        load()


def test_no_single_changed_byte_of_a_cached_file_is_accepted(row):
    import random

    path, rng = hub.fetch(row, FILE), random.Random(0)
    whole = path.read_bytes()
    for _ in range(100):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        with pytest.raises(IntegrityError, match="sha256 differs"):
            hub.fetch(row, FILE)
        assert not path.exists()


def test_a_file_that_is_altered_while_it_is_hashed_is_not_taken_for_verified(row, monkeypatch):
    path = hub.fetch(row, FILE)
    hub._verified.clear()
    whole, real = path.read_bytes(), hub.sha256

    def altered_after(file):
        found = real(file)
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        return found

    monkeypatch.setattr(hub, "sha256", altered_after)
    hub.fetch(row, FILE)
    monkeypatch.setattr(hub, "sha256", real)
    with pytest.raises(IntegrityError, match="sha256 differs"):
        hub.fetch(row, FILE)


def test_a_disk_that_cannot_be_read_costs_no_file(row, load, monkeypatch):
    load()
    hub._verified.clear()
    real = open

    def broken(file, *rest, **more):
        if str(file).endswith(".safetensors"):
            raise OSError(5, "Input/output error")
        return real(file, *rest, **more)

    monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(DiskError, match=r"safetensors: cannot be read .Input/output error."):
        load()
    monkeypatch.undo()
    assert all(hub._places(row, file, None)[-1][1].name == file for file in row["files"])


def test_pretraining_starts_from_a_published_row_with_its_heads(row, weights):  # noqa: F811
    torch.manual_seed(7)
    settings = small("cgh")
    method = build_method("cgh", "test_resnet", {"input_size": (3, 64, 64)}, settings)
    assert "backbone, heads, teacher and queues" in start_from(method, NAME)
    trained = load_method(weights).state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in method.state_dict().items())


def test_a_cache_dir_of_ones_own_is_honoured(row, tmp_path):
    create_model(NAME, cache_dir=tmp_path / "mine")
    create_model(NAME, cache_dir=tmp_path / "mine", num_classes=3)
    assert len(HUB.gets(FILE)) == 1 and not (tmp_path / "cache").exists()
    assert list((tmp_path / "mine").rglob(FILE))


def test_a_cache_that_cannot_be_written_is_exit_5(row, load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    with pytest.raises(DiskError, match="cannot be written .*; set HF_HOME or cache_dir= to a folder you own"):
        load()


FETCH = """
import json, sys
from cgh_models import hub, manifest
from cgh_models.errors import ERRORS
row = json.load(open(sys.argv[1]))
try:
    print(hub.fetch(row, manifest.BACKBONE))
except ERRORS as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def process(row, tmp_path, **options):
    (tmp_path / "row.json").write_text(json.dumps(row))
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), **options.pop("env", {})}
    words = [sys.executable, "-c", FETCH, str(tmp_path / "row.json")]
    return subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_two_processes_at_once_download_once(row, tmp_path):
    HUB.faults["slow"] = 0.002
    both = [process(row, tmp_path) for _ in range(2)]
    paths = {p.communicate()[0].strip() for p in both}
    assert [p.returncode for p in both] == [0, 0] and len(paths) == 1 and len(HUB.gets(FILE)) == 1
    assert sha256(Path(paths.pop())) == row["files"][FILE]["sha256"]


def test_a_killed_download_leaves_nothing_bad_and_is_gone_on_with(row, tmp_path):
    HUB.faults["slow"] = 0.01
    first = process(row, tmp_path)
    while not list(tmp_path.rglob("*.part")) or next(tmp_path.rglob("*.part")).stat().st_size < 2:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert cached(tmp_path / "home") == []
    HUB.faults.clear()
    second = process(row, tmp_path)
    assert second.wait() == 0 and HUB.gets(FILE)[-1][1]["range"] != "bytes=0-"


def test_a_full_disk_is_one_sentence_and_leaves_no_piece(row, tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = process(row, tmp_path, preexec_fn=little_room)
    said = done.communicate()[1].splitlines()[-1]
    assert done.returncode == 1 and said.startswith("DiskError: ") and "no room for model.safetensors" in said
    assert f"({row['files'][FILE]['bytes']} bytes are needed)" in said
    assert not list(tmp_path.rglob("*.part")) and cached(tmp_path / "home") == []


@pytest.mark.parametrize(
    "env, message",
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub was not reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}, "the Hub was not reached"),
    ],
)
def test_the_environments_word_is_honoured(row, tmp_path, env, message):
    done = process(row, tmp_path, env=env)
    said = done.communicate(timeout=60)[1].splitlines()
    assert done.returncode == 1 and len(said) == 1 and said[0].startswith("NetworkError: ") and message in said[0]
    assert HUB.log == []


def test_waiting_for_another_process_is_said_and_ends(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    target = tmp_path / "a" / "model.safetensors"
    late = pytest.raises(NetworkError, match="another process did not finish downloading it; try again later")
    second = download.sole(target, time.monotonic() + 0.3, said.append)
    with download.sole(target, time.monotonic() + 5, said.append), late, second:
        raise AssertionError("two at once")
    assert said and "waiting for another process that downloads it" in said[0]
