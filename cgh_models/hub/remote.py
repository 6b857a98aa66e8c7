"""Published files that are not on this machine: from the Hub, else from a mirror."""

import time
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers

from ..errors import IntegrityError, NetworkError, printable, say
from .download import TIMEOUT, deadline_for, download, in_time, sole
from .manifest import Row


def bring(row: Row, file: str, target: Path) -> None:
    """Downloads a row's file to ``target``, its bytes checked against the row.

    Raises:
        NetworkError: no source has it, of the first source; or there is none, or HF_HUB_OFFLINE is set.
        IntegrityError: a source has other bytes than the row says.
        DiskError: it cannot be written.
    """
    entry, name = row["files"][file], row["name"]
    if not row["hub"] and not entry["urls"]:
        raise NetworkError(
            f"{name}: {file} is not on this machine and no Hub repository or URL of it is published yet; "
            "`cgh list` says where weights are"
        )
    if constants.HF_HUB_OFFLINE:
        raise NetworkError(f"{name}: {file} is not in {target.parent} and HF_HUB_OFFLINE is set; fetch it once online")
    deadline = deadline_for(entry["bytes"])
    in_time(lambda: _try_all(row, file, target, deadline), deadline, f"{name}: {file}")


def _try_all(row: Row, file: str, target: Path, deadline: float) -> None:
    """The Hub, then the mirrors, while no other process does the same."""
    entry, failed = row["files"][file], []
    with sole(target, deadline, say):
        if target.is_file():  # the process that was waited for has brought it
            return
        for source in (["hub"] if row["hub"] else []) + (entry["urls"] or []):
            try:
                if source == "hub":
                    return _from_hub(row["hub"], file, target, entry, deadline)
                return download(source, target, entry["bytes"], entry["sha256"], deadline)
            except NetworkError as error:
                failed.append(error)
    more = f" ({len(failed) - 1} other sources failed too)" if len(failed) > 1 else ""
    raise NetworkError(f"{row['name']}: {failed[0]}{more}") from failed[0]


def _from_hub(hub: dict[str, str], file: str, target: Path, entry: dict[str, Any], deadline: float) -> None:
    """Asks the Hub's client for the file's metadata, checks what it answers, downloads."""
    repo, revision = hub["repo_id"], hub["revision"]
    url = huggingface_hub.hf_hub_url(repo, file, revision=revision)
    answer = _ask(repo, url, f"{file} at commit {revision}", deadline)
    if answer.commit_hash != revision:
        found = printable(answer.commit_hash)[:60]
        raise IntegrityError(f"{repo}: asked for commit {revision}, the Hub answered {found}; check HF_ENDPOINT")
    headers = {k: v for k, v in build_hf_headers().items() if k.lower() in ("authorization", "user-agent")}
    download(
        url, target, entry["bytes"], entry["sha256"], deadline, headers=headers, endpoint=constants.ENDPOINT
    )  # fmt: skip


def _ask(repo: str, url: str, what: str, deadline: float) -> Any:
    """The Hub's metadata of a file; a stumbling Hub is asked three times."""
    page = f"{constants.ENDPOINT}/{repo}"
    for pause in (0.5, 2.0, None):
        try:
            return huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
        except errors.GatedRepoError as error:
            raise NetworkError(
                f"{page}: gated: accept its terms there, then `hf auth login` or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise NetworkError(f"{page}: not found, or private: `hf auth login` or set HF_TOKEN") from error
        except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
            raise NetworkError(f"{page}: has no {what}; upgrade cgh-models") from error
        except Exception as error:  # the HTTP libraries behind its client differ between versions
            if pause is None or time.monotonic() + pause > deadline:
                reason = printable(" ".join(str(error).split())[:100])
                raise NetworkError(f"{page}: the Hub was not reached ({reason}); try again later") from error
            time.sleep(pause)
    raise AssertionError("unreachable")
