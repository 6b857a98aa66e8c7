"""From a run to a weights folder: the bare backbone for timm, its heads beside it, a card of measured numbers."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from .. import files
from ..backbone import architecture, embed, model_args
from ..config import TrainConfig, from_dict, to_dict
from ..errors import InputError, IntegrityError, say
from ..small_resnets import default_cfgs
from ..tensors import write_tensors
from ..train import checkpoint
from . import manifest
from .card import CURVE, card
from .integrity import fingerprint
from .registry import is_run, load_method, new_method_of_run, preprocessing
from .tags import timm_config
from .training_curve import curve, read_log

_BACKBONE = "student.backbone."
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def export(
    run_dir: str | Path, out: str | Path, *, dtype: str = "float32", tag: str = "", license: str = "",
    data_name: str = "", data_license: str = "",
) -> None:  # fmt: skip
    """Writes a weights folder and reads it back before it returns.

    ``model.safetensors`` holds the student's backbone under timm's own keys and ``config.json`` all that timm needs;
    ``pretrain.safetensors`` the heads, teacher and queues; ``weights.json`` is the folder's row (see `manifest`) and
    ``README.md`` its card, with a picture of its training in ``curve.png``.

    Args:
        run_dir: a run folder.
        out: a new or empty folder.
        dtype: of the files; float16 halves them, rounded to the nearest.
        tag: what follows the dot in the weights' name; left out, the method.
        license: the licence you give the weights, for the card and config.json.
        data_name: of the training images; left out, their folder's.
        data_license: the terms of the training images, in one sentence.

    Raises:
        InputError: not a run, ``out`` is not empty, or a tag that cannot be one.
        IntegrityError: what was written is not what is read back.
        DiskError: no room.
    """
    run_dir, out = Path(run_dir), Path(out).resolve()
    if not is_run(run_dir):
        raise InputError(f"{run_dir}: not a run folder; expected the --out of a `cgh pretrain`")
    if tag and not re.fullmatch(r"[a-z0-9_]+", tag):
        raise InputError(f"--tag {tag!r}: expected lower-case letters, digits and _, e.g. cgh_mydata")
    method, run = new_method_of_run(run_dir)
    step, file = checkpoint.newest(run_dir, say)
    checkpoint.load_method_state(file, method.eval())
    files.make_folder(out)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        files.make_folder(draft)
        told = {"tag": tag or method.name, "license": license or None}
        images = {"name": data_name or Path(run["data"]["path"]).name, "license_note": data_license or _NO_TERMS}
        _write(draft, method, DTYPES[dtype])
        row = _row(draft, method, run, step, told, images)
        if picture := curve(read_log(run_dir / "metrics.jsonl")):
            picture.save(draft / CURVE)
        write_description(draft, row)
        files.write_json(draft / "config.json", timm_config(row))
        _check(method, draft)
        out.rmdir()
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


_NO_TERMS = "The terms of these images were not stated by whoever trained on them."


def card_of(folder: Path, row: manifest.Row) -> str:
    """The README.md that follows from a row and, where there is one, the picture of its training."""
    return card(row, stock=row["architecture"] not in default_cfgs, curve=(folder / CURVE).is_file())


def write_description(folder: Path, row: manifest.Row) -> None:
    """Writes the row of a weights folder, checked, and the card that follows from it."""
    manifest.check({"schema": 1, "weights": [row]}, folder / manifest.ROW_FILE)
    files.write_json(folder / manifest.ROW_FILE, row)
    with files.atomic(folder / "README.md") as temporary:
        temporary.write_text(card_of(folder, row), encoding="utf-8")


def record(folder: Path, name: str, metric: dict[str, Any]) -> None:
    """Puts a measured number into the description and the card of a weights folder."""
    row = manifest.read_row(folder)
    row["metrics"][name] = metric | {"command": _without_folders(metric["command"])}
    write_description(folder, row)


def _write(out: Path, method: Any, dtype: torch.dtype) -> None:
    """The two tensor files; the method itself takes the values they hold."""
    for tensor in method.state_dict().values():
        tensor.copy_(_cast(tensor, dtype))
    state = {key: _cast(value, dtype) for key, value in method.state_dict().items()}
    backbone = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
    write_tensors(out / manifest.BACKBONE, backbone)
    write_tensors(out / manifest.HEADS, {k: v for k, v in state.items() if not k.startswith(_BACKBONE)})


def _row(
    out: Path, method: Any, run: dict[str, Any], step: int, told: dict[str, Any], images: dict[str, Any]
) -> manifest.Row:  # fmt: skip
    """The description of what was written to ``out``; its keys are those of weights_manifest.schema.json."""
    train, model = from_dict(TrainConfig, run["train"]), method.student.backbone
    shown = {k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing(train).items() if v is not None}
    return {
        "name": f"{run['arch']}.{told['tag']}",
        "architecture": architecture(model),
        "model_args": model_args(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_features": model.num_features,
        "pool_size": list(_last_map(model).shape[-2:]),
        "method": method.name,
        "method_config": run["method_config"],
        "train_config": to_dict(train) | {"eval_data": Path(train.eval_data).name},
        "branch": "student",
        "data": {"name": images["name"], "images": run["data"]["count"], "digest": run["data"]["digest"],
                 "license_note": images["license_note"]},
        "epochs": step / max(1, run["data"]["count"] // train.batch_size),
        "steps": step,
        "seed": train.seed,
        "code": {"version": run["cgh_models"], "commit": run["versions"].get("commit")},
        "command": _without_folders(run["command"]),
        "files": {f: {"bytes": (out / f).stat().st_size, "sha256": files.sha256(out / f), "urls": None}
                  for f in (manifest.BACKBONE, manifest.HEADS)},
        "hub": None,
        "preprocessing": shown,
        "license": told["license"],
        "paper_ids": [method.paper],
        "metrics": {"knn": None, "linear": None},
        "fingerprint": fingerprint(model, shown["input_size"]),
        "notes": [*([method.note] if hasattr(method, "note") else []), *_init(run)],
    }  # fmt: skip


def _init(run: dict[str, Any]) -> list[str]:
    """What it did not start from scratch from."""
    return [f"Its training {_without_folders(run['init'])}."] if "init" in run else []


def _without_folders(command: str) -> str:
    """The text without the folders of the machine it was typed on: of paths from the root, the last part stays."""
    return re.sub(r"(?<![^\s='\"])[/~][^\s'\":;]*/([^\s/'\":;]+)", r"\1", command)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@torch.no_grad()
def _last_map(model: Any) -> Tensor:
    """The deepest feature map (1, C, h, w) at the model's input size."""
    return embed(model, torch.zeros(1, *model.pretrained_cfg["input_size"]), taps=1)[1][0]


@torch.no_grad()
def _check(method: Any, out: Path) -> None:
    """Reads the folder back, through timm and as a method, and compares to the bit."""
    backbone = method.student.backbone
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *backbone.pretrained_cfg["input_size"], generator=generator)
    read = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    if not torch.equal(backbone(images), read(images)):
        raise IntegrityError(f"{out}: timm reads other features from it than were trained; do not use it")
    again, ours = load_method(out).state_dict(), method.state_dict()
    if any(not torch.equal(again[k], v) for k, v in ours.items()):
        raise IntegrityError(f"{out}: the heads read back differ from those trained; do not use it")
