"""What tyro says about words that it cannot parse, as one sentence."""

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any, get_type_hints

from ..config import TrainConfig
from ..errors import InputError, printable

try:
    from tyro._errors import on_parse_error
except ImportError:  # it is no public name of tyro: without it, tyro prints a box and exits with 2
    on_parse_error = contextlib.nullcontext


@contextlib.contextmanager
def as_input_errors(words: list[str], commands: dict[str, type]) -> Iterator[None]:
    """Raises InputError, with one sentence, where tyro would print a box and exit.

    Args:
        words: the command line.
        commands: the class of each command, by its one or two words.
    """
    name = next((name for name in commands if words[: len(name.split())] == name.split()), "")

    def explain(event: object) -> None:
        if not name:
            raise InputError(_no_such_command(words, list(commands)))
        reason = _reason(event, name, commands[name])
        if reason:
            raise InputError(f"cgh {name}: {reason}; see `cgh {name} --help`")

    with on_parse_error(explain):
        yield


def _no_such_command(words: list[str], commands: list[str]) -> str:
    near = difflib.get_close_matches(" ".join(words[:2]), commands, n=1)
    near = near or difflib.get_close_matches(words[0], commands, n=1)
    near = near or [name for name in commands if words[0] in name.split()]
    hint = f"did you mean `cgh {near[0]}`?" if near else "`cgh --help` lists the commands"
    return f"cgh {printable(' '.join(words[:2])[:60])}: there is no such command; {hint}"


def _reason(event: object, name: str, command: type) -> str:
    """What is wrong, by the fields that an event has; "" for one that only a later tyro has."""
    match event:
        case object(tokens=[_, *_] as tokens) | object(unrecognized_tokens=[_, *_] as tokens):
            flags = [token.partition("=")[0] for token in tokens if token.startswith("-")]
            if not flags:
                return f"{printable(tokens[0])!r} is one word too many"
            refused = _refused_on_resume(flags) if name == "resume" else ""
            return refused or _no_such_flag(flags[0], command)
        case object(missing_arguments=missing):
            flags = [f"{_flag(context.arg)} {context.arg.lowered.metavar}" for context in missing]
            return f"expected {' and '.join(flag.strip() for flag in flags)}"
        case object(argument=argument, value=value, choices=choices):
            given = f"{_flag(argument)} {printable(value)!r}".strip()
            return f"{given}: expected one of {', '.join(choices)}"
        case object(argument=object(lowered=lowered) as argument, message=message):
            return f"{_flag(argument)}: expected {lowered.metavar}, {printable(message)}"
        case object(argument=object(lowered=lowered) as argument):
            return f"{_flag(argument)}: expected {lowered.metavar}"
    return ""


def _flag(argument: Any) -> str:
    return "" if argument.is_positional() else argument.display_name()


def _no_such_flag(flag: str, command: type) -> str:
    near = difflib.get_close_matches(flag.replace("_", "-"), _flags(command), n=1)
    hint = f", did you mean {near[0]}" if near and near[0] != flag else ""
    return f"there is no flag {printable(flag)}{hint}"


def _flags(command: type) -> list[str]:
    """The flags of a command, those of its groups included."""
    flags = []
    for name, kind in get_type_hints(command).items():
        is_group = hasattr(kind, "__annotations__")
        flags += _flags(kind) if is_group else ["--" + name.replace("_", "-")]
    return flags


def _refused_on_resume(flags: list[str]) -> str:
    """Which flags of `cgh pretrain` a resumed run cannot take, with what they would change."""
    changes = dict.fromkeys(["method", "arch", "recipe", "init", "set"], "the model")
    for field in dataclasses.fields(TrainConfig):
        changes[field.name] = field.metadata["changes"]
    names = {flag: flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}
    refused = [f"{flag} changes {changes[name]}" for flag, name in names.items() if name in changes]
    reasons = f"a resumed run keeps its settings, but {', '.join(refused)}; "
    new_run = "a new run can start from it: `cgh pretrain --init RUN ...`"
    return reasons + new_run if refused else ""
