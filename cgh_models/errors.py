"""The errors that a caller can cause or has to handle, and how text is shown to people.

Each message says what was given, what was expected and what to type instead; an original exception
is its ``__cause__``. None derives from OSError or ValueError, which library code may swallow.
"""

import sys


class NotReproduced(Exception):  # noqa: N818 - a finding
    """A published number and its measurement are further apart than stated."""

    exit_code = 1


class InputError(Exception):
    """Something the user gave cannot be used."""

    exit_code = 2


class NetworkError(Exception):
    """Weights could not be fetched."""

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


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device, or the CPU, has no memory left."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def printable(text: object) -> str:
    """Escapes control characters, so that a file name cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(text: str) -> None:
    """Prints a line to stderr; stdout is for results."""
    print(text, file=sys.stderr)
