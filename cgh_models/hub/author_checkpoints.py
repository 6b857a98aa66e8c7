"""Checkpoints that methods' authors wrote: where the backbone lies in them, under which terms; no code in them runs."""

import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..errors import DiskError, InputError, IntegrityError, printable
from ..tensors import read_tensors

_RESNET = re.compile(r"(conv1|bn1|layer\d+)\.")  # beginnings of the names of a backbone's tensors
MAX_FILE, MAX_PICKLE, MAX_PARTS = (
    2**33,
    2**26,
    100_000,
)  # bytes, bytes, files of the archive; some ten times the largest
_ARCHIVE, _OLD = (
    b"PK\x03\x04",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
)  # how torch.save's files begin, before 1.6 too
_MARK = "layer1.0."  # torchvision's name of a ResNet's first block
_WRAPPER = "module."  # what training on several GPUs puts before every name


@dataclass(frozen=True)
class Release:
    """What a method's authors published.

    ``places`` are the keys of the file's outer dict that can hold the tensors, ``names`` what the student's backbone
    can be called within, with or without ``module.`` before; the first that is there counts.
    """

    paper: str
    license: str | None  # of the weights, an SPDX id; None: not stated
    terms: str  # where that is said, in one sentence
    places: tuple[str, ...]
    names: tuple[str, ...]


