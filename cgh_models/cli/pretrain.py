"""The commands that train and export."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from ..config import CHANGES, MOST_CHANNELS, TrainConfig
from ..dataclass_json import from_dict, to_dict
from ..errors import InputError, printable, say
from ..recipes import OF_OPTIMIZER, RECIPES, method_config, short_run, train_config
from ..view_recipes import recipe_of
from .flags import Folder, Name, OfRun, Pattern, RunFolder, Text, flags_of

if TYPE_CHECKING:
    from ..data.image_set import ImageSet

DEFAULTS = {recipe: train_config(recipe, "cgh") for recipe in RECIPES}
DEFAULTS |= {name: train_config("imagenet", "cgh", name) for name in OF_OPTIMIZER}
KEPT = [name for name, changes in CHANGES.items() if not changes.startswith("nothing")]
TrainFlags = flags_of(TrainConfig, DEFAULTS, left_out=["view"])
ResumeFlags = flags_of(TrainConfig, {}, left_out=KEPT)
IMAGES = (
    "Images: a folder (flat, nested or class folders), a text file with a path a line, a table, a "
    "tar, zip or parquet file, a folder or pattern of those, hfds/NAME, a dataset of the Hugging "
    "Face Hub, or an address as s3://BUCKET/FOLDER; NAME:SPLIT is a part of one (docs/data.md)."
)

ViewChanges = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")]
_WANDB = arg(metavar="PROJECT")


@dataclass
class Pretrain:
    """Trains a backbone on images without labels, and writes a run folder."""

    data: Annotated[str, arg(metavar="IMAGES", help=IMAGES)]
    out: Folder
    """Run folder to make."""
    train: TrainFlags  # pyright: ignore[reportInvalidTypeForm]
    """Settings of the run; see config.py for their sources."""
    method: Name = "cgh"
    """cgh, lewel, lewel_m, mnclglf, ressl, moco_v2, byol, nnclr or sce (see docs/methods.md)."""
    arch: Name = ""
    """Architecture of timm; without it, resnet50, resnet18_small (tiny), resnet18_cifar or
    resnet10_cifar_fast (cifar-fast)."""
    recipe: OfRun = "imagenet"
    """Values of all other flags that go together, for images of 224, 32, 64 or 32 pixels;
    cifar-fast: CGH on two processor cores."""
    init: Annotated[Name, arg(metavar="WEIGHTS")] = ""
    """Weights to start from: a name of `cgh list` or of timm, a weights or a run folder."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """A setting of the method, for example --set taps=3."""
    view: ViewChanges = ()
    """A change of the method's views, such as weak.scale=0.4,1 or strong.jitter=0: of view 1, 2,
    ..., or of all that are weak, strong or small, their scale, ratio, flip, jitter, jitter_p,
    grey_p, blur_p, sigma or solarize_p. `cgh check` draws them."""
    dry_run: bool = False
    """Say what the run would do and how long it would take, and stop there."""
    wandb: Annotated[Name, _WANDB] = ""
    """Also send each line of the log to this project (`pip install '.[wandb]'`)."""

    def configs(self) -> tuple[TrainConfig, object]:
        """Settings of the trainer and of the method."""
        from ..methods import METHODS

        if self.method not in METHODS:
            given = f"--method {self.method}: there is no such method"
            raise InputError(f"{given}; the methods are {', '.join(METHODS)}")
        train = self.trainer_settings()
        return train, method_config(METHODS[self.method], self.recipe, train, self.set)

    def trainer_settings(self) -> TrainConfig:
        """Settings of the trainer; whether there is such a method is not looked at."""
        recipe = train_config(self.recipe, self.method, self.train.get("optimizer", ""))
        count = self.train.get("in_chans", 3)
        if type(count) is int and count != 3 and 1 <= count <= MOST_CHANNELS:
            of_bands = {"in_chans": count, "mean": (0.5,) * count, "std": (0.25,) * count}
            recipe = dataclasses.replace(recipe, **of_bands)
        return dataclasses.replace(recipe, **self.train, view=self.view)

    def measured(self, images: "ImageSet", train: TrainConfig) -> TrainConfig:
        """The settings with mean and deviation of bands as images have them, unless given."""
        from ..data.pixels import measured

        if train.in_chans == 3 or self.train.keys() >= {"mean", "std"}:
            return train
        mean, std, count = measured(images)
        both = {"mean": tuple(mean), "std": tuple(std)}
        found = {name: values for name, values in both.items() if name not in self.train}
        self.train.update(found)
        flags = " ".join(f"--{name} {' '.join(map(str, found[name]))}" for name in found)
        say(f"{printable(images.place)}: measured on {count} images and used: {flags}")
        return dataclasses.replace(train, **found)

    def run(self) -> None:
        from ..train.checkpoint import is_run
        from ..train.distributed import joined
        from ..train.launch import was_restarted
        from ..train.loop import pretrain
        from ..train.plan import say_plan
        from ..train.wandb_log import wandb_log

        if not self.data or not self.out:
            raise InputError("--data and --out: neither may be empty; give images and a folder")
        with joined() as processes:
            method, images, train = processes.together(lambda: self.prepared(processes.count))
            if self.dry_run:
                recipe = recipe_of(method.view_recipe, train.view)
                asked = (method, images, train, recipe, processes.count)
                processes.from_first(lambda: say_plan(*asked))
                return
            # Only those beside the one that ended may know of it.
            restarted = processes.any(was_restarted())
            resume = processes.from_first(lambda: restarted and is_run(Path(self.out)))
            arch = self.arch or RECIPES[self.recipe].arch
            described = {"method": self.method, "arch": arch, **to_dict(train)}
            described["method_config"] = to_dict(method.config)
            with wandb_log("" if processes.rank else self.wandb, self.out, described) as on_log:
                pretrain(method, images, train, self.out, resume=resume, plan=True, on_log=on_log)

    def prepared(self, processes: int) -> tuple[Any, "ImageSet", TrainConfig]:
        """A new method, the images, and the settings as these images need them."""
        import torch

        from ..hub.registry import start_from
        from ..methods import METHODS, build_method, preprocessing
        from ..train.arguments import open_images
        from ..train.step import check_sizes

        train, config = self.configs()
        images = open_images(self.data, train)
        train = self.measured(images, train)
        if len(images) < train.batch_size:
            self.train["batch_size"] = _most_in_batch(len(images), train.accumulate * processes)
            train, config = self.configs()
            say(f"batch: {train.batch_size}, as there are {len(images)} images")
        if changed := short_run(METHODS[self.method], self.recipe, train, self.set):
            say(changed)
        if not any(change.startswith("queue_length=") for change in self.set):
            config = _with_fitting_queue(config, len(images), train.batch_size)
        epochs = train.warmup * train.epochs
        if epochs < train.warmup_epochs:
            warmup = f"warm-up of the learning rate: {epochs:g} of {train.epochs} epochs"
            say(f"{warmup}, a tenth of this short run")
        torch.manual_seed(train.seed)
        arch = self.arch or RECIPES[self.recipe].arch
        method = build_method(self.method, arch, preprocessing(train), config)
        check_sizes(method, recipe_of(method.view_recipe, train.view), train)
        if self.init:
            say(start_from(method, self.init))
        return method, images, train


def _most_in_batch(count: int, parts: int) -> int:
    """The largest batch of at most ``count`` images in equal parts. Raises InputError for one."""
    if count < 2 * parts:
        raise InputError(f"{count} images: at least {2 * parts} are needed; give more of them")
    return count - count % parts


def _with_fitting_queue(config: Any, count: int, batch_size: int) -> object:
    """A method's Config whose queue, if it has one, holds at most ``count`` images, in batches."""
    if getattr(config, "queue_length", 0) <= count:
        return config
    length = count - count % batch_size
    say(f"queue: {length}, as there are {count} images; --set queue_length=N says otherwise")
    return dataclasses.replace(config, queue_length=length)


