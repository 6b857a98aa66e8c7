"""A weights folder to the Hub: verified first, one commit, read back, and only then pinned in a manifest."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

from . import manifest
from .errors import InputError, IntegrityError, NetworkError, printable
from .export import card_of, write_description
from .files import sha256, write_json
from .integrity import verify

_PICTURES = {".png", ".svg", ".jpg"}
_TRIES = 3


def publish(folder: Path, repo: str, *, private: bool, manifests: list[Path]) -> tuple[str, list[str]]:
    """Uploads a folder that `verify` accepts and pins what the Hub then has.

    Args:
        repo: ORG/NAME; made if it is not there.
        private: for a new repository.
        manifests: files whose row of this name is written, with repository and commit, once all else is done.

    Returns:
        the commit, 40 hex digits, and the names of files that are not published: neither weights nor their description
        nor pictures.

    Raises:
        InputError: not a weights folder, a name that cannot be a repository's, or no token.
        IntegrityError: `verify` refuses it, or the Hub gives back other bytes than it got.
        NetworkError: the Hub was not reached or refused; nothing is pinned then.
    """
    row: manifest.Row = manifest.read_row(folder) | {"hub": None}
    for path in manifests:
        manifest.read(path)
    verify(folder.resolve())
    if (folder / "README.md").exists() and (folder / "README.md").read_text("utf-8") != card_of(row):
        raise InputError(
            f"{printable(folder / 'README.md')}: differs from what {manifest.ROW_FILE} says; move your text to its "
            "`notes` and remove README.md, it is written anew"
        )
    write_description(folder, row)
    named = {*row["files"], "config.json", manifest.ROW_FILE, "README.md"}
    every = sorted(p for p in folder.iterdir() if p.is_file())
    going = [p for p in every if p.name in named or p.suffix in _PICTURES]
    with _one_sentence(repo), tempfile.TemporaryDirectory() as scratch:
        commit = _upload(going, repo, row, private)
        again = Path(huggingface_hub.snapshot_download(repo, revision=commit, cache_dir=scratch))
        for path in going:
            if not (again / path.name).is_file() or sha256(again / path.name) != sha256(path):
                raise IntegrityError(f"{repo}: {path.name} came back with another sha256; nothing was pinned")
    row["hub"] = {"repo_id": repo, "revision": commit}
    write_json(folder / manifest.ROW_FILE, row)
    for path in manifests:
        manifest.add(path, row)
    return commit, [p.name for p in every if p not in going]


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


def _upload(going: list[Path], repo: str, row: manifest.Row, private: bool) -> str:
    """One commit with these files and a tag on it; asks again when the Hub stumbles. Returns the commit."""
    api = HfApi()
    for attempt in range(_TRIES):
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            operations = [CommitOperationAdd(p.name, p) for p in going]
            text = f"{row['name']}, cgh-models {row['code']['version']}"
            commit = api.create_commit(repo, operations, commit_message=text).oid
            tag = f"weights-{row['files'][manifest.BACKBONE]['sha256'][:12]}"
            api.create_tag(repo, tag=tag, revision=commit, exist_ok=True)
            return commit
        except errors.HfHubHTTPError as error:
            if error.response.status_code < 500 or attempt + 1 == _TRIES:
                raise
            time.sleep(2.0**attempt / 2)
    raise AssertionError("unreachable")
