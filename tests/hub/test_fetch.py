"""From a row to verified bytes: the right ones or an error of one sentence."""

import contextlib
import copy
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import timm
import torch
from conftest import HUB
from huggingface_hub import constants
from loopback_hub import TOKEN, LoopbackHub
from small_runs import small

from cgh_models import create_model, load_method
from cgh_models.cli.main import main
from cgh_models.errors import DiskError, InputError, IntegrityError, NetworkError
from cgh_models.hashing import sha256
from cgh_models.hub import fetch as hub
from cgh_models.hub import manifest, sources, tags
from cgh_models.hub.registry import start_from
from cgh_models.hub.row import BACKBONE, HubPin, Row
from cgh_models.methods import build_method

REPO, NAME, FILE = "org/test_resnet.cgh", "test_resnet.cgh", BACKBONE


@pytest.fixture
def row(loopback, weights, monkeypatch):
    """A row that is only on the Hub, known to this package and to timm for the length of a test."""
    files = [path for path in weights.rglob("*") if path.is_file()]
    content = {path.relative_to(weights).as_posix(): path.read_bytes() for path in files}
    row = manifest.read_row(weights)
    row.hub = HubPin(REPO, HUB.add(REPO, content))
    monkeypatch.setattr(manifest, "rows", lambda: {NAME: row})
    monkeypatch.setattr(hub, "_verified", {})
    default = timm.models._registry._model_default_cfgs["test_resnet"]
    tags.register()
    yield row
    default.tags.remove("cgh")
    del default.cfgs["cgh"], timm.models._registry._model_pretrained_cfgs[NAME]
    timm.models._registry._model_has_pretrained.discard(NAME)
    timm.models._registry._model_with_tags["test_resnet"].remove(NAME)


def on_a_mirror(row: Row) -> Row:
    """The row with its files at plain URLs and no longer on the Hub."""
    for file, entry in row.files.items():
        entry.urls = [f"{HUB.url}/{REPO}/resolve/main/{file}"]
    row.hub = None
    return row


@pytest.fixture(params=["hub", "url"])
def source(request, row):
    """The same row, on the Hub or at URLs."""
    return row if request.param == "hub" else on_a_mirror(row)


def cached(tmp_path) -> list[str]:
    """Files that a test left on disk, but for the bookkeeping of huggingface_hub."""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kept = [p for p in files if p.suffix != ".lock" and p.name != "CACHEDIR.TAG"]
    return sorted(p.name for p in kept if p.parent.name != "refs")


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def verify_command(name, monkeypatch, capsys):
    """`cgh verify NAME`, its one line on stderr turned back into the error."""
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


def test_once_cached_nothing_is_asked_online_or_offline(source, load, monkeypatch):
    load()
    assert HUB.gets()
    HUB.log.clear()
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        hub._verified.clear()
        load()
    assert HUB.log == []


def test_the_loaded_model_is_the_exported_one_to_the_bit(row, weights):
    x = torch.randn(2, 3, 64, 64)
    expected = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()(x)
    for model in (create_model(NAME), create_model(NAME), timm.create_model(NAME, pretrained=True)):
        assert torch.equal(model.eval()(x), expected)
        assert {p.dtype for p in model.parameters()} == {torch.float32}


