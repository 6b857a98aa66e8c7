"""The command line: ``cgh COMMAND``, also ``python -m cgh_models COMMAND``."""

import os
import sys
import threading
from typing import Any

from tyro.conf import DisallowNone, HelptextFromCommentsOff, OmitArgPrefixes
from tyro.extras import SubcommandApp

from ..errors import ERRORS, InputError, Interrupted, printable
from ..version import __version__
from .evaluate import Finetune, Knn, Linear, Reproduce
from .parse_errors import explain, on_parse_error
from .pretrain import Backbones, Demo, Export, Pretrain, Resume
from .weights import Autoload, Convert, Info, List, Publish, Verify

COMMANDS = {
    "pretrain": Pretrain,
    "resume": Resume,
    "evaluate knn": Knn,
    "evaluate linear": Linear,
    "evaluate finetune": Finetune,
    "reproduce": Reproduce,
    "backbones": Backbones,
    "export": Export,
    "demo": Demo,
    "list": List,
    "info": Info,
    "verify": Verify,
    "convert": Convert,
    "publish": Publish,
    "autoload": Autoload,
}
SHELLS = ("bash", "zsh", "fish")
ABOUT = f"""Self-supervised pretraining for timm backbones, version {__version__}.
`cgh help COMMAND`                      explains a command and its flags
`cgh --version`                         prints the version
`cgh --print-completion {"|".join(SHELLS)}`  prints a completion script for a shell"""


def parse(words: list[str]) -> Any:
    """The command that the words name, an object of its class. Raises InputError."""
    app = SubcommandApp()
    evaluate = SubcommandApp()
    for name, command in COMMANDS.items():
        if name == "evaluate knn":
            app.command(evaluate, name="evaluate", help="Measures weights on labelled images.")
        parent = evaluate if name.startswith("evaluate ") else app
        parent.command(command, name=name.removeprefix("evaluate "))
    with on_parse_error(lambda event: explain(event, words, COMMANDS)):
        markers = (OmitArgPrefixes, DisallowNone, HelptextFromCommentsOff)
        return app.cli(prog="cgh", description=ABOUT, args=words, config=markers)


def _run(words: list[str]) -> None:
    match words:
        case ["help", *command]:
            parse([*command, "--help"])
        case [] | ["evaluate"]:
            parse([*words, "--help"])
        case ["-V" | "--version"]:
            print(__version__)
        case ["--print-completion", shell] if shell in SHELLS:
            parse(["--tyro-write-completion", shell, "-"])
        case ["--print-completion", *_]:
            given = printable(" ".join(words))
            raise InputError(f"{given}: expected one of {', '.join(SHELLS)}")
        case _:
            parse(words).run()


def main() -> None:
    """Runs the command line of this process; an error is one line on stderr and an exit code.

    1: a number that differs, 2: input, 3: network, 4: integrity, 5: disk, 75: saved, 130: stopped.
    """
    try:
        try:
            _run(sys.argv[1:])
        finally:
            sys.stdout.flush()  # raises BrokenPipeError here, and not when Python exits
    except ERRORS as error:
        if os.environ.get("CGH_TRACEBACK"):
            raise
        label = "saved" if isinstance(error, Interrupted) else "error"
        print(f"{label}: {' '.join(str(error).split())}", file=sys.stderr)
        if isinstance(error, Interrupted):
            _end_without_waiting(error.exit_code)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:  # `cgh list | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("interrupted before there was anything to save", file=sys.stderr)
        raise SystemExit(130) from None


def _end_without_waiting(exit_code: int) -> None:
    """Ends the process if threads still decode images: Python would wait for slow reads."""
    from ..data.memory import DECODERS

    if any(thread.name.startswith(DECODERS) for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(exit_code)