@dataclass
class Resume:
    """Continues a run from its newest checkpoint, on a CPU bit for bit."""

    run_dir: RunFolder
    """Run folder."""
    train: ResumeFlags  # pyright: ignore[reportInvalidTypeForm]
    """Settings that a resumed run may change."""
    data: Annotated[str, arg(metavar="IMAGES", help_behavior_hint="(default: the run's)")] = ""
    """Where the same images are now, if they were moved."""
    wandb: Annotated[Name, _WANDB] = ""
    """Also send each line of the log from now on to this project, as another run there."""

    def run(self) -> None:
        from ..backbone import OWN
        from ..hub.registry import new_method_of_run
        from ..train.checkpoint import read_run
        from ..train.distributed import joined
        from ..train.loop import pretrain
        from ..train.run_folder import how_to_resume
        from ..train.wandb_log import wandb_log

        run_dir = Path(self.run_dir)
        if read_run(run_dir)["arch"].startswith(OWN):
            what = "has a network of your own, which only your code can build"
            raise InputError(f"{printable(run_dir)}: {what}; go on with {how_to_resume(run_dir)}")
        with joined() as processes:
            method, run = processes.together(lambda: new_method_of_run(run_dir))
            train = dataclasses.replace(from_dict(TrainConfig, run["train"]), **self.train)
            data = self.data or run["data"]["path"]
            with wandb_log("" if processes.rank else self.wandb, self.run_dir, run) as on_log:
                pretrain(method, data, train, self.run_dir, resume=True, on_log=on_log)