FAULTS = {
    "altered bytes of equal length": ({"alter": True}, IntegrityError, "sha256 differs: expected"),
    "a web page instead of weights": (
        {"html": True},
        (IntegrityError, NetworkError),
        "26 bytes, |connection failed",
    ),
    "server errors without end": ({"status": [500] * 99}, NetworkError, "HTTP 500; try again"),
    "too many requests": ({"status": [429] * 99}, NetworkError, "HTTP 429; try again later"),
    "not found": ({"status": [404] * 99}, NetworkError, "HTTP 404, no such file or commit"),
    "a body that breaks off": ({"truncate": True}, NetworkError, "connection failed .*; try again"),
    "a redirect to a file": (
        {"redirect": "file:///etc/passwd"},
        NetworkError,
        "connection failed|expected an https address",
    ),
    "a redirect to nowhere": ({"redirect": "https://[::1"}, NetworkError, "connection failed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_one_sentence_and_leaves_no_weights(
    source, load, tmp_path, monkeypatch, fault
):
    faults, error, message = FAULTS[fault]
    HUB.faults |= copy.deepcopy(faults)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(error, match=message):
        load()
    assert cached(tmp_path / "cache") == []
    HUB.faults.clear()
    load()


@pytest.mark.parametrize("answer", [{"commit": "f" * 40}, {"etag": "../../../../evil"}])
def test_a_hub_that_answers_another_commit_or_a_path_is_refused(row, load, tmp_path, answer):
    HUB.faults |= answer
    with pytest.raises(IntegrityError, match="the Hub answered .*(fff|evil)"):
        load()
    assert cached(tmp_path) == []
    HUB.faults.clear()
    load()


@pytest.mark.parametrize("etag", ["../../../../evil", "..", ".", "a/b", "a\\\\b", "a:b"])
@pytest.mark.parametrize("good_answers", [0, 1])
def test_an_etag_is_never_a_path_whichever_answer_has_it(row, load, tmp_path, etag, good_answers):
    """huggingface_hub asks a second time, and takes the name of a file from that answer."""
    HUB.faults["etags"] = [None] * good_answers + [etag] * 9
    with pytest.raises(IntegrityError, match="the Hub answered .*ETag"):
        load()
    assert cached(tmp_path) == [] and len(HUB.faults["etags"]) == 8
    HUB.faults.clear()
    load()


def test_a_busy_hub_is_asked_again(row, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    HUB.faults["status"] = [500, 429]
    create_model(NAME)


def test_gated_private_and_missing_repositories_say_what_to_do(row, load, tmp_path):
    known = HUB.repos[REPO]
    private = "not found, or private: `hf auth login` or set HF_TOKEN"
    for flags, message in (
        ({"gated": True}, "gated: accept its terms there, then `hf auth login` or set HF_TOKEN"),
        ({"gated": False, "private": True}, private),
    ):
        known.update(flags)
        with pytest.raises(NetworkError, match=message):
            load()
    HUB.repos.clear()
    with pytest.raises(NetworkError, match=private):
        load()
    HUB.add(REPO, {"README.md": b""})
    with pytest.raises(NetworkError, match=f"{HUB.url}/{REPO}: HTTP 404, no such file or commit"):
        load()
    assert cached(tmp_path / "cache") == []


def test_a_token_is_sent_to_the_hub_and_to_no_other_host(row, monkeypatch):
    other = LoopbackHub()
    other.add(REPO, HUB.repos[REPO]["commits"][-1][1])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    HUB.repos[REPO]["private"] = True
    HUB.faults["redirect"] = f"{other.url}/{REPO}/resolve/main/{FILE}"
    create_model(NAME)
    assert {headers["authorization"] for _, _, headers in HUB.log} == {f"Bearer {TOKEN}"}
    assert [headers.get("authorization") for _, headers in other.gets(FILE)] == [None]
    other.close()


def test_a_mirror_gets_neither_token_nor_password(row, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    requests.get(f"{HUB.url}/api/whoami-v2", timeout=9)
    assert HUB.gets()[0][1]["authorization"].startswith("Basic ")  # the netrc file is in force
    files = HUB.repos[REPO]["commits"][-1][1]
    on_a_mirror(row)
    other = LoopbackHub()  # at another address, for which netrc has a password too
    other.add(REPO, files)
    elsewhere = other.url.replace("127.0.0.1", "localhost")
    (tmp_path / "netrc").write_text("default login me password secret")
    HUB.faults["redirect"] = f"{elsewhere}/{REPO}/resolve/main/{FILE}"
    create_model(NAME)
    asked = [*HUB.gets(FILE), *other.gets(FILE)]
    assert {headers.get("authorization") for _, headers in asked} == {None} and other.gets(FILE)
    other.close()


def test_a_mirror_helps_when_the_hub_has_nothing_but_not_when_it_lies(row):
    HUB.add("org/mirror", HUB.repos[REPO]["commits"][-1][1])
    mirror = f"{HUB.url}/org/mirror/resolve/main/{FILE}"
    row.files[FILE].urls = [f"{HUB.url}/org/gone/resolve/main/{FILE}", mirror]
    HUB.faults["alter"] = True
    with pytest.raises(IntegrityError):
        create_model(NAME)
    assert not [path for path, _ in HUB.gets() if "mirror" in path]
    HUB.faults.clear()
    HUB.repos.pop(REPO)
    create_model(NAME)
    assert HUB.gets()[-1][0] == f"/org/mirror/resolve/main/{FILE}"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://example.com/x", "https://[::1"]
)
def test_an_address_without_encryption_or_of_a_file_is_refused(row, url):
    on_a_mirror(row).files[FILE].urls = [url]
    with pytest.raises(NetworkError, match="refused, expected an https address|Invalid IPv6"):
        create_model(NAME)
    assert HUB.log == []


def test_offline_without_a_cache_is_said_at_once(source, load, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set; fetch it once online"):
        load()
    assert HUB.log == []


def test_a_row_that_is_nowhere_says_so(row, load):
    row.hub = None
    with pytest.raises(NetworkError, match="no Hub repository or URL of it is published yet"):
        load()


def test_a_damaged_file_in_a_cache_is_refused_and_removed_so_that_the_next_load_is_right(
    source, load, tmp_path
):
    load()
    damaged = list((tmp_path / "cache").rglob("*.safetensors"))
    for path in damaged:
        damage(path)  # after it was verified in this process
    with pytest.raises(
        IntegrityError, match="sha256 differs: .* removed from the cache: load again"
    ):
        load()
    for _ in damaged[1:]:  # one file is refused at a time
        with contextlib.suppress(IntegrityError):
            load()
    load()


def test_a_file_that_an_earlier_version_cached_is_used(row):
    content = HUB.repos[REPO]["commits"][-1][1]
    folder = Path(constants.HF_ASSETS_CACHE) / "cgh-models" / NAME
    path = folder / row.files[FILE].sha256[:12] / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content[FILE])
    create_model(NAME)
    assert HUB.log == [] and hub.fetch(row, FILE) == path


@pytest.mark.parametrize(
    "place, hint",
    [("packaged", "install cgh-models again"), ("checkout", "check the file out again")],
)
def test_a_packaged_or_checked_out_file_comes_before_a_cached_one_and_is_never_removed(
    row, tmp_path, monkeypatch, place, hint
):
    cached_path = hub.fetch(row, FILE)
    path = tmp_path / place / NAME / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(cached_path.read_bytes())
    monkeypatch.setattr(hub, f"_{place.upper()}", tmp_path / place)
    assert hub.fetch(row, FILE) == path and hub.location(row, FILE) == place
    damage(path)
    with pytest.raises(IntegrityError, match=f"sha256 differs: .*; {hint}"):
        create_model(NAME)
    assert path.exists()


def test_a_link_in_the_cache_that_points_elsewhere_costs_nobody_a_file(row, tmp_path):
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"somebody's own weights")
    path = hub.fetch(row, FILE)
    path.unlink()
    path.symlink_to(precious)
    with pytest.raises(IntegrityError, match="22 bytes, "):
        create_model(NAME)
    assert precious.read_bytes() == b"somebody's own weights" and not path.is_symlink()


def test_a_link_to_a_file_below_the_cache_folder_costs_nobody_that_file(row, tmp_path):
    precious = tmp_path / "mine" / "model.safetensors"
    precious.parent.mkdir()
    precious.write_bytes(b"somebody's own weights")
    path = hub.fetch(row, FILE, tmp_path)
    path.unlink()
    path.symlink_to(precious)
    with pytest.raises(IntegrityError, match="22 bytes, "):
        hub.fetch(row, FILE, tmp_path)
    assert precious.read_bytes() == b"somebody's own weights" and not path.is_symlink()


def test_a_mirror_that_redirects_to_an_address_without_encryption_is_refused(row):
    HUB.faults["redirect"] = f"http://example.org/{FILE}"
    with pytest.raises(NetworkError, match="http://example.org/.* expected an https address"):
        hub.fetch(on_a_mirror(row), FILE)


def test_a_mirror_that_redirects_without_end_is_refused_before_its_last_address_is_used(row):
    HUB.faults["redirect"] = f"{HUB.url}/{REPO}/resolve/main/{FILE}"
    with pytest.raises(NetworkError, match="more than 10 redirects"):
        hub.fetch(on_a_mirror(row), FILE)


def test_no_more_bytes_of_a_mirror_are_taken_than_the_file_has():
    bar = sources.Bar(desc="model.safetensors", total=1000, disable=True)
    limited = sources._LimitedBar(bar, "https://a/b", 1000)
    limited.update(sources._CHUNK)  # pooch counts whole chunks
    limited.reset()
    limited.update(1000)
    limited.update(sources._CHUNK)
    with pytest.raises(IntegrityError, match="https://a/b: more than 1000 bytes came"):
        limited.update(sources._CHUNK)


def test_no_single_changed_byte_of_a_cached_file_is_accepted(row):
    import random

    path, rng = hub.fetch(on_a_mirror(row), FILE), random.Random(0)
    whole = bytearray(path.read_bytes())
    for _ in range(100):
        place, flip = rng.randrange(len(whole)), 1 << rng.randrange(8)
        whole[place] ^= flip
        path.write_bytes(whole)
        whole[place] ^= flip
        with pytest.raises(IntegrityError, match="sha256 differs"):
            hub.fetch(row, FILE)
        assert not path.exists()


def test_a_file_that_is_altered_while_it_is_hashed_is_not_taken_for_verified(row, monkeypatch):
    path = hub.fetch(row, FILE)
    hub._verified.clear()

    def altered_after(file):
        found = sha256(file)
        damage(file)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hub, "sha256", altered_after)
        hub.fetch(row, FILE)
    with pytest.raises(IntegrityError, match="sha256 differs"):
        hub.fetch(row, FILE)
    assert not path.exists()


