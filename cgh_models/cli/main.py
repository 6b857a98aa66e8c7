"""The command line: ``cgh COMMAND``, also ``python -m cgh_models COMMAND``."""

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import tyro

from ..errors import ERRORS, InputError, Interrupted, printable
from ..version import __version__
from . import evaluate as evaluate_commands
from . import pretrain as commands
from . import weights as weights_commands

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "pretrain": (commands.Pretrain, commands.pretrain),
    "resume": (commands.Resume, commands.resume),
    "evaluate knn": (evaluate_commands.Knn, evaluate_commands.evaluate_knn),
    "evaluate linear": (evaluate_commands.Linear, evaluate_commands.evaluate_linear),
    "evaluate finetune": (evaluate_commands.Finetune, evaluate_commands.evaluate_finetune),
    "reproduce": (evaluate_commands.Reproduce, evaluate_commands.reproduce),
    "backbones": (commands.Backbones, commands.backbones),
    "export": (commands.Export, commands.export),
    "demo": (commands.Demo, commands.demo),
    "list": (weights_commands.List, weights_commands.list_weights),
    "info": (weights_commands.Info, weights_commands.info),
    "verify": (weights_commands.Verify, weights_commands.verify),
    "convert": (weights_commands.Convert, weights_commands.convert),
    "publish": (weights_commands.Publish, weights_commands.publish),
    "autoload": (weights_commands.Autoload, weights_commands.autoload),
}
_DEFAULTS = {
    commands.Pretrain: commands.pretrain_defaults,
    commands.Resume: commands.resume_defaults,
    evaluate_commands.Linear: evaluate_commands.linear_defaults,
    evaluate_commands.Finetune: evaluate_commands.finetune_defaults,
}


def _parse(command: str, words: list[str]) -> Any:
    """The command's arguments; what tyro says about bad ones becomes one line."""
    kind = COMMANDS[command][0]
    default = _DEFAULTS.get(kind, lambda _: None)(words)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"cgh {command}", args=words, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = re.sub(r"[│╭╮╰╯─|+]+|-{3,}", "\n", said.getvalue()).splitlines()
        text = " ".join(line.strip() for line in lines if line.strip())
        text = re.split(r"Argument helptext:|For full helptext", text)[0].strip()
        raise InputError(f"cgh {command}: {text[:220].strip()}; see `cgh {command} --help`") from stop


def _help() -> str:
    lines = [f"  {name:<19}{(kind.__doc__ or '').strip()}" for name, (kind, _) in COMMANDS.items()]
    commands = "\n".join(lines)
    return (
        f"cgh {__version__}: self-supervised pretraining for timm backbones\n\n"
        f"usage: cgh COMMAND [FLAGS]      cgh COMMAND --help explains its flags\n\n{commands}\n"
        "\nWEIGHTS is a name of `cgh list`, a timm name, a weights folder, or a run folder."
    )


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        return print(_help())
    if words[0] in ("-V", "--version"):
        return print(__version__)
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        given = printable(" ".join(words[:2])[:60])
        near = difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1)
        near = near or difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean `cgh {near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise InputError(f"{given}: there is no such command; {hint}")
    COMMANDS[command][1](_parse(command, words[len(command.split()) :]))


def main() -> None:
    """Runs a command; an error is one line and an exit code.

    1 a number that differs, 2 input, 3 network, 4 integrity, 5 disk, 75 saved.
    """
    try:
        _dispatch(sys.argv[1:])
        sys.stdout.flush()
    except ERRORS as error:
        if os.environ.get("CGH_TRACEBACK"):
            raise
        label = "saved" if isinstance(error, Interrupted) else "error"
        print(f"{label}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:  # `cgh list | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("interrupted before there was anything to save", file=sys.stderr)
        raise SystemExit(130) from None
