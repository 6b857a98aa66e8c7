"""`make release` in a small checkout, against the loopback Hub, and the wheel that comes of it."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from conftest import HUB, new_environment
from loopback_hub import TOKEN, LoopbackHub

from cgh_models.errors import InputError, NetworkError
from cgh_models.hub import manifest
from cgh_models.hub.export import export
from cgh_models.hub.row import BACKBONE, HEADS
from cgh_models.version import __version__

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))
from benchmarks.zoo import release as steps_of_release  # noqa: E402

FIRST, SECOND = "test_resnet.first", "test_resnet.second"
COPIES = ("weights_manifest.json", "cgh_models/weights_manifest.json")
FOLDERS = (f"cgh_models/weights/{FIRST}/weights.json", f"weights/{SECOND}/weights.json")
LEFT_OUT = ("tests/", "weights/", "cgh_models/weights/", "docs/", "examples/", "benchmarks/cifar")
CHECKS_OF_THE_CHECKOUT = """
import os


def test_checks_get_no_token():
    assert "HF_TOKEN" not in os.environ
"""
ADD = """
from pathlib import Path
from benchmarks.zoo.measuring import add
add(Path("../first"), packaged=True, heads=True)
add(Path("../second"), packaged=False, heads=True)
"""
LOAD = f"""
import json, sys, timm, torch, cgh_models
assert cgh_models.__file__.startswith(sys.prefix), cgh_models.__file__
model = timm.create_model({SECOND!r}, pretrained=True).eval()
print(json.dumps(model(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))[0].tolist()))
"""


def call(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """Runs a command in a folder, with the programs of this environment but not this checkout."""
    env = {**os.environ, "BUILD_FLAGS": "--no-isolation", **variables}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def git(checkout: Path, *words: str) -> str:
    me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    done = call("git", *me, *words, cwd=checkout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def release(checkout: Path, org: str = "me", **variables: str) -> subprocess.CompletedProcess:
    words = ("make", "release", f"ORG={org}", "CHECKS=quick")
    return call(*words, cwd=checkout, **{"HF_TOKEN": TOKEN, **variables})


def steps(done: subprocess.CompletedProcess) -> list[str]:
    return [line[3:] for line in done.stdout.splitlines() if line.startswith("== ")]


def pins(checkout: Path) -> dict:
    """Pins by name, which have to be the same in both copies of the manifest."""
    assert (checkout / COPIES[0]).read_bytes() == (checkout / COPIES[1]).read_bytes()
    return {row.name: row.hub for row in manifest.read(checkout / COPIES[0])}


@pytest.fixture(scope="module")
def checkout(run, tmp_path_factory) -> Path:
    """A checkout of the code as it is here, with two rows: one packaged, one beside the package."""
    if "CGH_LONG" not in os.environ:
        pytest.skip(
            "builds five wheels: set CGH_LONG=1, as `make release` does before each release"
        )
    pytest.importorskip("setuptools")  # no test downloads it
    root = tmp_path_factory.mktemp("release")
    for name in (FIRST, SECOND):
        tag = name.partition(".")[2]
        export(run, root / tag, tag=tag, with_queue=True)
    checkout = root / "checkout"
    for name in git(REPO, "ls-files", "-co", "--exclude-standard").splitlines():
        if not name.startswith(LEFT_OUT) and (REPO / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, checkout / name)
    for name in COPIES:
        (checkout / name).write_text('{"schema": 1, "weights": []}')
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_checks.py").write_text(CHECKS_OF_THE_CHECKOUT)
    done = call(sys.executable, "-c", ADD, cwd=checkout)
    assert done.returncode == 0, done.stderr
    readme = (checkout / "README.md").read_text("utf-8")
    (checkout / "README.md").write_text(readme.replace(f"`{FIRST}`", "an old table"), "utf-8")
    settings = (checkout / "pyproject.toml").read_text()
    checked = 'include = ["cgh_models", "hubconf.py"]'
    assert checked in settings  # all of it takes as long as the rest of this file
    settings = settings.replace(checked, 'include = ["cgh_models/errors.py"]')
    (checkout / "pyproject.toml").write_text(settings)
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "All")
    return checkout


@dataclasses.dataclass
class Released:
    """A release that the Hub ended in the middle, and the same command again.

    In between, the pin of the first row is taken out of all but one file, as by a kill.
    """

    failed: subprocess.CompletedProcess
    pins_after_failure: dict
    repos_after_failure: list[str]
    again: subprocess.CompletedProcess
    repos: dict


@pytest.fixture(scope="module")
def released(checkout) -> Released:
    HUB.repos.clear()
    HUB.faults = {"commit_status": [None, 403]}
    failed = release(checkout)
    then = pins(checkout), list(HUB.repos)
    git(checkout, "checkout", "-q", COPIES[1], FOLDERS[0])
    return Released(failed, *then, release(checkout), dict(HUB.repos))


@pytest.fixture
def hub(released, loopback) -> LoopbackHub:
    """The Hub as it is after the release."""
    loopback.repos.update(copy.deepcopy(released.repos))
    return loopback


def test_a_failure_in_the_middle_is_one_sentence_and_keeps_what_was_pinned(released):
    done = released.failed
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and errors == [
        f"error: {HUB.url}/me/{SECOND}: nothing was pinned: "
        "HTTP 403; `hf auth login` with a token that may do this"
    ], done.stdout + done.stderr
    assert "Traceback" not in done.stderr and steps(done)[-1] == "weights"
    assert released.pins_after_failure[SECOND] is None
    assert released.pins_after_failure[FIRST].repo_id == f"me/{FIRST}"
    assert released.repos_after_failure == [f"me/{FIRST}"]


def test_the_same_command_publishes_the_rest_and_writes_tables_and_a_wheel_with_the_pins(
    checkout, released
):
    done = released.again
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(done) == [
        "checkout, version, token",
        "checks",
        "wheel and sdist",
        "weights",
        "tables",
        "wheel and sdist with the pins",
        "done, 2 rows pinned; what is left by hand: RELEASING.md",
    ]
    assert "passed for this commit before" in done.stdout
    assert pins(checkout)[FIRST] == released.pins_after_failure[FIRST]  # no second commit of it
    for name, pin in pins(checkout).items():
        commits = released.repos[f"me/{name}"]["commits"]
        assert len(commits) == 2 and commits[-1][0] == pin.revision
        assert commits[-1][1].keys() >= {BACKBONE, HEADS, "config.json", "README.md", "curve.png"}
    changed = {line[3:] for line in git(checkout, "status", "--porcelain").splitlines()}
    assert changed == {*COPIES, *FOLDERS, "README.md"}
    for path in FOLDERS:
        row = manifest.read_row((checkout / path).parent)
        assert row.hub == pins(checkout)[row.name]
    assert f"| `{FIRST}` |" in (checkout / "README.md").read_text("utf-8")
    (wheel,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(COPIES[1]) == (checkout / COPIES[1]).read_bytes()


def test_a_third_time_changes_no_file_and_makes_no_commit(checkout, hub):
    before = git(checkout, "diff")
    done = release(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(done)[-1].startswith("done, 0 rows pinned")
    assert git(checkout, "diff") == before
    assert {(method, path) for method, path, _ in hub.log} == {("GET", "/api/whoami-v2")}


def test_the_wheel_without_a_checkout_loads_from_the_hub_what_is_pinned(checkout, hub, tmp_path):
    python = install(checkout, tmp_path / "empty")
    variables = {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    hub.faults["alter"] = True
    done = call(python, "-c", LOAD, cwd=tmp_path, **variables)
    assert "sha256 differs" in done.stderr.splitlines()[-1], done.stderr
    storage = LoopbackHub()  # where the Hub's large files are, and for whom no token is
    storage.repos.update(hub.repos)
    hub.faults = {"redirect": f"{storage.url}/me/{SECOND}/resolve/main/{BACKBONE}"}
    done = call(python, "-c", LOAD, cwd=tmp_path, **variables)
    local = timm.create_model(f"local-dir:{checkout.parent / 'second'}", pretrained=True).eval()
    expected = local(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))[0].tolist()
    assert json.loads(done.stdout) == pytest.approx(expected, rel=1e-5), done.stderr
    assert [headers.get("authorization") for _, headers in storage.gets(BACKBONE)] == [None]
    storage.close()


def install(checkout: Path, empty: Path) -> Path:
    """Python of a new environment with the released wheel and the libraries of this one."""
    python = new_environment(empty)
    (wheel,) = (checkout / "dist").glob("*.whl")
    pip = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    done = call(sys.executable, *pip, wheel, cwd=checkout)
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture
def ready(tmp_path, loopback, monkeypatch):
    """`ready` on a checkout with a file that a release writes and one that it does not."""
    monkeypatch.setattr(steps_of_release, "REPO", tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "weights_manifest.json").write_text('{"hub": null, "seed": 0}\n')
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "All")
    return steps_of_release.ready


def test_what_is_not_committed_is_refused_but_for_pins_and_tables(ready, tmp_path):
    ready("me", "all")
    (tmp_path / "weights_manifest.json").write_text('{"hub": {"repo_id": "a/b"}, "seed": 0}\n')
    ready("me", "all")
    (tmp_path / "weights_manifest.json").write_text('{"hub": {"repo_id": "a/b"}, "seed": 1}\n')
    with pytest.raises(InputError, match=r"^weights_manifest.json: .*`git add weights_manifest"):
        ready("me", "all")
    git(tmp_path, "checkout", "-q", "weights_manifest.json")
    for change in ((tmp_path / "a.py").unlink, lambda: (tmp_path / "a.py").write_text("1")):
        change()
        with pytest.raises(InputError, match=r"^a.py: is not as it was committed"):
            ready("me", "all")
    git(tmp_path, "checkout", "-q", "a.py")
    (tmp_path / "new one.json").write_text("{}")
    with pytest.raises(InputError, match=r"^new one.json: .* `git add 'new one.json'`"):
        ready("me", "all")


def test_a_version_that_is_the_tag_of_another_commit_is_refused(ready, tmp_path):
    git(tmp_path, "tag", f"v{__version__}")
    ready("me", "all")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "Later")
    with pytest.raises(InputError, match=r"tag of another commit; commit another version in cgh_m"):
        ready("me", "all")


def test_a_missing_or_wrong_token_or_org_is_said_before_anything_begins(ready, monkeypatch):
    for org, checks in (("", "all"), ("me", "none")):
        with pytest.raises(InputError, match="expected `make release ORG=name`"):
            ready(org, checks)
    with pytest.raises(InputError, match="ORG=yours: the token is of me; give one of these"):
        ready("yours", "all")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(NetworkError, match="HTTP 401; `hf auth login`"):
        ready("me", "all")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token of the Hub is here; `hf auth login`"):
        ready("me", "all")


def test_no_step_begins_after_one_that_failed(ready, tmp_path, monkeypatch, capfd):
    (tmp_path / ".ci").mkdir()
    for name, code in (("quick", 1), ("wheel", 0)):
        (tmp_path / ".ci" / name).write_text(f"#!/bin/sh\necho {name} ran\nexit {code}\n")
        (tmp_path / ".ci" / name).chmod(0o755)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "Checks")
    monkeypatch.setattr(sys, "argv", ["release", "me", "quick"])
    for _ in range(2):  # a failure is not kept as passed
        with pytest.raises(SystemExit) as stop:
            steps_of_release.main()
        said = capfd.readouterr()
        assert stop.value.code == 2 and said.out.splitlines()[-2:] == ["== checks", "quick ran"]
        mend = "mend what it says, then `make release` again"
        assert said.err == f"error: `.ci/quick` failed; {mend}\n"


def test_a_folder_without_git_is_refused(ready, tmp_path):
    shutil.rmtree(tmp_path / ".git")
    with pytest.raises(InputError, match="no checkout of git"):
        ready("me", "all")
