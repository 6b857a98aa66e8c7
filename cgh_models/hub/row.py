"""A row of the weights manifest as dataclasses, and its JSON."""

import dataclasses
from dataclasses import dataclass
from typing import Any

BACKBONE = "model.safetensors"
HEADS = "heads/model.safetensors"  # in a subfolder: older timm loads folders of one file only
OLD_HEADS = "pretrain.safetensors"  # what folders of earlier versions call it


@dataclass
class TrainingImages:
    """The images that weights were trained on; None: not stated."""

    name: str | None = None
    images: int | None = None
    digest: str | None = None
    license_note: str = ""


@dataclass
class CodeVersion:
    """The version of this package that made the weights."""

    version: str
    commit: str | None = None


@dataclass
class ConvertedFrom:
    """The authors' file that weights were converted from."""

    file: str
    bytes: int
    sha256: str
    prefix: str


@dataclass
class FileEntry:
    """A tensor file: its size, its hash, and mirrors of it."""

    bytes: int
    sha256: str
    urls: list[str] | None = None


@dataclass
class HubPin:
    """The repository and the commit (40 hex digits) that hold the files."""

    repo_id: str
    revision: str


@dataclass
class Preprocessing:
    """The images that the model expects, in the words of timm's pretrained_cfg."""

    input_size: list[int]
    mean: list[float]
    std: list[float]
    crop_pct: float
    interpolation: str
    crop_mode: str

    @classmethod
    def from_timm(cls, cfg: dict[str, Any]) -> "Preprocessing":
        """The fields of a timm pretrained_cfg."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = cfg[field.name]
            values[field.name] = list(value) if isinstance(value, tuple) else value
        return cls(**values)

    def to_timm(self) -> dict[str, Any]:
        """Keyword arguments for a timm PretrainedCfg."""
        return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(self).items()}


@dataclass
class Metric:
    """A measured number: ``value`` in percent, on ``n`` images."""

    data: str
    protocol: str
    parameters: dict[str, Any]
    value: float
    n: int
    command: str


@dataclass
class TrainingCost:
    """What the training took, and its log in the repository."""

    hardware: str
    hours: float
    log: str
    log_sha256: str


@dataclass(kw_only=True)
class Row:
    """A row of the manifest; its fields are the keys of the schema, in the order of the files."""

    name: str
    architecture: str
    model_args: dict[str, int]
    parameters: int
    num_features: int
    pool_size: list[int]
    method: str
    method_config: dict[str, Any] | None = None
    train_config: dict[str, Any] | None = None
    branch: str
    data: TrainingImages
    epochs: float | None = None
    steps: int | None = None
    seed: int | None = None
    code: CodeVersion
    command: str
    converted_from: ConvertedFrom | None = None
    files: dict[str, FileEntry]
    hub: HubPin | None = None
    preprocessing: Preprocessing
    license: str | None
    paper_ids: list[str]
    metrics: dict[str, Metric | None]
    fingerprint: list[float]
    notes: list[str]
    training: TrainingCost | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """The row of a JSON object that the schema accepts."""
        converted = values.get("converted_from")
        training = values.get("training")
        nested = {
            "data": TrainingImages(**values["data"]),
            "code": CodeVersion(**values["code"]),
            "converted_from": ConvertedFrom(**converted) if converted else None,
            "files": {name: FileEntry(**entry) for name, entry in values["files"].items()},
            "hub": HubPin(**values["hub"]) if values["hub"] else None,
            "preprocessing": Preprocessing(**values["preprocessing"]),
            "metrics": {k: Metric(**v) if v else None for k, v in values["metrics"].items()},
            "training": TrainingCost(**training) if training else None,
        }
        return cls(**{**values, **nested})

    def to_json(self) -> dict[str, Any]:
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
        """The name of the file of heads, teacher and queues; None if there is none."""
        return next((file for file in self.files if file != BACKBONE), None)

    @property
    def trained_on(self) -> str:
        """Name and number of the training images, as far as they are stated."""
        name = self.data.name or "images whose name was not stated"
        return name if self.data.images is None else f"{name}, {self.data.images:,} images"
