"""Trains, measures and adds the zoo's rows.

Needs torch, timm, torchvision, numpy, safetensors and pillow, but no network.

What there is and what is next; then the next row, which is the three steps below:

    python -m benchmarks.zoo
    python -m benchmarks.zoo next --minutes 60 --data ROOT --out OUT

`train` writes weights, log and picture into OUT/NAME; `measure` adds the numbers that are missing
there, with --finetune-epochs N also of a fine-tuning with 10 % of the labels; `finish` copies the
row into this checkout and its manifest:

    python -m benchmarks.zoo train NAME --minutes 60 --data ROOT --out OUT
    python -m benchmarks.zoo measure NAME --data ROOT --out OUT
    python -m benchmarks.zoo finish NAME --out OUT

A run that `cgh pretrain` made by hand, stopped and resumed any number of times, becomes the row in
one step, or its folder to be measured elsewhere:

    python -m benchmarks.zoo finish NAME --run RUN --data ROOT --out OUT
    python -m benchmarks.zoo export NAME --run RUN --out OUT

A weights folder that was made in another way:

    python -m benchmarks.zoo add WEIGHTS --packaged --heads

ROOT has the folders cifar10 and tiny-imagenet-200, train/ and val/ with class folders in each. The
three steps may run on different machines: copy OUT/NAME from one to the next. An interrupted step
continues when it is called again; a training run only on the machine it began on.
"""

import argparse
import sys
from pathlib import Path

from cgh_models.errors import ERRORS, InputError, Interrupted

from .measuring import Evaluations, add, finish, measure
from .rows import ROWS, Wanted
from .tables import known, queue
from .training import Place, export_run, train


def wanted(name: str = "") -> Wanted:
    """The row of this name, or the first that is missing. Raises InputError."""
    done = known()
    found = next(
        (row for row in ROWS if (row.name == name if name else row.name not in done)), None
    )
    if found is None and not name:
        raise InputError("next: every row of rows.py is there; `train NAME` repeats one")
    if found is None:
        raise InputError(
            f"{name}: no such row is wanted; rows.py has {', '.join(row.name for row in ROWS)}"
        )
    return found


def _goal(row: Wanted) -> int:
    """Epochs of the row that this one is compared with; 0 if there is none.

    Raises:
        InputError: that row is not there yet.
    """
    if not row.like:
        return 0
    if row.like not in (done := known()):
        raise InputError(
            f"{row.name}: has to have as many epochs as {row.like}, which is not there yet; "
            "train that"
        )
    return round(done[row.like].epochs or 0)


def main() -> None:
    """Dispatches; an error is one line."""
    args = _arguments()
    try:
        if not args.command:
            return print(queue())
        if args.command == "add":
            return add(args.folder, packaged=args.packaged, heads=args.heads)
        row = wanted(args.name)
        folder = args.out / row.name
        if getattr(args, "run", None):
            export_run(row, args.run, folder)
        if args.command == "export":
            return print(folder)
        if args.command == "finish" and not args.run:
            return finish(row, folder, args.commit)
        if not args.data:
            raise InputError("finish --run: measures the row; give --data, or use `export`")
        place = Place(args.data, args.out, args.device, args.workers)
        if args.command in ("next", "train"):
            print(train(row, place, args.minutes, args.epochs or _goal(row)))
        if args.command != "train":
            epochs = (args.linear_epochs, args.finetune_epochs)
            measure(row, place, Evaluations(args.linear, *epochs, args.fast))
        if args.command in ("next", "finish"):
            finish(row, folder, args.commit)
    except ERRORS as error:
        print(f"{'saved' if isinstance(error, Interrupted) else 'error'}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command")
    for name in ("next", "train", "measure", "export", "finish"):
        command = commands.add_parser(name)
        if name == "next":
            command.set_defaults(name="")
        else:
            command.add_argument("name")
        command.add_argument("--out", type=Path, required=True, help="folder for runs and weights")
        if name in ("next", "finish"):
            command.add_argument(
                "--commit",
                default="",
                help="of the code that trained, where git was not there to ask",
            )
        if name in ("export", "finish"):
            command.add_argument(
                "--run", type=Path, required=name == "export", help="run folder of the row"
            )
        if name == "export":
            continue
        command.add_argument(
            "--data",
            type=Path,
            required=name != "finish",
            help="folder of cifar10 and tiny-imagenet-200",
        )
        command.add_argument("--device", default="auto")
        command.add_argument(
            "--workers", type=int, default=2, help="processes that read images and make views"
        )
        if name in ("next", "train"):
            command.add_argument("--minutes", type=float, required=True, help="of training")
            command.add_argument("--epochs", type=int, default=0, help="exactly so many")
        if name != "train":
            command.add_argument(
                "--linear",
                choices=("sgd", "ridge", "none"),
                default="sgd",
                help="the papers' evaluation, a quick one on embeddings, or none for now",
            )
            command.add_argument(
                "--linear-epochs", type=int, default=0, help="of sgd; 0: the recipe's"
            )
            command.add_argument(
                "--finetune-epochs",
                type=int,
                default=0,
                help="of a fine-tuning with 10 %% of the labels; 0: there is none",
            )
            command.add_argument("--fast", action="store_true", help="as `cgh evaluate --fast`")
    command = commands.add_parser("add")
    command.add_argument("folder", type=Path)
    command.add_argument("--packaged", action="store_true", help="into the wheel")
    command.add_argument("--heads", action="store_true", help="with its heads, beside the wheel")
    return parser.parse_args()


if __name__ == "__main__":
    main()
