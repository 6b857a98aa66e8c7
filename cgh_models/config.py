"""The trainer's settings, and dataclasses to and from JSON. Light: no torch, no timm."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import InputError


def _says(change: str, default: Any) -> Any:
    """A field; ``change`` is what resuming with another value would change (see `explain_changes`)."""
    return field(default=default, metadata={"change": change})


def check_range(config: Any, low: float, high: float, *names: str) -> None:
    """Raises InputError for a field that is not between ``low`` and ``high``; NaN is between nothing."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < 2**30 else ""
            raise InputError(f"{name}={value}: at least {low:g}{most} is needed")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Defaults: the `imagenet` recipe (CGH, arXiv 2308.13392, and ReSSL, arXiv 2107.09282)."""

    # --- changes results
    image_size: int = _says("the images", 224)
    """Side of the square views, in pixels."""
    views: Literal["fast", "exact"] = _says("the images", "fast")
    """fast: batches on the device, clamped once at the end; exact: each image by itself, as torchvision makes it."""
    epochs: int = _says("the schedule", 200)
    """Passes over the images; 200 in both papers."""
    batch_size: int = _says("the schedule", 256)
    """Images a step; 256 in both papers. The last, smaller batch of an epoch is left out."""
    accumulate: int = _says("the schedule", 1)
    """Parts in which a batch goes through the networks: less memory. Batch norms and losses that compare the images of
    a batch (nnclr, mnclglf, negatives=batch) see one part at a time: this is not a larger batch for them."""
    base_lr: float = _says("the schedule", 0.05)
    """Learning rate per 256 images; the rate used is base_lr * batch_size / 256 (both papers)."""
    optimizer: Literal["sgd", "lars", "adamw"] = _says("the schedule", "sgd")
    """timm's; lars for large batches (BYOL, LEWEL); adamw, with a rate and a decay of its own, for ViTs."""
    momentum: float = _says("the schedule", 0.9)
    """Of sgd and lars (all papers)."""
    weight_decay: float = _says("the schedule", 1e-4)
    """Of weights (both papers; 5e-4 on small images)."""
    decay_norms: bool = _says("the schedule", False)
    """Decay norms and biases too: the papers do so on small images only."""
    paper_faithful: bool = _says("the schedule", False)
    """Choose what is not decayed as the method's authors do, by parameter name; BYOL and NNCLR have no other rule."""
    clip_norm: float = _says("the schedule", 0.0)
    """Largest norm of all gradients together (MNCLGLF: 1); 0: any."""
    warmup_epochs: float = _says("the schedule", 5.0)
    """Epochs of linear learning-rate warm-up and of the method's own; at most a tenth of a run under 50 epochs."""
    seed: int = _says("the random numbers", 0)
    """Weights, order and views are functions of it."""
    precision: Literal["auto", "float32", "bfloat16"] = _says("the arithmetic", "auto")
    """Of the networks; auto: bfloat16 where the processor computes in it. Losses and weights stay float32."""
    mean: tuple[float, float, float] = _says("the images", (0.485, 0.456, 0.406))
    """Per-channel mean the images are normalized with."""
    std: tuple[float, float, float] = _says("the images", (0.229, 0.224, 0.225))
    """Per-channel standard deviation the images are normalized with."""
    crop_pct: float = _says("the images", 0.875)
    """Part of the resized image that the exported model's evaluation crop keeps: 224 of 256."""

    # --- should not change results
    device: str = _says("nothing but rounding", "auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    workers: int = _says("nothing", 2)
    """Processes that read images when the set does not fit in memory; 2 keep up with a CPU, a GPU wants more."""
    grad_checkpointing: bool = _says("nothing but rounding", False)
    """Compute activations again in the backward, by timm's means: less memory, a third more work; running statistics of
    batch norms move twice a step."""
    compile: bool = _says("nothing but rounding", False)
    """Run the networks through torch.compile: minutes of compiling for faster steps on a GPU; left out on a CPU."""
    memory_gib: float = _says("nothing but rounding, and how large fast views have photographs decoded", 2.0)
    """A set whose decoded pixels fit in this many GiB is decoded once and kept; 2 hold CIFAR and Tiny ImageNet."""
    log_every: int = _says("nothing", 0)
    """Steps between log lines; 0: 10, or 1 on the CPU where looking costs nothing."""
    checkpoint_every: int = _says("nothing", 1000)
    """Steps between checkpoints, minutes of work on a GPU; a signal and the last step save too."""
    eval_every: float = _says("nothing", 0.0)
    """Epochs between measurements (kNN, spread, rank); 0: a tenth of the run, at least one epoch; -1: none are made."""

    # --- where things go
    eval_data: str = _says("nothing", "")
    """Folder with train/ and val/ class folders for the kNN measurements."""
    follow_links: bool = _says("nothing", False)
    """Read links that leave the data folder."""
    tensorboard: bool = _says("nothing", False)
    """Also write TensorBoard files into the run folder (`pip install 'cgh-models[tensorboard]'`)."""

    def __post_init__(self):
        check_range(self, 1, 2**40, "image_size", "epochs", "batch_size", "checkpoint_every")
        check_range(self, 2, 2**40, "batch_size")  # batch norm needs two
        check_range(self, 1, self.batch_size // 2, "accumulate")
        if self.batch_size % self.accumulate:
            raise InputError(f"accumulate={self.accumulate}: has to divide the batch size, {self.batch_size}")
        check_range(self, 0, 2**62, "workers", "log_every", "seed", "memory_gib", "warmup_epochs")
        if self.eval_every != -1:
            check_range(self, 0, 2**62, "eval_every")
        check_range(self, 0, 1e6, "base_lr", "weight_decay", "clip_norm")
        check_range(self, 0, 1, "momentum")
        check_range(self, 0.01, 1, "crop_pct")
        if not all(0 < value <= 1e6 for value in self.std):
            raise InputError(f"std={self.std}: each has to be above 0")

    @property
    def warmup(self) -> float:
        """Learning-rate warm-up as a share of the run."""
        return min(self.warmup_epochs / self.epochs, 0.1 if self.epochs < 50 else 1.0)

    @property
    def lr(self) -> float:
        """The learning rate at the top of the schedule."""
        return self.base_lr * self.batch_size / 256


def unknown(key: str, known: list[str]) -> str:
    """The sentence for a key that does not exist, with one that is close."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
    return f"there is no key {key!r}, {hint}"


def from_dict(config_class: type, values: dict[str, Any], complete: bool = True) -> Any:
    """A dataclass from JSON values.

    Raises:
        InputError: an unknown key, or (if ``complete``) a missing one.
    """
    known = [f.name for f in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            raise InputError(f"{config_class.__qualname__}: {unknown(key, known)}")
    if complete and (missing := [key for key in known if key not in values]):
        raise InputError(f"{config_class.__qualname__}: the keys {', '.join(missing)} are missing")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for key, kind in get_type_hints(config_class).items():
        if key in values and not _is_a(values[key], kind):
            expected = str(kind).removeprefix("typing.") if get_origin(kind) else kind.__name__
            raise InputError(f"{config_class.__qualname__}: {key}={values[key]!r}: expected {expected}")
    return config_class(**values)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value fits an annotation: int, float, bool, str, a Literal or a tuple of these."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_a, value, kinds))
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def to_dict(config: Any) -> dict[str, Any]:
    """JSON values of a dataclass."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}


def explain_changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two run descriptions: (changes that are safe, changes that are refused), a line each.

    Both are the dicts that `config.json` of a run holds.
    """
    kinds = {f.name: f.metadata["change"] for f in dataclasses.fields(TrainConfig)}
    safe, refused = [], []
    for key in before["train"]:
        old, new, kind = before["train"][key], after["train"][key], kinds[key]
        if old != new:
            line = f"{key}: {old} -> {new} changes {kind}"
            (safe if kind.startswith("nothing") else refused).append(line)
    for key in before["method_config"]:
        old, new = before["method_config"][key], after["method_config"].get(key)
        if old != new:
            refused.append(f"{key}: {old} -> {new} changes the model")
    for key, kind in (("method", "the model"), ("arch", "the model")):
        if before[key] != after[key]:
            refused.append(f"{key}: {before[key]} -> {after[key]} changes {kind}")
    if before["data"]["digest"] != after["data"]["digest"]:
        counts = f"{before['data']['count']} -> {after['data']['count']} images"
        refused.append(f"data: {counts}, and not the same files: changes the images")
    return safe, refused
