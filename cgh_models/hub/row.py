"""A row of the weights manifest as dataclasses, and its JSON, every value of which is checked."""

import dataclasses
import operator
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..config import MOST_CHANNELS
from .strict_json import Limits, parse, refused

BACKBONE = "model.safetensors"
HEADS = "heads/model.safetensors"  # in a subfolder: older timm loads folders of one file only
TEACHER_HEADS = "heads/teacher.safetensors"  # student's and teacher: no queues
STUDENT_HEADS = "heads/student.safetensors"  # the student's alone: no teacher, no queues
OLD_HEADS = "pretrain.safetensors"  # what folders of earlier versions call it
HEADS_FILES = (HEADS, TEACHER_HEADS, STUDENT_HEADS, OLD_HEADS)  # a folder has one of them at most

Text = Annotated[str, Limits(1, 2000)]
Name = Annotated[str, Limits(1, 100, "[a-z0-9_]+")]
Digest = Annotated[str, Limits(64, 64, "[0-9a-f]+")]
Commit = Annotated[str, Limits(40, 40, "[0-9a-f]+")]
RepoId = Annotated[str, Limits(1, 200, r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")]
Url = Annotated[
    str, Limits(1, 2000, r"https://[^\s/@]+/\S*|http://(127\.0\.0\.1|localhost)(:[0-9]+)?/\S*")
]
Count = Annotated[int, Limits(1)]
Side = Annotated[int, Limits(1, 4096)]
Channels = Limits(1, MOST_CHANNELS)
_PAPER = r"arXiv:[0-9]{4}\.[0-9]{4,5}"
_METRIC = "(knn|linear|finetune)_[a-z0-9_]+"
# What is null in rows of converted files alone, which cannot say it.
_KNOWN_OF_RUNS = ("method_config", "train_config", "epochs", "steps", "seed")
_KNOWN_OF_RUNS += ("data.name", "data.images", "data.digest")


@dataclass
class TrainingImages:
    """The images that weights were trained on; None: not stated."""

    name: Text | None = None
    images: Count | None = None
    digest: Digest | None = None
    license_note: Text = ""


@dataclass
class CodeVersion:
    """The version of this package that made the weights."""

    version: Text
    commit: Commit | None = None


@dataclass
class ConvertedFrom:
    """The authors' file that weights were converted from."""

    file: Annotated[str, Limits(1, 1100)]
    bytes: Count
    sha256: Digest
    prefix: Annotated[str, Limits(0, 200)]


@dataclass
class FileEntry:
    """A tensor file: its size, its hash, and mirrors of it."""

    bytes: Count
    sha256: Digest
    urls: Annotated[list[Url], Limits(1, 8)] | None = None


@dataclass
class HubPin:
    """The repository and the commit (40 hex digits) that hold the files."""

    repo_id: RepoId
    revision: Commit


@dataclass
class Preprocessing:
    """The images that the model expects, in the words of timm's pretrained_cfg."""

    input_size: Annotated[list[Side], Limits(3, 3)]
    mean: Annotated[list[Annotated[float, Limits()]], Channels]
    std: Annotated[list[Annotated[float, Limits(above=0)]], Channels]
    crop_pct: Annotated[float, Limits(0.01, 1)]
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"]
    crop_mode: Literal["center", "squash", "border"]

    @classmethod
    def from_timm(cls, cfg: dict[str, object]) -> "Preprocessing":
        """The fields of a timm pretrained_cfg."""
        found = [(name, cfg[name]) for name in cls.__dataclass_fields__]
        values: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in found}
        return cls(**values)

    def to_timm(self) -> dict[str, object]:
        """Keyword arguments for a timm PretrainedCfg."""
        return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(self).items()}


@dataclass
class Metric:
    """A measured number: ``value`` in percent, on ``n`` images."""

    data: Text
    protocol: Text
    parameters: dict[str, Any]
    value: Annotated[float, Limits(0, 100)]
    n: Count
    command: Text


@dataclass
class TrainingCost:
    """What the training took, and its log in the repository."""

    hardware: Text
    hours: Annotated[float, Limits(above=0)]
    log: Text
    log_sha256: Digest


