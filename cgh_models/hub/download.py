"""One file from one URL: resumed, bounded in time and size, and on disk only once its sha256 is right.

The address rules hold at every hop, at most five of them: https alone, no private or link-local address, a token for
the first host only. They do not hold between loopback addresses, nor for the origin the user set (HF_ENDPOINT).
"""

import contextlib
import errno
import ipaddress
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import filelock
import requests
import urllib3
from tqdm import tqdm

from ..errors import DiskError, IntegrityError, NetworkError, printable
from ..files import sha256 as digest
from ..files import sync_folder

TIMEOUT = 10.0  # seconds a connection or a read may stall
MIN_SECONDS, MIN_RATE = 120.0, 100_000  # a download has 120 s, or its size at 100 kB/s if that is longer
_HOPS, _TRIES = 5, 5
_LATER = {408, 425, 429, 500, 502, 503, 504}  # answers worth another try
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_GRACE = 2.0  # seconds in which a download that is late can say so itself
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def deadline_for(size: int) -> float:
    """The moment, on time.monotonic's clock, by which a file of this size has to be here."""
    return time.monotonic() + max(MIN_SECONDS, size / MIN_RATE)


def in_time(work: Callable[[], None], deadline: float, what: str) -> None:
    """Runs ``work`` in a thread and gives it up at the deadline: a server that sends a byte now and then stops no one.

    Raises:
        NetworkError: it was given up; what it still writes is a piece that a later download goes on with.
    """
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()) + _GRACE)
    if not outcome:
        raise NetworkError(f"{what}: the server kept it waiting until the deadline; try again later")
    if outcome[0] is not None:
        raise outcome[0]


