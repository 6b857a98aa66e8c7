"""Readers of the user's: MODULE:FUNCTION, from the path of a file to an array."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadImage, InputError, printable


@functools.cache
def function_of(reader: str) -> Callable[[Path], Any]:
    """The user's function. Raises InputError if it cannot be imported."""
    module, _, name = reader.partition(":")
    if os.getcwd() not in sys.path:  # as `python FILE` has it, but not the command `cgh`
        sys.path.append(os.getcwd())
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # the user's module may raise anything
        what = f"cannot be imported ({type(error).__name__}: {printable(error)[:120]})"
        where = "the module has to lie in this folder or on PYTHONPATH"
        raise InputError(f"--reader {reader}: {what}; {where}") from error
    if not callable(function):
        raise InputError(f"--reader {reader}: is no function; give one that makes an array")
    return function


def read_by(reader: str, path: Any) -> np.ndarray:
    """What the user's function makes of a path, as an array. Raises BadImage."""
    function = function_of(reader)
    try:
        return np.asarray(function(path))
    except Exception as error:  # the user's function may raise anything
        reason = f"{type(error).__name__}: {printable(error)[:120]}"
        raise BadImage(f"--reader {reader}: {reason}") from error