@dataclass(kw_only=True)
class Row:
    """A row of the manifest; its fields are the keys of the schema, in the order of the files."""

    name: Annotated[str, Limits(1, 128, r"[a-z0-9_]+\.[a-z0-9_]+")]
    architecture: Name
    model_args: dict[str, Side]
    parameters: Count
    num_features: Count
    pool_size: Annotated[list[Count], Limits(2, 2)]
    method: Name
    method_config: dict[str, Any] | None = None
    train_config: dict[str, Any] | None = None
    branch: Literal["student", "teacher"]
    data: TrainingImages
    epochs: Annotated[float, Limits(0)] | None = None
    steps: Annotated[int, Limits(0)] | None = None
    seed: int | None = None
    code: CodeVersion
    command: Text
    converted_from: ConvertedFrom | None = field(default=None, metadata={"optional": True})
    files: dict[str, FileEntry]
    hub: HubPin | None = None
    preprocessing: Preprocessing
    license: Annotated[str, Limits(1, 100)] | None
    paper_ids: Annotated[list[Annotated[str, Limits(1, 30, _PAPER)]], Limits(1)]
    metrics: dict[str, Metric | None]
    fingerprint: Annotated[list[Annotated[float, Limits()]], Limits(8, 8)]
    notes: list[Text]
    training: TrainingCost | None = field(default=None, metadata={"optional": True})

    @classmethod
    def from_json(cls, values: object) -> "Row":
        """The row of a JSON value. Raises ValueError, which names the key, unless it is one."""
        row = parse(cls, values)
        row._check_what_belongs_together()
        return row

    def _check_what_belongs_together(self) -> None:
        if self.name.partition(".")[0] != self.architecture:
            raise refused("architecture", self.architecture, "what stands before the name's dot")
        if not self.model_args.keys() <= {"img_size"}:
            raise refused("model_args", self.model_args, "img_size alone")
        for key in ("mean", "std"):
            value = getattr(self.preprocessing, key)
            if len(value) != self.in_chans:
                expected = f"{self.in_chans} numbers, as in input_size"
                raise refused(f"preprocessing.{key}", value, expected)
        heads = [[], *([file] for file in HEADS_FILES)]
        if BACKBONE not in self.files or [f for f in self.files if f != BACKBONE] not in heads:
            raise refused("files", list(self.files), f"{BACKBONE}, and beside it at most {HEADS}")
        for name, metric in self.metrics.items():
            is_measured = metric is not None and re.fullmatch(_METRIC, name)
            if name not in ("knn", "linear") and not is_measured:
                raise refused("metrics", name, "knn, linear, and measured ones like knn_tiny")
        if not {"knn", "linear"} <= self.metrics.keys():
            raise refused("metrics", list(self.metrics), "knn and linear")
        if self.converted_from and len(self.files) > 1:
            raise refused("files", list(self.files), f"{BACKBONE} alone of a converted file")
        for key in () if self.converted_from else _KNOWN_OF_RUNS:
            if operator.attrgetter(key)(self) is None:
                raise refused(key, None, "what it was: it is not converted from a file")

    @property
    def in_chans(self) -> int:
        """Channels of the images that the model expects."""
        return self.preprocessing.input_size[0]

    @property
    def of_method(self) -> dict[str, Any]:
        """What `methods.method_of_file` takes."""
        images = self.preprocessing.to_timm()
        found = {"name": self.method, "arch": self.architecture, "preprocessing": images}
        return found | {"values": self.method_config or {}} | self.model_args

    def to_json(self) -> dict[str, object]:
        """A new JSON object of the row."""
        values = dataclasses.asdict(self)
        for key in ("converted_from", "training"):
            if values[key] is None:
                del values[key]
        return values

    @property
    def tag(self) -> str:
        """What follows the dot in the name."""
        return self.name.partition(".")[2]

    @property
    def heads_file(self) -> str | None:
        """The name of the file of the heads, with or without teacher and queues; None: none."""
        return next((file for file in self.files if file != BACKBONE), None)

    @property
    def has_queues(self) -> bool:
        """Whether the file of the heads holds the method's queues, if it has any."""
        return self.heads_file in (HEADS, OLD_HEADS)

    @property
    def trained_on(self) -> str:
        """Name and number of the training images, as far as they are stated."""
        name = self.data.name or "images whose name was not stated"
        return name if self.data.images is None else f"{name}, {self.data.images:,} images"
