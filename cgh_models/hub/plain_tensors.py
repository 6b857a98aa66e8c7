"""From a run to a folder with the backbone's tensors alone, for code that does not use timm."""

from pathlib import Path

import torch

from ..backbone import OWN
from ..config import TrainConfig
from ..dataclass_json import from_dict
from ..errors import InputError, IntegrityError, printable, say
from ..files import write_json
from ..methods import preprocessing
from ..tensors import read_tensors, rounded, write_tensors
from ..train import checkpoint
from . import weights_folder
from .row import BACKBONE

# Architectures that timm and torchvision call alike, with the same keys and the same outputs.
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
TORCHVISION += ("wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
_BACKBONE = "method.student.backbone."  # in a checkpoint


def export_tensors(
    run_dir: str | Path, out: str | Path, dtype: torch.dtype = torch.float32, format: str = ""
) -> None:
    """Writes ``model.safetensors``, the student's backbone under its module's own keys.

    ``training.json`` beside it says which images it expects and how it was trained. The network
    is not built, so that a user's own will do. Its last layer, a classifier, is in neither.

    Args:
        out: a new or empty folder.
        dtype: float16 halves the file; a tensor that it cannot hold stays float32.
        format: "torchvision" refuses an architecture that torchvision does not have.

    Raises:
        InputError: not a run, ``out`` is not empty, or torchvision has no such architecture.
        IntegrityError: what was written is not what is read back.
        DiskError: no room.
    """
    run = checkpoint.read_run(Path(run_dir))
    arch = run["arch"]
    if format not in ("", "torchvision", "state-dict"):
        expected = "expected torchvision or state-dict; `export` writes timm's"
        raise InputError(f"format={printable(repr(format))[:60]}: {expected}")
    if format == "torchvision" and arch not in TORCHVISION:
        what = f"--format torchvision: {printable(arch)} is not one of {', '.join(TORCHVISION)}"
        raise InputError(f"{what}; give --format state-dict, which writes the tensors as they are")
    train = from_dict(TrainConfig, run["train"])
    if format == "torchvision" and train.in_chans != 3:
        what = f"--format torchvision: its networks take 3 channels, this one {train.in_chans}"
        hint = "give --format state-dict, whose first layer needs a network built for them"
        raise InputError(f"{what}; {hint}")
    step, file = checkpoint.newest(Path(run_dir), say)
    prefix = f"{_BACKBONE}module." if arch.startswith(OWN) else _BACKBONE
    state = {
        key.removeprefix(prefix): rounded(value, dtype)
        for key, value in read_tensors(file, ours=True).items()
        if key.startswith(prefix)
    }
    about = {name: run[name] for name in ("arch", "method", "method_config", "cgh_models")}
    about |= {"preprocessing": preprocessing(train), "steps": step, "train": run["train"]}
    about["train"]["eval_data"] = Path(train.eval_data).name
    with weights_folder.new_folder(Path(out)) as draft:
        write_tensors(draft / BACKBONE, state)
        write_json(draft / "training.json", about)
        for key, value in read_tensors(draft / BACKBONE).items():
            if not torch.equal(value, state[key]):
                raise IntegrityError(f"{printable(out)}: {key} is read back as something else")