@dataclass
class Backbones:
    """Tries which of timm's architectures can be pretrained, with which methods."""

    pattern: Pattern
    """Names of timm as a shell pattern, for example 'resnet18*'."""

    def run(self) -> None:
        from ..methods.compatibility import matching, refusals

        names = matching(self.pattern)
        width = max(map(len, names))
        for name in names:
            reasons = refusals(name)
            possible = [method for method, reason in reasons.items() if not reason]
            print(f"{name:<{width}}  {' '.join(possible) or 'none'}", flush=True)
            for method, reason in reasons.items():
                if reason:
                    print(f"{'':<{width}}    not {method}: {reason}", flush=True)


@dataclass
class Export:
    """Writes the backbone of a run as a weights folder that plain timm loads."""

    run_dir: RunFolder
    """Run folder."""
    out: Folder
    """Weights folder to make."""
    format: Literal["timm", "torchvision", "state-dict"] = "timm"
    """timm: a weights folder. Without timm, the tensors alone: state-dict, under the module's own
    keys, also of a network of your own; torchvision, if that has the architecture (ResNets)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in the files; float16 halves them."""
    heads: Literal["all", "student", "none"] = "all"
    """Also write the method's heads: all, with the teacher, to go on training; only the student's,
    far fewer bytes; or none."""
    no_heads: FlagCreatePairsOff[bool] = False
    """The same as --heads none: the backbone alone."""
    with_queue: FlagCreatePairsOff[bool] = False
    """Also write the queues, most of the bytes: training goes on as if it had not stopped."""
    tag: Name = ""
    """What follows the dot in the weights' name; without it, the method."""
    license: Name = ""
    """Licence of the weights, for the model card."""
    data_name: Name = ""
    """Name of the training images, for the card; without it, the name of their folder."""
    data_license: Text = ""
    """Terms of the training images in one sentence, for the card."""

    def run(self) -> None:
        from ..hub.export import DTYPES, export
        from ..hub.plain_tensors import export_tensors
        from ..small_resnets import default_cfgs

        options = dict(vars(self))
        if options.pop("no_heads"):
            options["heads"] = "none"
        if options.pop("format") == "timm":
            row = export(**options)
            imports = "after `import cgh_models`, " if row.architecture in default_cfgs else ""
            loads = f"{imports}timm.create_model({'local-dir:' + self.out!r}, pretrained=True)"
        else:
            for name in ("heads", "with_queue", "tag", "license", "data_name", "data_license"):
                if options[name] not in ("all", False, ""):
                    hint = f"leave out --{name.replace('_', '-')}, which is of --format timm"
                    raise InputError(f"--format {self.format}: writes tensors alone; {hint}")
            export_tensors(self.run_dir, self.out, DTYPES[self.dtype], self.format)
            loads = f"safetensors.torch.load_file({self.out + '/model.safetensors'!r})"
        print(f"{printable(self.out)}: read back, equal to the bit")
        print(f"{loads} loads it")


@dataclass
class Demo:
    """Pretrains, measures and exports on 3,000 packaged photographs."""

    out: Folder = "cgh-demo"
    """Folder to make."""
    seed: int = 0
    """Seed of the new layers, the order of the images and the views."""

    def run(self) -> None:
        from .demo import run

        run(self.out, self.seed)
