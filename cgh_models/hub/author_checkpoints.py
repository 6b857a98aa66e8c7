"""Checkpoints of methods' authors: where the backbone lies, and under which terms."""

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

from ..errors import DiskError, InputError, IntegrityError, os_error_as, printable
from ..hashing import sha256
from ..tensors import read_tensors
from .row import ConvertedFrom

# Some ten times the largest that was published.
MAX_FILE = 2**33  # bytes
MAX_PICKLE = 2**26  # bytes
MAX_PARTS = 100_000  # files in the archive
# How files of torch.save begin: an archive, or before PyTorch 1.6 a pickled magic number.
_ARCHIVE = b"PK\x03\x04"
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_RESNET = re.compile(r"(conv1|bn1|layer\d+)\.")  # how names of a backbone's tensors begin
_FIRST_BLOCK = "layer1.0."  # torchvision's name of a ResNet's first block
# What of a ResNet holds tensors, in torchvision's order.
_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


class _LeftOut(dict):
    """Stands for an object beside the tensors, of which nothing is restored."""

    def __init__(self, *args: object):
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


# Objects that authors save beside the tensors: command lines, settings, numbers of NumPy.
_METADATA = ["argparse.Namespace", "easydict.EasyDict", "numpy.dtype", "numpy.ndarray"]
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _METADATA += [f"{_core}.scalar", f"{_core}._reconstruct"]


@dataclass(frozen=True)
class Release:
    """What a method's authors published, and where in its files the student's backbone is."""

    paper: str
    license: str | None  # of the weights, an SPDX id; None: not stated
    terms: str  # where that is said, in one sentence
    places: tuple[str, ...]  # keys of the file's outer dict that can hold the tensors
    names: tuple[str, ...]  # of the backbone there, also after ``module.``; the first one counts
    numbered: tuple[str, ...] = ()  # names of an nn.Sequential of the backbone's parts


def _nested(*outer: str) -> tuple[str, ...]:
    """Names of a student in which the backbone may have a name of its own."""
    return tuple(map("".join, product(outer, ("", "backbone.", "net.", "encoder."))))


RELEASES = {
    "cgh": Release(
        paper="arXiv:2308.13392",
        license="Apache-2.0",
        terms="The README of the authors' release says Apache-2.0; there is no licence file in it.",
        places=("net",),
        names=("encoder_q.", "encoder_q.net.", "encoder_q.backbone."),
    ),
    "ressl": Release(
        paper="arXiv:2107.09282",
        license=None,
        terms="The authors' release states no licence.",
        places=("model",),
        names=("encoder_q.net.",),
    ),
    "lewel": Release(
        paper="arXiv:2203.14898",
        license="CC-BY-NC-4.0",
        terms="The authors' release is under CC-BY-NC-4.0: no commercial use.",
        places=("state_dict",),
        names=("online_net.backbone.",),
    ),
    "moco_v2": Release(
        paper="arXiv:2003.04297",
        license="MIT",
        terms="The authors' code is under MIT; of weights their release says nothing more.",
        places=("state_dict",),
        names=("encoder_q.",),
    ),
    "byol": Release(
        paper="arXiv:2006.07733",
        license=None,
        terms="Files of this layout come from many hands; who trained this one, and under which "
        "licence, is not stated.",
        places=("state_dict", "model", "net"),
        names=_nested(
            "online_encoder.", "online_net.", "online_network.", "encoder_q.", "backbone."
        ),
    ),
    "mnclglf": Release(
        paper="arXiv:2306.15930",
        license="MIT",
        terms="The authors' code is under MIT; of weights their release says nothing more.",
        places=("state_dict", "model", "net"),
        names=(*_nested("encoder_q.", "online_net.", "encoder.", "backbone.", "net."), ""),
        numbered=("backbone.", "encoder.0."),
    ),
}


@dataclass(frozen=True)
class Original:
    """The student's backbone of an authors' file, its tensors under torchvision's names."""

    tensors: dict[str, Tensor]
    source: ConvertedFrom
    layout: str  # the first method of RELEASES whose layout the file has


def read(path: Path, method: str) -> Original:
    """The student's backbone in a file of torch.save or safetensors, without its classifier ``fc``.

    Damaged values in an archive are noticed; PyTorch before 1.6 and safetensors write no checksums.
    """
    name = printable(path)
    if method not in RELEASES:
        methods = ", ".join(RELEASES)
        raise InputError(f"--method {printable(method)[:60]}: expected one of {methods}")
    content, size, digest = _open(path)
    release = RELEASES[method]
    found = _find(content, release)
    layout = next((other for other in RELEASES if _find(content, RELEASES[other])), "")
    if found is None:
        hint = f"give --method {layout}" if layout else "give a file with the student's backbone"
        expected = f"expected {release.names[0]}{_FIRST_BLOCK}* in {release.places[0]!r}"
        held = printable(_contents(content))[:120]
        raise InputError(f"{name}: {expected}, found {held}; {hint}")
    state, prefix = found
    tensors = {}
    for key, value in state.items():
        inner = str(key).removeprefix(prefix)
        if str(key).startswith(prefix) and _RESNET.match(inner):  # all else are heads
            _check_tensor(f"{name}: {printable(key)[:80]}", value, inner)
            tensors[inner] = value
    return Original(tensors, ConvertedFrom(printable(path.name), size, digest, prefix), layout)


