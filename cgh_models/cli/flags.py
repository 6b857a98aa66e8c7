"""The kinds of values that flags take, and flags that are made of the fields of a config."""

import dataclasses
import errno
import os
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

import docstring_parser
from tyro.conf import Positional, arg

from ..errors import InputError, printable

T = TypeVar("T")


def _default(value: str) -> str:
    """What the help says of a flag's default: nothing if it is empty."""
    return f"(default: {value})" if value.strip("'") else ""


Folder = Annotated[str, arg(metavar="FOLDER", help_behavior_hint=_default)]
File = Annotated[str, arg(metavar="FILE", help_behavior_hint=_default)]
Name = Annotated[str, arg(metavar="NAME", help_behavior_hint=_default)]
Text = Annotated[str, arg(metavar="TEXT", help_behavior_hint=_default)]
RunFolder = Annotated[Positional[str], arg(metavar="RUN")]
Weights = Annotated[Positional[str], arg(metavar="WEIGHTS")]
Pattern = Annotated[Positional[str], arg(metavar="PATTERN", help_behavior_hint=_default)]
Recipe = Literal["imagenet", "cifar", "tiny"]
OfRun = Literal["imagenet", "cifar", "tiny", "cifar-fast"]
OfRecipe = Annotated[T | None, arg(help_behavior_hint="(default: the recipe's)")]
# Words in the help whose values may be paths.
_PATHS = {"FOLDER", "FILE", "RUN", "WEIGHTS", "[WEIGHTS ...]", "IMAGES", "A", "B"}
_POSITIONAL = Positional[None].__metadata__[0]  # pyright: ignore
METAVARS = {"device": "NAME", "eval_data": "FOLDER", "pixel_range": "RANGE", "reader": "NAME"}
METAVARS |= {"size_schedule": "SIZES"}


@dataclasses.dataclass
class Machine:
    """Where images are embedded, and how many at once."""

    batch_size: int = 256
    """Images that are embedded at once; changes speed and memory only."""
    workers: int = 2
    """Processes that read images."""
    device: Name = "auto"
    """cpu, cuda, cuda:1, ...; auto: a GPU if there is one."""


def flags_of(config: type, defaults: Mapping[str, object], left_out: Collection[str] = ()) -> type:
    """A TypedDict with the fields of a config; a flag that is not given is a key that is missing.

    The help is the fields' docstrings, and the default: the first config's of ``defaults``, then
    by name those of the others that differ; of an empty ``defaults``, the run's.
    """
    kinds = get_type_hints(config)
    flags: dict[str, object] = {}
    for field in docstring_parser.parse_from_object(config).params:
        name = field.arg_name
        if name not in left_out:
            text = " ".join((field.description or "").split())
            hint = f"(default: {_default_of(name, defaults)})"
            details = arg(help=text, help_behavior_hint=hint, metavar=METAVARS.get(name))
            flags[name] = Annotated[kinds[name], details]
    return TypedDict(config.__name__, flags, total=False)  # pyright: ignore


def check_paths(command: type, values: Mapping[str, object]) -> None:
    """Raises InputError for a path, among the values of a command's flags, that cannot exist."""
    for name, kind in get_type_hints(command, include_extras=True).items():
        value: Any = values.get(name, "")
        value = vars(value) if dataclasses.is_dataclass(value) else value
        if isinstance(value, dict):
            check_paths(kind, value)
        details = getattr(kind, "__metadata__", ())
        for metavar in {str(getattr(detail, "metavar", "")) for detail in details} & _PATHS:
            argument = metavar if _POSITIONAL in details else f"--{name.replace('_', '-')}"
            for path in (value,) if isinstance(value, str) else value:
                try:
                    os.lstat(path)
                except OSError as error:
                    if error.errno == errno.ENAMETOOLONG:
                        what = f"{argument} {printable(path[:60])}...: too long for a file system"
                        raise InputError(f"{what}; give a shorter path") from error
                except ValueError as error:  # half of a character, or a NUL
                    what = f"{argument} {printable(path[:60])}: has a character that no path has"
                    raise InputError(f"{what}; give another path") from error


def _default_of(field: str, configs: Mapping[str, object]) -> str:
    texts: list[str] = []
    for name, config in configs.items():
        value = getattr(config, field)
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
        if not texts:
            texts.append(text)
        elif text not in (texts[0], name):
            texts.append(f"{name} {text}")
    return "; ".join(texts) or "the run's"
