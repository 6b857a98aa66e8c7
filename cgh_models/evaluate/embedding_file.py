"""Embeddings of any number of images in a file: made in parts that a later run goes on from."""

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from .. import files
from ..backbone import channels
from ..data.decode import BadFile
from ..data.eval_loader import EvalDataset, eval_samples, eval_transform
from ..data.image_set import ImageSet
from ..data.reading import check_channels
from ..errors import InputError, IntegrityError, Interrupted, os_error_as, printable
from ..progress import bar
from ..tensors import plain_defaults
from ..version import __version__
from .cache import library_versions, state_sha256
from .embedder import Embedder, embedder_of
from .feature_maps import Features
from .file_formats import Content, check_format, write_file
from .protocols import EvalSettings

Until = Callable[[Iterator[Any]], Iterator[Any]]
_SETTINGS = "settings.json"


class Written(NamedTuple):
    """What a file of embeddings holds."""

    images: int
    left_out: int  # images that cannot be read
    shape: list[int]  # of an image's embedding


@plain_defaults()
def write_embeddings(
    model: nn.Module,
    images: ImageSet,
    out: Path,
    settings: EvalSettings,
    features: Features,
    dtype: str = "float32",
    weights: str = "",
    until: Until = iter,
) -> Written:
    """Writes a row for each image that can be read: path, class, size, sha256 and embedding.

    A batch at a time is embedded, into ``OUT.part/``; the same call goes on after the last one. All
    of them are joined to the file, which is written atomically, and removed. ``weights`` is their
    name in the file; ``until`` passes items on until the process is to end.

    Raises:
        InputError: the file is there already, ``OUT.part/`` is of other weights, images or
            settings, more than 1 % of the images cannot be read, or values do not fit in the dtype.
        Interrupted: ``until`` ended early; what is done is kept.
    """
    check_format(out, features.dense)
    check_channels(images, channels(getattr(model, "_orig_mod", model)))
    if out.exists():
        raise InputError(f"{printable(out)}: exists; remove it, or give another --out")
    about = {"weights": weights, "dtype": dtype, **_about(model, images, settings, features)}
    parts = _Parts(out.with_name(f"{out.name}.part"), images)
    parts.begin(about)
    with bar(len(images), "embedding") as shown:
        shown.update(parts.done())
        with embedder_of(model, settings, features) as embedder:
            for behind, part in until(_embedded(model, embedder, parts, settings.workers)):
                parts.write(behind, part, dtype)
                shown.update(behind - shown.n)
    if parts.done() < len(images):
        kept = f"{printable(parts.folder)}: {parts.done()} of {len(images)} images are embedded"
        raise Interrupted(f"{kept}; the same command goes on")
    count = sum(len(part["index"]) for part in parts.read("index"))
    read = partial(parts.read, until=until)
    write_file(out, Content(images, count, embedder.shape, np.dtype(dtype), about, read))
    shutil.rmtree(parts.folder, ignore_errors=True)
    return Written(count, len(images) - count, list(embedder.shape))


def _about(
    model: nn.Module, images: ImageSet, settings: EvalSettings, features: Features
) -> dict[str, object]:
    """All that decides the embeddings."""
    return {
        "weights_sha256": state_sha256(getattr(model, "_orig_mod", model)),
        **vars(features),
        "fast": settings.fast,
        "images": images.digest,
        "pixel_range": images.pixel_range,
        **({"reader": images.reader} if images.reader else {}),
        "versions": library_versions() | {"cgh-models": __version__},
    }


def _embedded(
    model: nn.Module, embedder: Embedder, parts: "_Parts", workers: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """For each batch the number of images that are behind it then, and what was found of them."""
    images = parts.images
    plain: nn.Module = getattr(model, "_orig_mod", model)
    dataset = EvalDataset(images, eval_transform(plain), substitute=False, describe=True)
    start = behind = parts.done()
    left = np.arange(start, len(images))
    size = embedder.batch_size
    with contextlib.closing(eval_samples(dataset, left, size, workers, "skip")) as batches:
        for batch in batches:
            pixels, facts, sha256 = batch.tensors
            batches_done = (int(batch.indices[-1]) - start) // size + 1  # one may be bad throughout
            behind = min(start + size * batches_done, len(images))
            part = {"index": batch.indices, "facts": facts.numpy(), "sha256": sha256.numpy()}
            yield behind, part | {"embedding": embedder.embed(pixels).cpu().numpy()}
    if behind < len(images):
        yield len(images), {"index": np.empty(0, np.int64)}


class _Parts:
    """The batches that are done, one file each, called after the number of images behind it."""

    def __init__(self, folder: Path, images: ImageSet):
        self.folder = folder
        self.images = images

    def begin(self, about: dict[str, object]) -> None:
        """Makes the folder, or takes one that was begun with the same weights, images, settings."""
        with os_error_as(InputError, self.folder, "cannot be made", "give another --out"):
            self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / _SETTINGS
        if not described.exists():
            files.write_json(described, about)
        before = files.read_json(described, "what embeddings were begun with")
        differing = [key for key in about if before.get(key) != about[key]]
        if differing:
            what = f"{printable(self.folder)}: was begun with other {', '.join(differing)}"
            raise InputError(f"{what}; remove it to begin anew, or give another --out")
        self._record_left_out()

    def _record_left_out(self) -> None:
        """Counts the images that an earlier run could not read."""
        left_out = set(range(self.done()))
        for part in self.read("index"):
            left_out -= set(part["index"].tolist())
        for index in sorted(left_out):
            reason = self.images.why_bad(index) or "could not be read when it was its turn"
            self.images.record_bad_files([BadFile(index, reason)])

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"))

    def done(self) -> int:
        """How many images are behind the last part."""
        paths = self.paths()
        return int(paths[-1].stem) if paths else 0

    def write(self, behind: int, part: dict[str, np.ndarray], dtype: str) -> None:
        """Keeps a part. Raises InputError for embeddings that are not finite."""
        if "embedding" in part:
            exact = part["embedding"]
            with np.errstate(over="ignore"):
                part["embedding"] = exact.astype(dtype)
            if not np.isfinite(part["embedding"]).all():
                advice = "give other weights, these diverged in training"
                if np.isfinite(exact).all():
                    advice = f"give --dtype float32, {dtype} ends at {np.finfo(dtype).max}"
                raise InputError(f"the embeddings are not finite; {advice}")
        path = self.folder / f"{behind:012}.npz"
        with files.atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **part)  # pyright: ignore[reportArgumentType]

    def read(self, *names: str, until: Until = iter) -> Iterator[dict[str, np.ndarray]]:
        """These arrays of the parts, in order. Raises Interrupted if ``until`` ended early."""
        paths = self.paths()
        count = 0
        for path in until(iter(paths)):
            count += 1
            try:
                with np.load(path) as part:
                    arrays = {name: part[name] for name in names if len(part["index"])}
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                what = f"damaged ({printable(error)[:80]}); remove it and all that follow"
                raise IntegrityError(f"{printable(path)}: {what}") from error
            if arrays:
                yield arrays
        if count < len(paths):
            kept = f"{printable(self.folder)}: all images are embedded, not yet joined to a file"
            raise Interrupted(f"{kept}; the same command goes on")
