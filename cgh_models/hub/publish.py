"""Uploads a weights folder: verified, one commit, read back, and only then pinned in manifests."""

import contextlib
import copy
import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from ..errors import DiskError, InputError, IntegrityError, os_error_as, printable
from . import manifest
from .card import card_of
from .integrity import verify
from .row import HEADS_FILES, HubPin, Row
from .sources import plain_errors, retry_if_busy
from .weights_folder import write_description

_PICTURES = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".svg": b"<"}  # their first bytes
_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.A)


def publish(
    folder: Path, repo: str, *, private: bool, manifests: list[Path]
) -> tuple[str, list[str]]:
    """Uploads a folder that `verify` accepts and pins what the Hub then has.

    Args:
        repo: ORG/NAME; made if missing. It may only hold what an earlier publish put there.
        private: for a new repository.
        manifests: files whose row of this name gets repository and commit, once all else is done.

    Returns:
        the commit (40 hex digits), and the files that were left out: neither weights nor their
        description nor pictures.

    Raises:
        InputError: not a weights folder, or a repository that is not for this.
        IntegrityError: `verify` refuses the folder, or the Hub returns other bytes than it got.
        NetworkError: the Hub was not reached or refused; nothing is pinned then.
        DiskError: the folder or a manifest cannot be written; nothing is uploaded then.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(f"--repo {printable(repo)[:80]}: expected ORG/NAME")
    row = dataclasses.replace(manifest.read_row(folder), hub=None)
    rows = {path: _with_known_urls(row, path) for path in manifests}
    _check_writable(folder, manifests)
    verify(folder.resolve())
    content, left_out = _content(folder, row)
    source = f"{constants.ENDPOINT}/{repo}: nothing was pinned"
    size = sum(map(len, content.values()))
    scratch = tempfile.TemporaryDirectory()
    with scratch, plain_errors(source, Path(scratch.name), size, "TMPDIR"):
        if shutil.disk_usage(scratch.name).free < size:  # to read back what was uploaded
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit = retry_if_busy(lambda: _upload(content, repo, row, private))
        found = HfApi().snapshot_download(repo, revision=commit, cache_dir=scratch.name)
        for name, body in content.items():
            path = Path(found) / name
            if not path.is_file() or path.read_bytes() != body:
                reason = f"{name} came back with another sha256; nothing was pinned"
                raise IntegrityError(f"{repo}: {reason}")
    pin = HubPin(repo, commit)
    try:
        write_description(folder, dataclasses.replace(row, hub=pin))
        for path, known in rows.items():
            manifest.add(path, dataclasses.replace(known, hub=pin))
    except DiskError as error:
        raise DiskError(f"{error}; it is published as {repo} at {commit}") from error
    return commit, left_out


def _with_known_urls(row: Row, path: Path) -> Row:
    """The row with the URLs that a manifest has for the same bytes. Raises InputError."""
    known = next((known for known in manifest.read(path) if known.name == row.name), None)
    if known is None:
        return row
    if known.notes != row.notes:
        reason = f"its notes on {row.name} differ from the folder's; make them equal first"
        raise InputError(f"{printable(path)}: {reason}")
    row = copy.deepcopy(row)
    for name, entry in known.files.items():
        if name in row.files and row.files[name].sha256 == entry.sha256:
            row.files[name].urls = entry.urls
    return row


def _check_writable(folder: Path, manifests: list[Path]) -> None:
    what = ("cannot be written", "nothing was published")
    for path in manifests:
        with os_error_as(DiskError, path, *what):
            open(path, "rb+").close()
    for path in (folder, *(path.parent for path in manifests)):
        with os_error_as(DiskError, path, *what):
            tempfile.TemporaryFile(dir=path).close()


def _content(folder: Path, row: Row) -> tuple[dict[str, bytes], list[str]]:
    """The files to publish by name, and the names of all others."""
    card = card_of(folder, row)
    readme = folder / "README.md"
    if readme.exists() and readme.read_text("utf-8", errors="replace") != card:
        hint = "move your text to its `notes` and remove README.md, it is written anew"
        raise InputError(f"{printable(readme)}: differs from {manifest.ROW_FILE}; {hint}")
    content = {name: (folder / name).read_bytes() for name in (*row.files, "config.json")}
    content["README.md"] = card.encode()
    content[manifest.ROW_FILE] = (json.dumps(row.to_json(), indent=2) + "\n").encode()
    for path in folder.glob("[!.]*"):
        if path.suffix in _PICTURES and path.is_file() and not path.is_symlink():
            picture = path.read_bytes()
            if picture.startswith(_PICTURES[path.suffix]):
                content[path.name] = picture
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return content, sorted(set(names) - content.keys())


def _upload(content: dict[str, bytes], repo: str, row: Row, private: bool) -> str:
    """Makes one commit of these files alone, with a tag, and returns its id.

    A repository that it made and could not fill is removed again.
    """
    api = HfApi()
    is_new = not api.repo_exists(repo)
    api.create_repo(repo, private=private or None, exist_ok=True)
    try:
        commit = _commit(api, content, repo, row, private)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            names = {file.rfilename for file in api.model_info(repo).siblings or []}
            if is_new and names <= {".gitattributes"}:
                api.delete_repo(repo, missing_ok=True)
        raise
    api.create_tag(repo, tag=f"weights-{commit[:12]}", revision=commit, exist_ok=True)
    return commit


def _commit(api: HfApi, content: dict[str, bytes], repo: str, row: Row, private: bool) -> str:
    known = api.model_info(repo)
    if private and not known.private:
        hint = "make it private on its page, or leave --private out"
        raise InputError(f"{repo}: is public already; {hint}")
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for file in known.siblings or []:
        name = file.rfilename
        if name in content or name == ".gitattributes":
            continue
        if name not in HEADS_FILES and Path(name).suffix not in _PICTURES:
            reason = f"holds other files ({printable(name)}); give a repository of its own"
            raise InputError(f"{repo}: {reason}")
        operations.append(CommitOperationDelete(name))
    operations += [CommitOperationAdd(name, body) for name, body in content.items()]
    message = f"{row.name}, cgh-models {row.code.version}"
    # Refused by the Hub if somebody else has committed since the files were listed.
    return api.create_commit(repo, operations, commit_message=message, parent_commit=known.sha).oid
