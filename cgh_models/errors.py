"""The errors a caller can meet: one sentence each, with the exit code the command line gives them; how it is said.

Every message says what was given, what was expected and what to type instead; the original exception, where there is
one, is its ``__cause__``. None of them derives from OSError or ValueError: library code that swallows those would hide
a failed check.
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
    """A file could not be written."""

    exit_code = 5


class Interrupted(Exception):  # noqa: N818 - not a failure: the state is saved
    """A signal ended the run after its state was saved."""

    exit_code = 75


ERRORS = (NotReproduced, InputError, NetworkError, IntegrityError, DiskError, Interrupted)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, had no memory left."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def printable(text: object) -> str:
    """Text whose control characters are escaped, so that a file name cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(text: str) -> None:
    """To stderr: stdout is for results."""
    print(text, file=sys.stderr)
