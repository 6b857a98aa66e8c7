"""A weights folder: made as a draft, described by a row, read file by file."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import backbone, files
from ..backbone import TimmModel
from ..errors import InputError, IntegrityError, printable, say
from ..hashing import sha256
from ..tensors import Tensors, refuse_mismatch
from . import manifest
from .card import card_of, in_words
from .row import BACKBONE, HEADS, STUDENT_HEADS, TEACHER_HEADS, FileEntry, Preprocessing, Row
from .timm_models import fingerprint, from_folder, timm_config

_DRAFT = ".cgh-draft"
_STUDENT = "student.backbone."  # keys of a method's state that go into the backbone's file


def is_weights(path: Path) -> bool:
    """Whether a folder holds weights that timm can load."""
    return (path / BACKBONE).is_file() and (path / "config.json").is_file()


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A draft in ``out``, a new or empty folder, that fills it unless an error ends the block.

    ``out`` stays the folder that it is, a mount point for example. Nothing takes it for weights
    before its config.json is there, which comes last.
    """
    out = out.resolve()
    files.make_folder(out, _DRAFT)
    draft = out / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    files.make_folder(draft)
    moved: list[Path] = []
    try:
        yield draft
        for path in sorted(draft.iterdir(), key=lambda path: path.name == "config.json"):
            moved.append(path.rename(out / path.name))
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_tag(tag: str) -> None:
    """Raises InputError for what cannot follow the dot in the weights' name."""
    if not re.fullmatch(r"[a-z0-9_]+", tag):
        expected = "expected lower-case letters, digits and _, e.g. cgh_mydata"
        raise InputError(f"--tag {printable(tag)[:60]!r}: {expected}")


@torch.no_grad()
def describe(folder: Path, model: TimmModel, tag: str, **fields: Any) -> Row:
    """Writes row, card and timm's config beside the tensor files of a folder.

    ``model`` is the headless backbone that they hold, ``fields`` are the row's on how it was made.
    """
    preprocessing = Preprocessing.from_timm(model.pretrained_cfg)
    blank = torch.zeros(1, *preprocessing.input_size)
    deepest_map = backbone.embed(model, blank, taps=1)[1][0]  # (1, C, h, w)
    entries = {}
    for path in sorted(folder.rglob("*.safetensors"), reverse=True):  # the backbone's first
        name = path.relative_to(folder).as_posix()
        entries[name] = FileEntry(path.stat().st_size, sha256(path))
    row = Row(
        name=f"{backbone.architecture(model)}.{tag}",
        architecture=backbone.architecture(model),
        model_args=backbone.model_args(model),
        parameters=sum(p.numel() for p in model.parameters()),
        num_features=model.num_features,
        pool_size=list(deepest_map.shape[-2:]),
        branch="student",
        files=entries,
        preprocessing=preprocessing,
        metrics={"knn": None, "linear": None},
        fingerprint=fingerprint(model, preprocessing.input_size),
        **fields,
    )
    write_description(folder, row)
    files.write_json(folder / "config.json", timm_config(row))
    return row


def write_description(folder: Path, row: Row) -> None:
    """Writes the row of a weights folder, checked, and the card that follows from it, or neither.

    Raises InputError if the schema refuses the row, or it holds what is no text.
    """
    try:
        card = card_of(folder, row).encode()
    except UnicodeEncodeError as error:
        reason = f"not written, {error.object[max(0, error.start - 20) : error.end]!r} is no text"
        raise InputError(f"{printable(folder)}: {reason}; give it in UTF-8") from error
    with files.atomic(folder / "README.md") as temporary:
        temporary.write_bytes(card)
        manifest.write_row(folder, row)


@torch.no_grad()
def check_backbone(folder: Path, model: TimmModel) -> None:
    """Raises IntegrityError unless plain timm gives the same embeddings from a folder."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=generator)
    loaded = from_folder(folder).eval()
    if not torch.equal(model(images), loaded(images)):
        raise IntegrityError(f"{folder}: timm reads other features than written; do not use it")


def split_state(method: nn.Module) -> tuple[Tensors, Tensors]:
    """A method's state: the backbone's under timm's keys; heads, teacher and queues."""
    heads = method.state_dict()
    inner = [key for key in heads if key.startswith(_STUDENT)]
    return {key.removeprefix(_STUDENT): heads.pop(key) for key in inner}, heads


def states_of_files(method: Any, heads: str, with_queue: bool) -> dict[str, Tensors]:
    """The tensors of each file to write, by its name."""
    inner, others = split_state(method)
    if heads == "none":
        return {BACKBONE: inner}
    queues = {key: value for key, value in others.items() if key.startswith("queue.")}
    if heads == "student":
        kept = {key: value for key, value in others.items() if key.startswith("student.")}
        return {BACKBONE: inner, STUDENT_HEADS: kept}
    if with_queue or not queues:
        return {BACKBONE: inner, HEADS: others}
    size = sum(value.nbytes for value in queues.values()) / 1e6
    say(f"the queues are left out, {size:.1f} MB in float32; --with-queue keeps them")
    kept = {key: value for key, value in others.items() if key not in queues}
    return {BACKBONE: inner, TEACHER_HEADS: kept}


def load_state(
    method: nn.Module, backbone_state: Tensors, heads: Tensors, source: object, heads_file: str
) -> str:
    """Reverses `split_state`; returns what of it was loaded, in words. Raises as `load_strictly`.

    A part that files called like ``heads_file`` lack is that of a new run: the teacher is a copy of
    the student, the queues keep their random rows.
    """
    may_lack = {TEACHER_HEADS: ("queue",), STUDENT_HEADS: ("queue", "teacher")}.get(heads_file, ())
    state = heads | {_STUDENT + key: value for key, value in backbone_state.items()}
    parts = {key.partition(".")[0] for key in state}
    lacking = set()
    for key, value in method.state_dict().items():
        part, _, name = key.partition(".")
        if part in may_lack and part not in parts:
            lacking.add(part)
            of_student = f"student.{name}"
            copied = part == "teacher" and of_student in state
            state[key] = state[of_student] if copied else value
    load_strictly(method, state, source)
    if lacking == {"teacher", "queue"}:
        return "backbone, heads; the teacher begins as the student, the queues anew"
    if lacking == {"teacher"}:
        return "all but the teacher, which begins as the student, anew"
    if lacking:
        return "all but the queues, which begin anew"
    return f"backbone, {in_words(heads)}"


def renew_queue(source: Any, method: Any, taken: str) -> str:
    """Gives a loaded ``source`` the new queue of ``method`` if that has another length.

    ``taken`` says what of the source was loaded; returns what then is.
    """
    ours, theirs = (getattr(one, "queue", None) for one in (method, source))
    if ours is None or theirs is None or ours.rows.shape[1] == theirs.rows.shape[1]:
        return taken
    source.queue = ours
    return taken if "anew" in taken else "all but the queues, which begin anew"


def load_strictly(module: nn.Module, state: Tensors, source: object) -> None:
    """Loads a state dict. Raises IntegrityError, which names the source, for a mismatch."""
    refuse_mismatch(module.state_dict(), state, source, "give weights of the same architecture")
    module.load_state_dict(state)
