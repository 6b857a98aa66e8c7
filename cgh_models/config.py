"""The trainer's settings. Light: no torch, no timm."""

import contextlib
import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from .errors import InputError, printable
from .schedule import sizes_of

MOST_CHANNELS = 16


class Reading(TypedDict):
    """What decides how files become pixels."""

    pixel_range: str
    in_chans: int
    reader: str


def setting(default: object, changes: str) -> Any:
    """A field of TrainConfig; ``changes`` says what another value changes in a resumed run."""
    return field(default=default, metadata={"changes": changes})


def check_range(config: object, low: float, high: float, *names: str) -> None:
    """Raises InputError for a field that is not between ``low`` and ``high``, NaN included."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < 2**30 else ""
            raise InputError(f"{name}={value}: at least {low:g}{most} is needed")


def check_pixel_range(pixel_range: str) -> None:
    """Raises InputError for a text that is neither auto nor LOW,HIGH nor N-bit."""
    if pixel_range in ("auto", "8-bit", "10-bit", "12-bit", "14-bit", "16-bit"):
        return
    with contextlib.suppress(ValueError, AttributeError):
        low, high = map(float, pixel_range.split(","))
        if -1e30 < low < high < 1e30:
            return
    expected = "expected auto, LOW,HIGH (for example --pixel-range=0,4095) or 12-bit"
    raise InputError(f"--pixel-range {printable(pixel_range)[:60]}: {expected}")


def check_reader(reader: str) -> None:
    """Raises InputError for a text that is not MODULE:FUNCTION, nor empty."""
    if reader and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", reader):
        expected = "expected MODULE:FUNCTION, for example --reader my_reader:read"
        raise InputError(f"--reader {printable(reader)[:60]}: {expected}")


def check_size_schedule(schedule: str, image_size: int) -> None:
    """Raises InputError for a text that is no schedule, or does not end at the image size."""
    sizes = [size for size, _ in sizes_of(schedule)]
    if schedule and sizes[-1:] != [image_size]:
        expected = "expected SIZE:SHARE,...,SIZE, sizes that rise and shares that leave a rest"
        last = f"the last the --image-size ({image_size}), for example 24:0.75,32"
        raise InputError(f"--size-schedule {printable(schedule)[:60]}: {expected}, {last}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Defaults: `imagenet` (CGH, arXiv 2308.13392; ReSSL, arXiv 2107.09282)."""

    # --- changes results
    image_size: int = setting(224, "the images")
    """Side of the square views, in pixels."""
    size_schedule: str = setting("", "the images")
    """Smaller views first: 24:0.75,32 makes them of 24 pixels in three quarters of the epochs, then
    of 32, the image size."""
    views: Literal["fast", "exact"] = setting("fast", "the images")
    """fast: made in batches on the device; exact: image by image, equal to torchvision's."""
    epochs: int = setting(200, "the schedule")
    """Passes over the images (both papers)."""
    batch_size: int = setting(256, "the schedule")
    """Images per step (both papers). The last, smaller batch of an epoch is dropped."""
    accumulate: int = setting(1, "the schedule")
    """Parts of a batch, one after the other: less memory; norms and in-batch losses see a part."""
    base_lr: float = setting(0.05, "the schedule")
    """Learning rate per 256 images; base_lr * batch_size / 256 is used (both papers)."""
    optimizer: Literal["sgd", "lars", "adamw", "muon"] = setting("sgd", "the schedule")
    """lars is for large batches (BYOL, LEWEL), adamw for ViTs, muon for short runs of ResNets."""
    momentum: float = setting(0.9, "the schedule")
    """Momentum of sgd and lars (all papers), and of what muon leaves to sgd."""
    lr_in_momentum: bool = setting(False, "the schedule")
    """The momentum of lars adds up steps, not gradients (LEWEL); others leave this alone."""
    weight_decay: float = setting(1e-4, "the schedule")
    """Weight decay (both papers)."""
    decay_norms: bool = setting(False, "the schedule")
    """Also decay norms and biases; the papers do so on small images only."""
    paper_faithful: bool = setting(False, "the schedule")
    """As the method's authors: what is not decayed is chosen by name (always for BYOL, NNCLR), and
    runs of fewer than 200 epochs have no values of their own."""
    norm_sync: Literal["auto", "none", "shuffle", "sync"] = setting("auto", "the batch norms")
    """Of several processes, whose images a batch norm's statistics are of. none: each its own;
    shuffle: teachers' of shuffled rows; sync: all; auto: as the method's authors did."""
    clip_norm: float = setting(0.0, "the schedule")
    """Largest norm of all gradients together (MNCLGLF: 1); 0: no limit."""
    warmup_epochs: float = setting(5.0, "the schedule")
    """Warm-up of the learning rate, and of CGH in long runs; at most a tenth of one of less than 50
    epochs."""
    seed: int = setting(0, "the random numbers")
    """Seed of the initial weights, the order of the images and the views."""
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "the arithmetic")
    """Precision of the networks, not of losses and weights; auto: bfloat16 if it is computed in."""
    in_chans: int = setting(3, "the images")
    """Channels of an image, 1 to 16. 3: 8-bit RGB; others: the bands that the files hold."""
    reader: str = setting("", "the images")
    """MODULE:FUNCTION that makes an array (H, W) or (H, W, channels) of a path, for formats that
    are not read."""
    mean: tuple[float, ...] = setting((0.485, 0.456, 0.406), "the images")
    """Mean of each channel, for normalization; of other than 3, measured if it is not given."""
    std: tuple[float, ...] = setting((0.229, 0.224, 0.225), "the images")
    """Standard deviation of each channel, for normalization."""
    pixel_range: str = setting("auto", "the images")
    """Of pixels of more than 8 bits. LOW,HIGH: the values that become black and white; 12-bit: 0
    to 4095, others are refused; auto: 8 to 16 bits, by the largest value of some of the images."""
    view: tuple[str, ...] = setting((), "the images")
    """Changes of the method's views, such as weak.scale=0.4,1; see `view_recipes.recipe_of`."""
    crop_pct: float = setting(0.875, "the images")
    """Share of the resized image that the exported model's evaluation crop has: 224 of 256."""

    # --- should not change results
    device: str = setting("auto", "nothing but rounding")
    """cpu, cuda, cuda:1, ...; auto: a GPU if there is one."""
    workers: int = setting(2, "nothing")
    """Processes that read images when the images do not fit in memory; a GPU needs more than 2."""
    grad_checkpointing: bool = setting(False, "nothing but rounding")
    """Compute activations twice: less memory, a third more work."""
    compile: bool = setting(False, "nothing but rounding")
    """Use torch.compile: minutes of compiling, then faster steps on a GPU; ignored on a CPU."""
    cuda_graphs: bool = setting(False, "nothing but rounding")
    """Replay views and the networks' passes as CUDA graphs: faster steps where a GPU waits for
    launches, as it does for small networks and images; ignored on a CPU."""
    memory_gib: float = setting(2.0, "nothing but rounding and the decoded size of photographs")
    """Images that fit decoded in this many GiB are kept in memory; 2 hold Tiny ImageNet."""
    cache_gib: float = setting(10.0, "nothing")
    """GiB on the disk for what is fetched from an address or unpacked from a .tar.gz."""
    max_bad: float = setting(0.01, "nothing but which images take the place of bad ones")
    """Share of the images that may be unreadable: each is named, and another takes its place."""
    log_every: int = setting(0, "nothing")
    """Steps between log lines; 0: 10 on a GPU, 1 on a CPU."""
    checkpoint_every: int = setting(1000, "nothing")
    """Steps between checkpoints; a signal and the last step save one too."""
    eval_every: float = setting(0.0, "nothing")
    """Epochs between measurements (kNN, spread, rank); 0: a tenth of the run; -1: none."""

    # --- where things go
    eval_data: str = setting("", "nothing")
    """Folder with train/ and val/, class folders in both, for the kNN measurements."""
    follow_links: bool = setting(False, "nothing")
    """Also read links that lead out of the data folder."""
    tensorboard: bool = setting(False, "nothing")
    """Also write TensorBoard files into the run folder (`pip install '.[tensorboard]'`)."""
    quiet: bool = setting(False, "nothing")
    """No progress on stderr; measurements and warnings are said."""
    stop_when_collapsed: bool = setting(False, "nothing")
    """End with an error, saved, when a measurement finds that the embeddings have collapsed."""

    def __post_init__(self):
        check_range(self, 1, 2**40, "image_size", "epochs", "checkpoint_every")
        check_size_schedule(self.size_schedule, self.image_size)
        check_range(self, 2, 2**40, "batch_size")  # batch norm needs two
        check_range(self, 1, self.batch_size // 2, "accumulate")
        if self.batch_size % self.accumulate:
            given = f"accumulate={self.accumulate}"
            raise InputError(f"{given}: has to divide the batch size, {self.batch_size}")
        for name in ("accumulate", "compile", "grad_checkpointing"):
            if self.cuda_graphs and getattr(self, name) != getattr(TrainConfig, name):
                given = f"cuda_graphs=True with {name}"
                raise InputError(f"{given}: they exclude each other; leave one out")
        check_range(self, 0, 2**62, "workers", "log_every", "seed", "memory_gib", "warmup_epochs")
        check_range(self, 0, 2**62, "cache_gib")
        if self.eval_every != -1:
            check_range(self, 0, 2**62, "eval_every")
        check_range(self, 0, 1e6, "base_lr", "weight_decay", "clip_norm")
        check_range(self, 0, 1, "momentum", "max_bad")
        check_range(self, 0.01, 1, "crop_pct")
        if not all(abs(value) <= 1e6 for value in self.mean):
            raise InputError(f"mean={self.mean}: each has to be a number")
        check_pixel_range(self.pixel_range)
        check_range(self, 1, MOST_CHANNELS, "in_chans")
        check_reader(self.reader)
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count != self.in_chans:
                expected = f"{self.in_chans} are expected, one for each channel of in_chans"
                raise InputError(f"{name}: {count} numbers; {expected}; `cgh check` measures them")
        if not all(0 < value <= 1e6 for value in self.std):
            raise InputError(f"std={self.std}: each has to be above 0")

    @property
    def reading(self) -> Reading:
        """What decides how files become pixels, as arguments of `data.image_set.load`."""
        return Reading(**{name: getattr(self, name) for name in READING})

    @property
    def phases(self) -> list[tuple[int, int]]:
        """(image size, the epoch that it ends before) of each phase that has an epoch."""
        if not self.size_schedule:
            return [(self.image_size, self.epochs)]
        rising = reversed(sizes_of(self.size_schedule))
        ends = {int(share * self.epochs + 1e-9): size for size, share in rising}
        return [(size, end) for end, size in sorted(ends.items()) if end]

    def size_in(self, epoch: int) -> int:
        """The image size in an epoch, counted from 0."""
        return next((size for size, end in self.phases if epoch < end), self.image_size)

    @property
    def warmup(self) -> float:
        """Learning-rate warm-up as a share of the run."""
        most = 0.1 if self.epochs < 50 else 1.0
        return min(self.warmup_epochs / self.epochs, most)

    @property
    def lr(self) -> float:
        """The learning rate at the top of the schedule."""
        return self.base_lr * self.batch_size / 256


READING = tuple(Reading.__annotations__)
# What another value changes in a resumed run, by the name of the setting.
CHANGES: dict[str, str] = {f.name: f.metadata["changes"] for f in dataclasses.fields(TrainConfig)}
