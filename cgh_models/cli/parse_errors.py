"""Says in one sentence, as an InputError, what tyro cannot parse."""

import contextlib
import difflib
from typing import Any, get_type_hints

from ..config import CHANGES
from ..errors import InputError, printable

try:
    from tyro._errors import on_parse_error
except ImportError:  # it is no public name of tyro: without it, tyro prints a box and exits with 2
    on_parse_error = contextlib.nullcontext


def explain(event: object, words: list[str], commands: dict[str, type]) -> None:
    """Raises InputError with what an event of tyro's says of the words of a command line."""
    for name, command in commands.items():
        if words[: len(name.split())] == name.split():
            if reason := _reason(event, name, command):
                raise InputError(f"cgh {name}: {reason}; see `cgh {name} --help`")
            return
    raise InputError(_no_such_command(words, commands))


def _no_such_command(words: list[str], commands: dict[str, type]) -> str:
    given = " ".join(words[:2])
    last_words = {name.split()[-1]: name for name in commands}
    near = difflib.get_close_matches(given, commands, n=1)
    near = near or difflib.get_close_matches(words[0], last_words, n=1)
    hint = "`cgh --help` lists the commands"
    if near:
        hint = f"did you mean `cgh {last_words.get(near[0], near[0])}`?"
    return f"cgh {printable(given[:60])}: there is no such command; {hint}"


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
        case object(argument=object(lowered=lowered) as argument):
            expected = f"{_flag(argument)}: expected {lowered.metavar}"
            message = printable(getattr(event, "message", ""))
            return f"{expected}, {message}" if message else expected
    return ""


def _flag(argument: Any) -> str:
    return "" if argument.is_positional() else argument.display_name()


def _no_such_flag(flag: str, command: type) -> str:
    near = difflib.get_close_matches(flag.replace("_", "-"), _flags(command), n=1)
    hint = f", did you mean {near[0]}" if near and near[0] != flag else ""
    return f"there is no flag {printable(flag)}{hint}"


def _flags(command: type) -> list[str]:
    flags = []
    for name, kind in get_type_hints(command).items():
        is_group = hasattr(kind, "__annotations__")
        flags += _flags(kind) if is_group else ["--" + name.replace("_", "-")]
    return flags


def _refused_on_resume(flags: list[str]) -> str:
    """What flags of `cgh pretrain` that `cgh resume` lacks would change; "" for other flags."""
    changes = CHANGES | dict.fromkeys(["method", "arch", "recipe", "init", "set"], "the model")
    refused = []
    for flag in flags:
        name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        if name in changes:
            refused.append(f"{flag} changes {changes[name]}")
    reasons = f"a resumed run keeps its settings, but {', '.join(refused)}"
    new_run = "a new run can start from it: `cgh pretrain --init RUN ...`"
    return f"{reasons}; {new_run}" if refused else ""
