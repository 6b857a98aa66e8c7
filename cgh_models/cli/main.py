"""The command line: ``cgh COMMAND``, also ``python -m cgh_models COMMAND``."""

import contextlib
import os
import sys
import threading
from typing import Any

from tyro.conf import DisallowNone, HelptextFromCommentsOff, OmitArgPrefixes
from tyro.extras import SubcommandApp

from ..errors import (
    ERRORS,
    DiskError,
    InputError,
    Interrupted,
    Output,
    out_of_memory,
    printable,
    say,
)
from ..version import __version__
from .check import Check
from .dense import KnnDense, Segment
from .embed import Embed, Neighbours
from .evaluate import Finetune, Knn, Linear
from .flags import check_paths
from .parse_errors import explain, on_parse_error
from .pretrain import Backbones, Demo, Export, Pretrain, Resume
from .report import Compare, Report
from .weights import Autoload, Convert, Info, List, Publish, Reproduce, Verify

COMMANDS = {
    "pretrain": Pretrain,
    "resume": Resume,
    "evaluate knn": Knn,
    "evaluate linear": Linear,
    "evaluate finetune": Finetune,
    "evaluate segment": Segment,
    "evaluate knn-dense": KnnDense,
    "reproduce": Reproduce,
    "compare": Compare,
    "report": Report,
    "embed": Embed,
    "neighbours": Neighbours,
    "backbones": Backbones,
    "check": Check,
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
            raise InputError(f"{printable(' '.join(words))}: expected one of {', '.join(SHELLS)}")
        case _:
            command = parse(words)
            check_paths(type(command), vars(command))
            command.run()


def main() -> None:
    """Runs the command line of this process; an error is one line on stderr and an exit code.

    1: a number that differs, 2: input, 3: network, 4: integrity, 5: disk, 75: saved, 130: stopped,
    141: the reader of stdout went away, as `head` does.
    """
    _fill_closed_files()
    stdout = Output(sys.stdout, strict=True)
    stderr = Output(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115 - until the end
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = _run_to_exit_code(sys.argv[1:], stdout)
        stderr.flush()
    if stdout.error:  # Python would try again when it exits, and end with 120
        sys.stdout = None
    if stderr.error:
        sys.stderr = None
    if code == Interrupted.exit_code:
        _end_without_waiting(Interrupted.exit_code)
    if code is not None:
        raise SystemExit(code)


def _fill_closed_files() -> None:
    """Opens what was closed (`2>&-`): the next file, a checkpoint, would be stdout or stderr."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number


def _run_to_exit_code(words: list[str], stdout: Output) -> int | None:
    """The code to exit with; None at the end of a command that did what it should."""
    code: int | None = None
    try:
        _run(words)
    except (*ERRORS, OSError) as error:
        if os.environ.get("CGH_TRACEBACK"):
            raise
        if error is not stdout.error:
            code = _explain(error)
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("CGH_TRACEBACK") or not out_of_memory(error):
            raise
        reason = printable(str(error).partition("\n")[0])[:120] or "no memory left"
        code = _explain(InputError(f"{reason}: give a smaller --batch-size, or --device cpu"))
    except SystemExit as stop:  # after --help
        code = int(stop.code or 0)
    except KeyboardInterrupt:
        say("interrupted before there was anything to save")
        code = 130
    with contextlib.suppress(OSError):
        stdout.flush()
    if stdout.error and not code:
        if isinstance(stdout.error, BrokenPipeError):
            return 141  # 128 + SIGPIPE, as of other programs
        reason = f"stdout: not written ({stdout.error.strerror}); the result is lost"
        return _explain(DiskError(f"{reason}, redirect it to a file on a disk with room"))
    return code


def _explain(error: Exception) -> int:
    """Prints an error as one line. Returns its exit code."""
    label = "saved" if isinstance(error, Interrupted) else "error"
    text = " ".join(line.strip() for line in str(error).splitlines())
    if isinstance(error, OSError):  # one that nobody foresaw
        text = f"{error.filename or 'the system'}: {error.strerror or text}"
        text += "; CGH_TRACEBACK=1 shows where"
    if "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0":  # it speaks for all
        say(f"{label}: {text}")
    return getattr(error, "exit_code", DiskError.exit_code)


def _end_without_waiting(exit_code: int) -> None:
    """Ends the process if threads still decode images: Python would wait for slow reads.

    Or if it is one of several, of which the slower ones would be ended by what started them.
    """
    from ..data.memory import DECODERS
    from ..train.launch import is_launched

    if is_launched() or any(thread.name.startswith(DECODERS) for thread in threading.enumerate()):
        os._exit(exit_code)
