"""The errors that a caller can cause or has to handle, and how text is shown to people.

Each message says what was given, what was expected and what to type instead; an original exception
is its ``__cause__``. None derives from OSError or ValueError, which library code may swallow.
"""

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class NotReproduced(Exception):  # noqa: N818 - a finding
    """A published number and its measurement are further apart than stated."""

    exit_code = 1


class InputError(Exception):
    """Something the user gave cannot be used."""

    exit_code = 2


class NetworkError(Exception):
    """Weights or images could not be fetched."""

    exit_code = 3


class IntegrityError(Exception):
    """A file is not what was written or published."""

    exit_code = 4


class DiskError(Exception):
    """A file could not be read or written."""

    exit_code = 5


class Interrupted(Exception):  # noqa: N818 - not a failure: the state is saved
    """A signal ended the run after its state was saved."""

    exit_code = 75


class BadImage(Exception):  # noqa: N818 - a finding: the caller takes another image or names this one
    """A file that is not a usable image; the text says why."""


ERRORS = (NotReproduced, InputError, NetworkError, IntegrityError, DiskError, Interrupted)


@contextlib.contextmanager
def os_error_as(kind: type[Exception], path: object, what: str, advice: str) -> Iterator[None]:
    """Turns the system's error into one of ours: "PATH: cannot be read (its reason); advice"."""
    try:
        yield
    except OSError as error:
        raise kind(f"{printable(path)}: {what} ({error.strerror}); {advice}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device, or the CPU, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    signs = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def printable(text: object) -> str:
    """Escapes control characters, so that a file name cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shell_command(*words: object) -> str:
    """A command in backticks that a shell takes as it stands, whatever its paths are called."""
    return f"`{' '.join(map(_shell_word, words))}`"


def _shell_word(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):  # else it would be a flag
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    escaped = ""
    for byte in os.fsencode(text):
        plain = 32 <= byte < 127 and chr(byte) not in "'\\"
        escaped += chr(byte) if plain else f"\\x{byte:02x}"
    return f"$'{escaped}'"


class Output:
    """stdout or stderr, which may be closed (None), full, without a reader, or a notebook's object.

    ``error`` says why text could not be written; a ``strict`` one raises it, too. Letters that its
    encoding lacks are escaped.
    """

    def __init__(self, stream: Any, strict: bool = False):
        self._stream = stream
        self._strict = strict
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> object:  # fileno, for the width of a terminal
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream.isatty()
        except (AttributeError, OSError, ValueError):
            return False

    def write(self, text: str) -> int:
        """Writes text, or keeps the error."""
        with self._errors_kept():
            shown = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Writes what a buffer holds, if there is one, or keeps the error."""
        if hasattr(self._stream, "flush"):
            with self._errors_kept():
                self._stream.flush()

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, OSError, ValueError) as error:  # of None, or closed by Python
            closed = OSError(errno.EBADF, "it is closed")
            self.error = error if isinstance(error, OSError) else closed
            if self._strict:
                raise self.error from error


def say(text: str) -> None:
    """Prints a line to stderr, if that is possible; stdout is for results."""
    Output(sys.stderr).write(f"{printable(text)}\n")
