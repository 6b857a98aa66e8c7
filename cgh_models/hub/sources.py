"""Downloads a file from the Hub or from a URL; its bytes are still to be checked."""

import contextlib
import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, errors, file_download, hf_hub_download, hf_hub_url

from ..errors import ERRORS, DiskError, IntegrityError, NetworkError, Output, printable
from ..progress import Bar

T = TypeVar("T")
_CHUNK = 2**20  # bytes
_MOST_REDIRECTS = 10
_BUSY = {408, 425, 429, 500, 502, 503, 504}  # HTTP codes that may pass
_metadata = file_download.get_hf_file_metadata


def _safe_metadata(*args: Any, **kwargs: Any) -> Any:
    """huggingface_hub's answer on a file; refused if its ETag is no name for a file in a cache."""
    answer = _metadata(*args, **kwargs)
    if not re.fullmatch(r"[\w-][\w.-]*", answer.etag or "none", re.A):
        found = printable(f"{answer.commit_hash}, ETag {answer.etag}")[:120]
        raise IntegrityError(f"{constants.ENDPOINT}: the Hub answered {found}; check HF_ENDPOINT")
    return answer


# hf_hub_download asks once more and writes to the path that the second answer's ETag makes.
file_download.get_hf_file_metadata = _safe_metadata


def from_hub(repo: str, revision: str, file: str, size: int, cache: Path) -> Path:
    """Downloads a file at a commit into huggingface_hub's cache. Raises as `plain_errors`."""
    page = f"{constants.ENDPOINT}/{repo}"
    url = hf_hub_url(repo, file, revision=revision)
    with plain_errors(page, cache, size):
        # hf_hub_download asks this too, but tries for half a minute to reach a Hub that is not
        # there, and takes any commit.
        answer = retry_if_busy(lambda: _safe_metadata(url))
        if answer.commit_hash != revision:
            found = printable(answer.commit_hash)[:120]
            reason = f"asked for commit {revision}, the Hub answered {found}; check HF_ENDPOINT"
            raise IntegrityError(f"{page}: {reason}")
        if answer.size not in (None, size):
            raise IntegrityError(f"{page}: {file}: {answer.size} bytes, {size} expected; report it")
        return Path(hf_hub_download(repo, file, revision=revision, cache_dir=cache))


def from_url(url: str, target: Path, size: int) -> Path:
    """Downloads a URL to ``target``, without credentials. Raises as `plain_errors`."""
    import requests
    from pooch import HTTPDownloader

    options: dict[str, Any] = {
        "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
        "auth": lambda request: request,  # else requests takes a password from ~/.netrc
        "allow_redirects": False,  # and another one for the address of a redirect
    }
    source = printable(url)[:120]
    output = Output(sys.stderr)
    bar = Bar(total=size, unit="B", unit_scale=True, disable=None, leave=False, file=output)
    with plain_errors(source, target.parent, size), bar:
        for _ in range(_MOST_REDIRECTS):
            _check_address(url)
            response = requests.head(url, **options)
            if not response.is_redirect:
                break
            url = urljoin(url, response.headers["Location"])
        else:
            raise requests.TooManyRedirects(f"more than {_MOST_REDIRECTS} redirects")
        progress: Any = _LimitedBar(bar, source, size)
        download = HTTPDownloader(progressbar=progress, chunk_size=_CHUNK, **options)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not pooch.retrieve, which leaves a file that only its owner can read.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
            temporary = Path(scratch) / target.name
            download(url, str(temporary), None)
            os.replace(temporary, target)
    return target


class _LimitedBar:
    """A progress bar as pooch uses it, which ends a download of more bytes than are expected."""

    def __init__(self, bar: Bar, source: str, size: int):
        self.bar = bar
        self.source = source
        self.size = size
        self.total = size  # pooch puts in what the server promises
        self.reset()

    def update(self, count: int) -> None:
        self.rest -= count
        if self.rest < -_CHUNK:  # pooch counts whole chunks
            raise IntegrityError(f"{self.source}: more than {self.size} bytes came; report it")
        self.bar.update(count)

    def reset(self) -> None:
        self.rest = self.size
        self.bar.reset()

    def close(self) -> None:
        self.bar.close()


def _check_address(url: str) -> None:
    address = urlsplit(url)
    loopback = address.hostname in ("127.0.0.1", "localhost", "::1")
    if address.scheme != "https" and not (address.scheme == "http" and loopback):
        raise NetworkError(f"{printable(url)[:120]}: refused, expected an https address; report it")


def retry_if_busy(call: Callable[[], T]) -> T:
    """What ``call`` returns; it is called up to three times while the Hub is busy."""
    for pause in (0.5, 2.0):
        try:
            return call()
        except errors.HfHubHTTPError as error:
            if error.response.status_code not in _BUSY:
                raise
        time.sleep(pause)
    return call()


@contextlib.contextmanager
def plain_errors(
    source: str, folder: Path, size: int, setting: str = "HF_HOME or cache_dir="
) -> Iterator[None]:
    """Turns what a library raises into a NetworkError, or a DiskError for ``folder``.

    ``setting`` is what says where the folder is.
    """
    try:
        yield
    except ERRORS:
        raise
    except Exception as error:  # huggingface_hub's HTTP client differs between its versions
        code = error.errno if isinstance(error, OSError) else None
        if not code:
            raise NetworkError(f"{source}: {_reason(error)}") from error
        reason = f"cannot be written ({os.strerror(code)}); set {setting} to your own"
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = f"no room, {size} bytes are needed"
            reason = f"{needed}; make room, or set {setting} to another disk"
        raise DiskError(f"{printable(folder)}: {reason}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, errors.GatedRepoError):
        return "gated: accept its terms there, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "not found, or private: `hf auth login` or set HF_TOKEN"
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403):
        return f"HTTP {code}; `hf auth login` with a token that may do this"
    if code == 404:
        return "HTTP 404, no such file or commit; upgrade cgh-models"
    if code:
        return f"HTTP {code}; try again later"
    text = printable(" ".join(str(error).split())[:100])
    return f"connection failed ({text}); try again later"