def test_a_disk_that_cannot_be_read_costs_no_file(row, load, monkeypatch, tmp_path):
    load()
    before = cached(tmp_path / "cache")
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
    assert cached(tmp_path / "cache") == before


def test_pretraining_starts_from_a_published_row_with_its_heads(row, weights):
    torch.manual_seed(7)
    settings = small("cgh")
    method = build_method("cgh", "test_resnet", {"input_size": (3, 64, 64)}, settings)
    assert "backbone, heads, teacher and queues" in start_from(method, NAME)
    trained = load_method(weights).state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in method.state_dict().items())


def test_a_cache_dir_of_ones_own_is_honoured(source, tmp_path):
    create_model(NAME, cache_dir=tmp_path / "mine")
    create_model(NAME, cache_dir=tmp_path / "mine", num_classes=3)
    assert len(HUB.gets(FILE)) == 1 and not (tmp_path / "cache").exists()
    assert list((tmp_path / "mine").rglob(FILE))


def test_a_cache_that_cannot_be_written_is_exit_5(source, load, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "file" / "cache"))
    with pytest.raises(DiskError, match="cannot be written .*; set HF_HOME or cache_dir= to your"):
        load()


FETCH = """
import json, sys
from cgh_models.hub import fetch
from cgh_models.hub.row import BACKBONE, Row
from cgh_models.errors import ERRORS
row = Row.from_json(json.load(open(sys.argv[1])))
try:
    print(fetch.fetch(row, BACKBONE))
except ERRORS as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def process(row, tmp_path, env=None, **options):
    (tmp_path / "row.json").write_text(json.dumps(row.to_json()))
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), **(env or {})}
    words = [sys.executable, "-c", FETCH, str(tmp_path / "row.json")]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=env, text=True, stdout=pipe, stderr=pipe, **options)


def test_two_processes_at_once_both_end_with_the_right_file(source, tmp_path):
    HUB.faults["slow"] = 0.002
    both = [process(source, tmp_path) for _ in range(2)]
    paths = {p.communicate()[0].strip() for p in both}
    assert [p.returncode for p in both] == [0, 0] and len(paths) == 1
    path = Path(paths.pop())
    assert sha256(path) == source.files[FILE].sha256
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()  # others may read it


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_is_one_sentence_and_leaves_no_piece(source, tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = process(source, tmp_path, preexec_fn=little_room)
    said = done.communicate()[1].splitlines()[-1]
    assert done.returncode == 1 and said.startswith("DiskError: ")
    assert f"no room, {source.files[FILE].bytes} bytes are needed; make room" in said
    assert cached(tmp_path / "home") == []


@pytest.mark.parametrize(
    "env",
    [
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_HUB_OFFLINE": "1"},
        {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""},
    ],
    ids=lambda env: next(iter(env)),
)
def test_a_network_that_is_not_there_is_one_line_at_once(source, tmp_path, env):
    if "HF_ENDPOINT" in env and not source.hub:
        source.files[FILE].urls = ["http://127.0.0.1:9/x"]
    done = process(source, tmp_path, env)
    said = done.communicate(timeout=60)[1].splitlines()
    assert done.returncode == 1 and len(said) == 1 and said[0].startswith("NetworkError: "), said
    assert ("HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in env else "connection failed") in said[0]
    assert HUB.log == []


def test_to_say_where_a_file_is_loads_neither_torch_nor_an_http_client(row, tmp_path):
    (tmp_path / "row.json").write_text(json.dumps(row.to_json()))
    code = """
import json, sys
from cgh_models.hub import fetch
from cgh_models.hub.row import Row
row = Row.from_json(json.load(open("row.json")))
print(fetch.location(row, "model.safetensors"))
print({"torch", "timm", "requests", "pooch", "httpx", "httpx2", "matplotlib"} & set(sys.modules))
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Hub", "set()"]