def _open(path: Path) -> tuple[object, int, str]:
    """The content of a file, its size in bytes and its sha256."""
    name = printable(path)
    if not path.is_file():
        raise InputError(f"{name}: not found; expected a file of weights that the authors wrote")
    with os_error_as(DiskError, path, "cannot be read", "check disk and permissions"):
        size = path.stat().st_size
        if size > MAX_FILE:
            reason = f"{size} bytes, more than {MAX_FILE}; expected a checkpoint of a ResNet"
            raise IntegrityError(f"{name}: {reason}")
        digest = sha256(path)
        is_safetensors = path.suffix == ".safetensors"
        return read_tensors(path, digest) if is_safetensors else _load(path), size, digest


def _load(path: Path) -> object:
    """What torch.save wrote, if it is tensors, numbers and text, and `_METADATA` beside them."""
    name = printable(path)
    with open(path, "rb") as file:
        begin = file.read(len(_MAGIC))
    if not begin.startswith(_ARCHIVE) and begin != _MAGIC:
        what = f"begins with {printable(ascii(begin[:12]))}, not as torch.save begins"
        expected = "expected a checkpoint of PyTorch or a .safetensors file"
        raise IntegrityError(f"{name}: {what}; {expected}, get it again")
    try:
        if begin.startswith(_ARCHIVE):
            _check_archive(path)
        stand_ins: list[Any] = [(_LeftOut, name) for name in _METADATA]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about old storages, for programmers
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|type) ([\w.]+)", str(error))
        what = f", {printable(kind[1] or kind[2])[:60]}," if kind else ""
        held = f"more than tensors{what} which only running its code would restore"
        reason = f"damaged, or holds {held}, and none is run here"
        raise IntegrityError(f"{name}: {reason}; ask its authors for tensors in dicts") from error
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise some twenty kinds in zipfile and torch
        text = " ".join(f"{type(error).__name__}: {error}".split())
        reason = type(error).__name__ if "weights_only" in text else printable(text)[:100]
        raise IntegrityError(f"{name}: not a whole checkpoint ({reason}); get it again") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError for what torch does not notice: changed bytes, or parts too large."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.filename.endswith("/constants.pkl") for part in parts):
            raise ValueError("a TorchScript program")
        if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError(f"{len(parts)} parts that unfold to more than the file")
        if any(part.filename.endswith(".pkl") and part.file_size > MAX_PICKLE for part in parts):
            raise ValueError(f"a description of more than {MAX_PICKLE} bytes")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged}")


def _find(content: object, release: Release) -> tuple[dict[Any, object], str] | None:
    """The dict of tensors and the prefix of the backbone's names; None for another layout."""
    if not isinstance(content, dict):
        return None
    inner = [content[place] for place in release.places if isinstance(content.get(place), dict)]
    for state in inner or [content]:  # a state dict may also be saved alone
        for name, wrapper in product(release.names, ("module.", "")):
            prefix = wrapper + name
            if any(str(key).startswith(prefix + _FIRST_BLOCK) for key in state):
                return state, prefix
        for name, wrapper in product(release.numbered, ("module.", "")):
            if named := _with_names(state, wrapper + name):
                return named, wrapper + name
    return None


def _with_names(state: dict[Any, object], prefix: str) -> dict[str, object]:
    """The tensors of a ResNet that was saved as an nn.Sequential, under torchvision's names.

    Its parts are numbered, those without tensors (ReLU, pooling) too; empty if it is none.
    """
    parts: dict[int, dict[str, object]] = {}
    for key, value in state.items():
        if part := re.match(rf"{re.escape(prefix)}(\d{{1,2}})\.(.+)", str(key)):
            parts.setdefault(int(part[1]), {})[part[2]] = value
    if len(parts) != len(_PARTS):
        return {}
    renamed = {}
    for name, number in zip(_PARTS, sorted(parts), strict=True):
        renamed |= {f"{prefix}{name}.{key}": value for key, value in parts[number].items()}
    return renamed


def _contents(content: object) -> str:
    """The ResNets in a file, or else the keys of its outer dict."""
    if not isinstance(content, dict) or not content:
        return f"an empty dict or none ({type(content).__name__})"
    inner = {f" in {k!r}": v for k, v in content.items() if isinstance(v, dict)} or {"": content}
    resnets = set()
    for place, state in inner.items():
        for key in map(str, state):
            if _FIRST_BLOCK in key:
                resnets.add(f"{key.partition(_FIRST_BLOCK)[0]}{_FIRST_BLOCK}*{place}")
    return ", ".join(sorted(resnets)) or f"no ResNet, but {', '.join(map(str, content))}"


def _check_tensor(name: str, value: object, key: str) -> None:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise IntegrityError(f"{name} is no tensor with values; expected a state dict of a ResNet")
    counter = key.endswith("num_batches_tracked")
    if value.is_quantized or (not counter and not value.is_floating_point()):
        raise IntegrityError(f"{name} is {value.dtype}; expected floating-point numbers")
    if not value.isfinite().all():
        raise IntegrityError(f"{name} holds values that are not finite; get it again")
