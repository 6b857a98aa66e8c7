"""Damaged tars, manifests, weights folders, tensor files and run folders: only stated errors."""

import io
import json
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from children import Problem, stated, watched
from mutations import damaged, damaged_json
from odd_image_table import CASES

from cgh_models.data.image_set import load
from cgh_models.errors import ERRORS, BadImage
from cgh_models.hub import integrity, manifest, registry
from cgh_models.tensors import read_shapes, read_tensors
from cgh_models.train import checkpoint
from cgh_models.train.log_file import read_log

WHAT = "damaged tars, manifests, weights folders, safetensors files and run folders"
LAW = "used, or an error of errors.py; at most 1 s of CPU time and 1 GiB each"
QUICK, MANY = 300, 10_000  # of the five kinds in turn
OLD = Path(__file__).resolve().parents[1] / "old_folders"


def a_tar() -> bytes:
    """Eight images in two class folders, a link, and long names."""
    file = io.BytesIO()
    images = [case for case in CASES if case.pixels is not None][:8]
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, case in enumerate(images):
            assert isinstance(case.content, bytes)
            name = f"class{number % 2}/{'long' * 30 * (number // 7)}{number}.png"
            member = tarfile.TarInfo(name)
            member.size = len(case.content)
            tar.addfile(member, io.BytesIO(case.content))
        link = tarfile.TarInfo("class0/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
    return file.getvalue()


TAR = a_tar()


def try_tar(folder: Path, generator: random.Random) -> None:
    """A tar is opened, and its images are read."""
    path = folder / "images.tar"
    path.write_bytes(damaged(TAR, generator, TAR))
    images = load(path)
    for index in range(len(images)):
        try:
            images.image(index)
        except BadImage:
            continue


def try_manifest(folder: Path, generator: random.Random) -> None:
    """A manifest is read."""
    path = folder / "weights_manifest.json"
    path.write_bytes(damaged_json(json.loads(manifest.MANIFEST.read_text("utf-8")), generator))
    manifest.read(path)


def try_weights(folder: Path, generator: random.Random) -> None:
    """A weights folder is verified or loaded, with its row or without."""
    path = Path(shutil.copytree(OLD / "weights", folder / "weights"))
    kind = generator.choice((manifest.ROW_FILE, manifest.ROW_FILE, "config.json", "foreign"))
    if kind == "foreign":
        (path / manifest.ROW_FILE).unlink()
        kind = "config.json"
    _damage_json_of(path / kind, generator)
    use: Callable[[Path], object] = generator.choice(
        (integrity.verify, registry.create_model, registry.load_method)
    )
    use(path)


def try_tensors(folder: Path, generator: random.Random) -> None:
    """A safetensors file is read, and its shapes."""
    data = (OLD / "weights" / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    path = folder / "model.safetensors"
    if generator.random() < 0.5:
        header = damaged_json(json.loads(header), generator)
        path.write_bytes(len(header).to_bytes(8, "little") + header + rest)
    else:
        path.write_bytes(damaged(data[: 8 + size], generator, data) + rest)
    for read in (read_shapes, read_tensors):
        try:
            read(path)
        except ERRORS:
            continue


def try_run(folder: Path, generator: random.Random) -> None:
    """A run is loaded, and made ready to be resumed."""
    path = Path(shutil.copytree(OLD / "run", folder / "run"))
    kind = generator.choice(("config.json", "checkpoints.json", "metrics.jsonl", "checkpoint"))
    if kind == "checkpoint":
        file = next(path.glob("checkpoint-*"))
        data = file.read_bytes()
        file.write_bytes(damaged(data[:4096], generator, data) + data[4096:])
    elif kind == "metrics.jsonl":
        data = (path / kind).read_bytes()
        (path / kind).write_bytes(damaged(data, generator, data))
    else:
        _damage_json_of(path / kind, generator)
    if generator.random() < 0.3:
        (path / "checkpoints.json").unlink()
    registry.load_run(path)
    checkpoint.resume_point(path, lambda line: None)
    read_log(path / "metrics.jsonl")


def _damage_json_of(path: Path, generator: random.Random) -> None:
    path.write_bytes(damaged_json(json.loads(path.read_text("utf-8")), generator))


KINDS = {
    "tar": try_tar,
    "manifest": try_manifest,
    "weights folder": try_weights,
    "safetensors file": try_tensors,
    "run folder": try_run,
}


def tries(count: int) -> Iterator[tuple[str, Problem]]:
    """Damages one file after the other, of each kind in turn."""
    names = list(KINDS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    registry.load_run(OLD / "run")  # what is imported on first use is no cost of a try
    integrity.verify(OLD / "weights")
    with tempfile.TemporaryDirectory() as scratch:

        def try_one(number: int) -> Problem:
            folder = Path(scratch, str(number))
            folder.mkdir()
            try:
                kind = names[number % len(names)]
                KINDS[kind](folder, random.Random(f"{kind} {number}"))
            except Exception as error:
                return stated(error, ERRORS)
            finally:
                shutil.rmtree(folder)
            return ""

        for number, problem in watched(range(count), try_one):
            yield f"{names[number % len(names)]} {number}", problem
