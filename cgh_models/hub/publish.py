"""A weights folder to the Hub: verified first, one commit, read back, and only then pinned in a manifest."""

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors

from ..errors import DiskError, InputError, IntegrityError, NetworkError, printable
from . import manifest
from .export import card_of, write_description
from .integrity import verify

_PICTURES = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".svg": b"<"}  # how each begins
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.A)
_TRIES = 3


def publish(folder: Path, repo: str, *, private: bool, manifests: list[Path]) -> tuple[str, list[str]]:
    """Uploads a folder that `verify` accepts and pins what the Hub then has.

    Args:
        repo: ORG/NAME; made if it is not there. It may hold nothing but what an earlier publish put there.
        private: for a new repository.
        manifests: files whose row of this name is written, with repository and commit, once all else is done.

    Returns:
        the commit, 40 hex digits, and the names of files that are not published: neither weights nor their description
        nor pictures.

    Raises:
        InputError: not a weights folder, a repository that is not for this, or no token.
        IntegrityError: `verify` refuses it, or the Hub gives back other bytes than it got.
        NetworkError: the Hub was not reached or refused; nothing is pinned then.
        DiskError: a manifest cannot be written.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(f"--repo {printable(repo)[:80]}: expected ORG/NAME")
    row: manifest.Row = manifest.read_row(folder) | {"hub": None}
    rows = {path: _merged(path, row, folder) for path in manifests}
    verify(folder.resolve())
    content, left = _content(folder, row)
    with _one_sentence(repo), tempfile.TemporaryDirectory() as scratch:
        commit = _upload(content, repo, row, private)
        again = Path(huggingface_hub.snapshot_download(repo, revision=commit, cache_dir=scratch))
        for name, given in content.items():
            if not (again / name).is_file() or (again / name).read_bytes() != given:
                raise IntegrityError(f"{repo}: {name} came back with another sha256; nothing was pinned")
    pin = {"hub": {"repo_id": repo, "revision": commit}}
    try:
        write_description(folder, row | pin)
        for path, merged in rows.items():
            manifest.add(path, merged | pin)
    except DiskError as error:
        raise DiskError(f"{error}; published it is, as {repo} at {commit}") from error
    return commit, left


def _merged(path: Path, row: manifest.Row, folder: Path) -> manifest.Row:
    """The row as a manifest will hold it: mirrors it knows of these very bytes stay. Raises InputError, DiskError."""
    old = next((known for known in manifest.read(path) if known["name"] == row["name"]), None)
    if not os.access(path, os.W_OK):
        raise DiskError(f"{printable(path)}: cannot be written; nothing was published")
    if old is None:
        return row
    if old["notes"] != row["notes"]:
        raise InputError(f"{printable(path)}: its notes on {row['name']} differ from {folder}'s; make them equal first")
    entries = {
        name: entry | {"urls": old["files"][name]["urls"]}
        if name in old["files"] and old["files"][name]["sha256"] == entry["sha256"]
        else entry
        for name, entry in row["files"].items()
    }
    return row | {"files": entries}


def _content(folder: Path, row: manifest.Row) -> tuple[dict[str, bytes], list[str]]:
    """The files to publish by name, and the names of those that stay. Raises InputError for a card changed by hand."""
    readme = folder / "README.md"
    if readme.exists() and readme.read_text("utf-8", errors="replace") != card_of(folder, row):
        raise InputError(
            f"{printable(readme)}: differs from what {manifest.ROW_FILE} says; move your text to its `notes` and "
            "remove README.md, it is written anew"
        )
    content = {name: (folder / name).read_bytes() for name in (*row["files"], "config.json")}
    content["README.md"] = card_of(folder, row).encode()
    content[manifest.ROW_FILE] = (json.dumps(row, indent=2) + "\n").encode()
    left = []
    for path in sorted(folder.iterdir()):
        if path.name in content or not path.is_file():
            continue
        begins = _PICTURES.get(path.suffix)
        own = not path.is_symlink() and not path.name.startswith(".")
        if begins is not None and own and (body := path.read_bytes()).startswith(begins):
            content[path.name] = body
        else:
            left.append(path.name)
    return content, left


@contextlib.contextmanager
def _one_sentence(repo: str) -> Iterator[None]:
    """What the Hub's client raises becomes an error of ours."""
    page = f"{constants.ENDPOINT}/{printable(repo)[:80]}"
    try:
        yield
    except (InputError, IntegrityError, NetworkError):
        raise
    except errors.HFValidationError as error:
        raise InputError(f"--repo {printable(repo)[:80]}: expected ORG/NAME ({printable(error)[:120]})") from error
    except errors.LocalTokenNotFoundError as error:
        raise InputError(f"{page}: no token of yours was found; `hf auth login` or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        hint = "`hf auth login` with a token that may write there" if code in (401, 403, 404) else "try again later"
        raise NetworkError(f"{page}: HTTP {code}; {hint}; nothing was pinned") from error
    except Exception as error:  # the HTTP libraries behind its client differ between versions
        reason = printable(" ".join(str(error).split())[:100])
        raise NetworkError(f"{page}: not reached ({reason}); try again later; nothing was pinned") from error


def _upload(content: dict[str, bytes], repo: str, row: manifest.Row, private: bool) -> str:
    """One commit with these files and a tag on it; asks again when the Hub stumbles. Returns the commit."""
    api = HfApi()
    for attempt in range(_TRIES):
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            known = api.model_info(repo)
            if private and not known.private:
                raise InputError(f"{repo}: is public already; make it private on its page, or leave --private out")
            there = {file.rfilename for file in known.siblings or []} - content.keys() - {".gitattributes"}
            stale = sorted(name for name in there if name == manifest.HEADS or Path(name).suffix in _PICTURES)
            if odd := sorted(there - set(stale)):
                raise InputError(f"{repo}: holds other files ({printable(odd[0])}); give a repository of its own")
            operations = [CommitOperationAdd(name, body) for name, body in content.items()]
            operations += [CommitOperationDelete(name) for name in stale]
            text = f"{row['name']}, cgh-models {row['code']['version']}"
            commit = api.create_commit(repo, operations, commit_message=text).oid
            api.create_tag(repo, tag=f"weights-{commit[:12]}", revision=commit, exist_ok=True)
            return commit
        except errors.HfHubHTTPError as error:
            if error.response.status_code < 500 or attempt + 1 == _TRIES:
                raise
            time.sleep(2.0**attempt / 2)
    raise AssertionError("unreachable")