@contextlib.contextmanager
def sole(target: Path, deadline: float, say: Any) -> Iterator[None]:
    """Lets one process at a time write ``target``; says after ten seconds that it waits.

    Raises:
        NetworkError: the other one was not done by the deadline.
        DiskError: the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
        while not lock.is_locked:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NetworkError(f"{target}: another process did not finish downloading it; try again later")
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=min(TIMEOUT, left))
            if not lock.is_locked:
                say(f"{target}: waiting for another process that downloads it")
    except OSError as error:
        raise cannot_write(target, error, 0) from error
    try:
        yield
    finally:
        lock.release()


def cannot_write(target: Path, error: OSError, needed: int) -> DiskError:
    """The DiskError for an OSError met while a cache was written."""
    folder = printable(target.parent)
    if error.errno in _FULL:
        room = f"{needed} bytes are needed" if needed else "it is full"
        return DiskError(f"{folder}: no room for {target.name} ({room}); make room, or set HF_HOME to another disk")
    return DiskError(f"{folder}: cannot be written ({error.strerror}); set HF_HOME or cache_dir= to a folder you own")


def download(
    url: str, target: Path, size: int, sha256: str, deadline: float, *,
    headers: dict[str, str] | None = None, endpoint: str = "",
) -> None:  # fmt: skip
    """Brings ``url`` to ``target``; only bytes of the right size and sha256 ever get that name.

    What an interrupted download has already brought is kept beside it and gone on with.

    Args:
        size: bytes it has to have; not one more is read.
        deadline: on time.monotonic's clock.
        headers: sent to the first host only.
        endpoint: an address that the user configured; its host is trusted as it is.

    Raises:
        NetworkError: not reached, not allowed, or not in time.
        IntegrityError: the bytes are others.
        DiskError: no room.
    """
    part = target.with_name(f".{target.name}.{sha256[:12]}.part")
    try:
        resumed = part.exists()
        have = part.stat().st_size if resumed else 0
        if shutil.disk_usage(target.parent).free < size - have:
            raise cannot_write(target, OSError(errno.ENOSPC, "no room"), size)
        for again in (resumed, False):
            _fetch(url, part, size, deadline, headers or {}, endpoint)
            found = digest(part)
            if found == sha256:
                os.replace(part, target)
                return sync_folder(target.parent)
            part.unlink()
            if not again:  # what was kept of an earlier attempt may be to blame: once more, from nothing
                break
        raise IntegrityError(
            f"{printable(url)[:120]}: sha256 differs: expected {sha256}, found {found}; nothing was kept; try another "
            "network, or report it"
        )
    except OSError as error:
        if error.errno in _FULL:
            part.unlink(missing_ok=True)
        raise cannot_write(target, error, size) from error


def _fetch(url: str, part: Path, size: int, deadline: float, headers: dict[str, str], endpoint: str) -> None:
    """Fills ``part``, in as many tries as it takes and the deadline leaves."""
    for attempt in range(_TRIES):
        try:
            return _go_on(url, part, size, deadline, headers, endpoint)
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Later) as error:
            reason = printable(" ".join(str(error).split())[:100])
            left = deadline - time.monotonic()
            if attempt + 1 == _TRIES or left < 1:
                raise NetworkError(f"{printable(url)[:120]}: not reached ({reason}); try again later") from error
            time.sleep(min(2.0**attempt / 4, left))


class _Later(Exception):  # noqa: N818 - an answer, not yet a failure
    """An answer worth another try."""


def _go_on(url: str, part: Path, size: int, deadline: float, headers: dict[str, str], endpoint: str) -> None:
    """Appends to ``part`` what it lacks. Whatever comes, ``part`` never grows beyond ``size`` + 1 bytes."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    with contextlib.closing(_open(url, headers, endpoint, have, deadline)) as response:
        if response.status_code == 416:  # it cannot go on there: from the beginning, then
            part.unlink()
            raise _Later("the range is refused")
        start = have if response.headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0
        if response.status_code == 206 and not start:
            part.unlink(missing_ok=True)
            raise _Later("another range than was asked for")
        length = response.headers.get("Content-Length", "")
        promised = start + int(length) if re.fullmatch(r"\d{1,15}", length, re.A) else None
        with (
            open(part, "r+b" if part.exists() else "wb") as file,
            tqdm(desc=part.name[1:].rpartition(".")[0][:40], total=size, initial=start, unit="B", unit_scale=True,
                 disable=None, leave=False) as bar,
        ):  # fmt: skip
            file.truncate(start)
            file.seek(start)
            while start <= size:
                if time.monotonic() > deadline:
                    came = f"{start} of {size} bytes came in time"
                    raise NetworkError(f"{printable(url)[:120]}: too slow: {came}; try again, it goes on from there")
                block = response.raw.read1(min(2**20, size + 1 - start), decode_content=False)
                if not block:
                    break
                file.write(block)
                start += len(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if start < size and promised in (None, size):
        raise _Later(f"it ended after {start} of {size} bytes")


def _open(url: str, headers: dict[str, str], endpoint: str, have: int, deadline: float) -> requests.Response:
    """The answer to a GET after at most five redirects, each of them looked at before it is followed."""
    place = url
    common = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    for _ in range(_HOPS + 1):
        _check_address(place, url, endpoint)
        private = headers if _origin(place) == _origin(url) else {}
        wait = max(0.1, min(TIMEOUT, deadline - time.monotonic()))
        # An auth of our own making: requests would else take one from ~/.netrc.
        try:
            response = requests.get(
                place, headers=common | private, stream=True, allow_redirects=False, timeout=wait, auth=lambda r: r
            )
        except (UnicodeError, requests.exceptions.InvalidURL) as error:
            raise NetworkError(f"{printable(url)[:120]}: answered an address that is none; report it") from error
        if response.status_code in (200, 206) or (response.status_code == 416 and have):
            return response
        code, where = response.status_code, response.headers.get("Location", "")
        response.close()
        if code in _LATER:
            raise _Later(f"HTTP {code}")
        if code not in (301, 302, 303, 307, 308) or not where:
            raise NetworkError(f"{printable(url)}: HTTP {code}; check the address, or try again later")
        try:
            place = urljoin(place, where)
        except ValueError as error:
            raise NetworkError(f"{printable(url)[:120]}: answered an address that is none; report it") from error
    raise NetworkError(f"{printable(url)}: more than {_HOPS} redirects; expected the file, report it")


def _origin(url: str) -> tuple[Any, ...]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _check_address(url: str, first: str, endpoint: str) -> None:
    """Raises NetworkError unless this is an https URL of a public host, or one that the rules do not hold for."""
    try:
        scheme, host, port = _origin(url)
    except ValueError:
        scheme, host, port = "", None, None
    loopback = host in _LOOPBACK and scheme in ("http", "https") and urlsplit(first).hostname in _LOOPBACK
    if loopback or (endpoint and _origin(endpoint) == (scheme, host, port)):
        return
    if scheme != "https" or not host:
        raise NetworkError(f"{printable(url)[:160]}: refused: expected an https address; report it to who publishes it")
    try:
        found = {str(ipaddress.ip_address(host))}
    except ValueError:
        if requests.utils.get_environ_proxies(url):
            return  # names are resolved by the proxy
        found = _addresses(host, port or 443)
    if any(not ipaddress.ip_address(address.partition("%")[0]).is_global for address in found):
        raise NetworkError(f"{printable(url)[:160]}: refused: {printable(host)} is not a public address; report it")


def _addresses(host: str, port: int) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise _Later(f"{printable(host)}: no such host") from error