_INSIDE = ("", "backbone.", "net.", "encoder.")
RELEASES = {
    "cgh": Release(
        "arXiv:2308.13392", "Apache-2.0",
        "The README of the authors' release says Apache-2.0; there is no licence file in it.",
        ("net",), ("encoder_q.", "encoder_q.net.", "encoder_q.backbone."),
    ),
    "ressl": Release(
        "arXiv:2107.09282", None, "The authors' release states no licence.",
        ("model",), ("encoder_q.net.",),
    ),
    "lewel": Release(
        "arXiv:2203.14898", "CC-BY-NC-4.0", "The authors' release is under CC-BY-NC-4.0: no commercial use.",
        ("state_dict",), ("online_net.backbone.",),
    ),
    "moco_v2": Release(
        "arXiv:2003.04297", "CC-BY-NC-4.0",
        "The authors' code and weights are under CC-BY-NC-4.0: no commercial use.",
        ("state_dict",), ("encoder_q.",),
    ),
    "byol": Release(
        "arXiv:2006.07733", None,
        "Files of this layout come from many hands; who trained this one, and under which licence, is not stated.",
        ("state_dict", "model", "net"),
        tuple(a + b for a, b in product(
            ("online_encoder.", "online_net.", "online_network.", "encoder_q.", "backbone."), _INSIDE
        )),
    ),
    "mnclglf": Release(
        "arXiv:2306.15930", "MIT", "The authors' code is under MIT; of weights their release says nothing more.",
        ("state_dict", "model", "net"),
        (*(a + b for a, b in product(("encoder_q.", "online_net.", "encoder.", "backbone.", "net."), _INSIDE)), ""),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Original:
    """The student's backbone of an authors' file: its tensors under torchvision's names, and where they were."""

    tensors: dict[str, Tensor]
    source: dict[str, Any]  # what a row says of it, see `converted_from` in weights_manifest.schema.json
    like: str  # the first method of RELEASES whose layout the file has


def read(path: Path, method: str) -> Original:
    """The student's backbone of an authors' file, as its layout has it; a classifier of its own (``fc``) is left out.

    A value that is damaged in an archive is noticed; files of PyTorch before 1.6 and safetensors have no checksums.

    Args:
        path: what torch.save wrote, or a safetensors file.
        method: whose layout it has, a key of `RELEASES`.

    Raises:
        InputError: no such file or method, or another layout: says what was found.
        IntegrityError: a damaged file, one with code in it, or one that torch.save did not write.
        DiskError: the system cannot read it.
    """
    if method not in RELEASES:
        raise InputError(f"--method {printable(method)[:60]}: expected one of {', '.join(RELEASES)}")
    if not path.is_file():
        raise InputError(f"{printable(path)}: not found; expected a file of weights that {method}'s authors wrote")
    if (size := path.stat().st_size) > MAX_FILE:
        raise IntegrityError(
            f"{printable(path)}: {size} bytes, more than {MAX_FILE}; expected a checkpoint of a ResNet"
        )
    try:
        source = {"file": printable(path.name), "bytes": size, "sha256": files.sha256(path)}
        content = read_tensors(path, source["sha256"]) if path.suffix == ".safetensors" else _load(path)
    except OSError as error:
        raise DiskError(f"{printable(path)}: cannot be read ({error.strerror}); check disk and permissions") from error
    found = _find(content, RELEASES[method])
    if found is None:
        raise InputError(f"{printable(path)}: {_found_instead(content, method)}")
    state, prefix = found
    inside = {k[len(prefix) :]: v for k, v in state.items() if isinstance(k, str) and k.startswith(prefix)}
    tensors = {key: value for key, value in inside.items() if _RESNET.match(key)}  # what else is there are heads
    for key, value in tensors.items():
        _check_tensor(f"{printable(path)}: {printable(prefix + key)[:80]}", key, value)
    return Original(tensors, source | {"prefix": prefix}, _like(content) or method)


def _load(path: Path) -> Any:
    """What torch.save wrote, if it is tensors, numbers and text alone. Raises IntegrityError, OSError."""
    name = printable(path)
    with open(path, "rb") as file:
        begin = file.read(len(_OLD))
    if not begin.startswith(_ARCHIVE) and begin != _OLD:
        raise IntegrityError(
            f"{name}: begins with {printable(ascii(begin[:12]))}, not as torch.save begins; expected a checkpoint of "
            "PyTorch or a .safetensors file, get it again"
        )
    try:
        if begin.startswith(_ARCHIVE):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tensors and old storages, to programmers
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise IntegrityError(f"{name}: {_why_refused(str(error))}; ask its authors for tensors in dicts") from error
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise some twenty kinds in zipfile and torch
        said = " ".join(f"{type(error).__name__}: {error}".split())
        reason = type(error).__name__ if "weights_only" in said else printable(said)[:100]
        raise IntegrityError(f"{name}: not a whole checkpoint ({reason}); get it again") from error


def _why_refused(said: str) -> str:
    """What torch's own words for a pickle that it will not restore mean, without the advice that they end in."""
    if kind := re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|type) ([\w.]+)", said):
        what = printable(kind[1] or kind[2])[:60]
        return f"holds more than tensors, {what}, which only running its code would restore, and none is run here"
    return "damaged, or it holds more than tensors, which only running its code would restore, and none is run here"


def _check_archive(path: Path) -> None:
    """Raises an exception if a part has other bytes than were written, which torch does not notice, or unfolds."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.filename.endswith("/constants.pkl") for part in parts):
            raise ValueError("a TorchScript program")
        if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError(f"{len(parts)} parts that unfold to more than the file")
        if any(part.filename.endswith(".pkl") and part.file_size > MAX_PICKLE for part in parts):
            raise ValueError(f"a description of more than {MAX_PICKLE} bytes")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad}")


def _find(content: Any, release: Release) -> tuple[dict[Any, Any], str] | None:
    """The dict of tensors and what stands before the names of the backbone's; None if there is none of this layout."""
    if not isinstance(content, dict):
        return None
    inner = [content[place] for place in release.places if isinstance(content.get(place), dict)]
    for state in inner or [content]:  # a state dict may also be saved alone
        for name, wrapper in product(release.names, (_WRAPPER, "")):
            if any(isinstance(key, str) and key.startswith(wrapper + name + _MARK) for key in state):
                return state, wrapper + name
    return None


def _like(content: Any) -> str:
    """The first method whose layout the content of a file has; "" if none."""
    return next((name for name, release in RELEASES.items() if _find(content, release)), "")


def _found_instead(content: Any, method: str) -> str:
    """What is in a file that has not the layout of the method, and what to type instead; the end of a sentence."""
    release = RELEASES[method]
    if not isinstance(content, dict) or not content:
        return f"holds an empty dict or none ({type(content).__name__}); expected {method}'s {release.places[0]!r}"
    expected = f"{method}'s has {release.names[0]}{_MARK}* in {release.places[0]!r}"
    like = _like(content)
    hint = f"did you mean --method {like}?" if like else "give a file that has the student's backbone"
    inner = {str(k): v for k, v in content.items() if isinstance(v, dict)} or {"": content}
    keys = [(place, str(key)) for place, state in inner.items() for key in state]
    places = sorted({f"{key.split(_MARK)[0]}{_MARK}*" + f" in {p!r}" * bool(p) for p, key in keys if _MARK in key})
    seen = ", ".join(places[:3]) if places else f"no ResNet, but {', '.join(map(str, list(content)[:4]))}"
    return f"{expected}, this file {printable(seen)[:120]}; {hint}"


def _check_tensor(name: str, key: str, value: Any) -> None:
    """Raises IntegrityError for what cannot be a tensor of a backbone, whatever its shape."""
    counter = key.endswith("num_batches_tracked")
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise IntegrityError(f"{name} is no tensor with values; expected a state dict of a ResNet")
    if value.is_quantized or (not counter and not value.is_floating_point()):
        raise IntegrityError(f"{name} is {value.dtype}; expected floating-point numbers")
