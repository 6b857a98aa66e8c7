"""From a run to a weights folder: the bare backbone for timm, its heads beside it, a card of measured numbers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from . import __version__, checkpoint
from .backbone import architecture, embed, model_args
from .config import TrainConfig, from_dict
from .errors import InputError, IntegrityError
from .registry import is_run, load_method, load_run, preprocessing

_BACKBONE = "student.backbone."
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def export(run_dir: str | Path, out: str | Path, *, dtype: str = "float32", license: str = "") -> None:
    """Writes a weights folder and reads it back before it returns.

    ``model.safetensors`` holds the student's backbone under timm's own keys and ``config.json`` all that timm needs;
    ``pretrain.safetensors`` with ``pretrain.json`` the heads, teacher and queues; ``README.md`` is the card.

    Args:
        run_dir: a run folder.
        out: a new or empty folder.
        dtype: of the files; float16 halves them, rounded to the nearest.
        license: the licence you give the weights, for the card and config.json.

    Raises:
        InputError: not a run, or ``out`` is not empty.
        IntegrityError: what was written is not what is read back.
        DiskError: no room.
    """
    run_dir, out = Path(run_dir), Path(out)
    if not is_run(run_dir):
        raise InputError(f"{run_dir}: not a run folder; expected the --out of a `cgh pretrain`")
    checkpoint.make_folder(out)
    run, step = checkpoint.read_run(run_dir), checkpoint.newest(run_dir, lambda text: None)[0]
    method = load_run(run_dir).eval()
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir()
        _write(draft, method, run, run_dir, step, DTYPES[dtype], license)
        _check(method, draft, DTYPES[dtype])
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(out: Path, method: Any, run: dict, run_dir: Path, step: int, dtype: torch.dtype, license: str) -> None:
    train = from_dict(TrainConfig, run["train"])
    state = {key: _cast(value, dtype) for key, value in method.state_dict().items()}
    backbone = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
    checkpoint.write_tensors(out / "model.safetensors", backbone)
    checkpoint.write_tensors(
        out / "pretrain.safetensors", {k: v for k, v in state.items() if not k.startswith(_BACKBONE)}
    )
    checkpoint.write_json(out / "config.json", _timm_config(method, train, license))
    checkpoint.write_json(out / "pretrain.json", _pretrain_config(method, run, train, step))
    card = _card(method, run, run_dir, step, license)
    with checkpoint.atomic(out / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _timm_config(method: Any, train: TrainConfig, license: str) -> dict[str, Any]:
    """timm's config.json, every field of provenance and preprocessing ours."""
    model = method.student.backbone
    cfg = model.pretrained_cfg
    return {
        "architecture": architecture(model),
        "num_classes": 0,
        "num_features": model.num_features,
        "global_pool": getattr(getattr(model, "global_pool", None), "pool_type", None)
        or (model.global_pool if isinstance(getattr(model, "global_pool", None), str) else "avg"),
        "model_args": model_args(method.student.backbone),
        "pretrained_cfg": {
            "tag": method.name,
            "custom_load": False,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing(train).items() if v is not None},
            "fixed_input_size": bool(cfg.get("fixed_input_size")),
            "num_classes": 0,
            "pool_size": list(_last_map(model).shape[-2:]),
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
            "license": license or None,
            "origin_url": None,
            "paper_ids": [method.paper],
        },
    }


@torch.no_grad()
def _last_map(model: Any) -> Tensor:
    """The deepest feature map (1, C, h, w) at the model's input size."""
    return embed(model, torch.zeros(1, *model.pretrained_cfg["input_size"]), taps=1)[1][0]


def _pretrain_config(method: Any, run: dict[str, Any], train: TrainConfig, step: int) -> dict[str, Any]:
    return {
        "cgh_models": __version__,
        "method": method.name,
        "method_config": run["method_config"],
        "arch": run["arch"],
        "model_args": model_args(method.student.backbone),
        "preprocessing": {k: v for k, v in preprocessing(train).items() if v is not None},
        "epochs": step / max(1, run["data"]["count"] // train.batch_size),
        "steps": step,
    }


def _card(method: Any, run: dict[str, Any], run_dir: Path, step: int, license: str) -> str:
    """The README of a weights folder; its numbers come from the run's metrics.jsonl."""
    train, settings = run["train"], run["method_config"]
    arch, width = run["arch"], method.student.backbone.head_hidden_size
    epochs = step / max(1, run["data"]["count"] // train["batch_size"])
    measured = _measured(run_dir, step)
    rows = "".join(f"| {name} | {value:.4g} | {meaning} |\n" for name, value, meaning in measured)
    numbers = f"| measured | value | how |\n|---|---|---|\n{rows}" if rows else "Nothing was measured at this step.\n"
    licence = f"license: {license}\n" if license else ""
    own = "import cgh_models  # its architectures\n" if arch not in _stock() else ""
    return f"""---
library_name: timm
tags: [timm, image-feature-extraction, self-supervised]
{licence}---
# {arch}.{method.name}

`{arch}` pretrained without labels by {method.name} ({method.paper}) on {run["data"]["count"]} images at
{train["image_size"]} px for {epochs:.4g} of {train["epochs"]} planned epochs ({step} steps of {train["batch_size"]}),
with cgh-models {run["cgh_models"]}.

```python
import timm
{own}model = timm.create_model("local-dir:FOLDER", pretrained=True)  # (N, 3, H, W) -> (N, {width})
```

{numbers}
Method settings: `{json.dumps(settings)}`

Trainer settings: `{json.dumps({k: v for k, v in train.items() if k != "eval_data"})}`

`pretrain.safetensors` holds the heads, the teacher and the queues: `cgh pretrain --init FOLDER` goes on from here.
Licence of the weights: {license or "not stated by whoever trained them"}.
"""


def _stock() -> set[str]:
    from .architectures import default_cfgs

    return set(timm.list_models()) - default_cfgs.keys()


_MEANINGS = {
    "knn": "kNN top-1, %, on samples of val/ against train/ (k at most 20, T = 0.07)",
    "knn_train": "kNN top-1, %, of training images against others (k at most 20, T = 0.07)",
    "feature_std": "spread of the embeddings: 0 collapsed, 1 even",
    "effective_rank": "of the embeddings, at most their width",
}


def _measured(run_dir: Path, step: int) -> list[tuple[str, float, str]]:
    """Name, value and meaning of what the run measured at exactly this step."""
    found: dict[str, Any] = {}
    path = run_dir / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # the half line of a killed run
            continue
        if row.get("step") == step:
            found = row
    return [(name, found[name], meaning) for name, meaning in _MEANINGS.items() if name in found]


@torch.no_grad()
def _check(method: Any, out: Path, dtype: torch.dtype) -> None:
    """Reads the folder back, through timm and as a method, and compares to the bit."""
    backbone = method.student.backbone
    for tensor in method.state_dict().values():  # what the file can hold
        tensor.copy_(_cast(tensor, dtype))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *backbone.pretrained_cfg["input_size"], generator=generator)
    read = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    if not torch.equal(backbone(images), read(images)):
        raise IntegrityError(f"{out}: timm reads other features from it than were trained; do not use it")
    again, ours = load_method(out).state_dict(), method.state_dict()
    if any(not torch.equal(again[k], v) for k, v in ours.items()):
        raise IntegrityError(f"{out}: the heads read back differ from those trained; do not use it")
