"""The index of images that are no files of their own, whatever holds them."""

import contextlib
import dataclasses
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from ..errors import ERRORS, BadImage, InputError, printable

GIVEN = "python:"  # how `ImageSet.source` of images begins that were given as Python objects


def below(root: str, file: object) -> str:
    """The name of a file in a folder, both as texts or paths; "" of the folder itself."""
    return str(file)[len(root) + (root != "/") :]


def check_library(name: str, extra: str, place: str) -> None:
    """Raises InputError if the library is not installed that images in a ``place`` are read by."""
    if importlib.util.find_spec(name) is None:
        what = f"{printable(place)}: needs the {name} library"
        raise InputError(f"{what}; type `pip install '.[{extra}]'`")


def number_classes(
    labels: list[str], known: Sequence[str] = ()
) -> tuple[np.ndarray | None, list[str]]:
    """Labels (N,) and classes, which are as ``known``, or in the order of timm's reader.

    There are none if an image has no class, "".
    """
    found = {*labels}
    if "" in found:
        return None, []
    classes = list(known)
    if not found <= {*known}:
        classes = sorted(found)
        if len(classes) > 1:
            from timm.utils.misc import natural_key  # imported late: timm takes seconds

            classes.sort(key=natural_key)
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[label] for label in labels]), classes


@dataclass
class Archive:
    """Names, classes and places of images, and what opens a place."""

    root: str  # the folder or address that names are relative to, for messages
    names: Sequence[str]  # of the images, in their order
    labels: np.ndarray | None  # (N,) class of each image; None: no classes
    classes: list[str]  # fewer than two: none
    digest: str  # hex sha256 of what tells this set from others
    places: Sequence[object]  # where each image is, as `opener` takes it
    opener: Callable[[Any], AbstractContextManager[IO[bytes]]]  # workers get it, perhaps pickled
    skipped: Counter[str] = field(default_factory=Counter)  # as in `ImageSet`
    splits: list[str] | None = None  # what each image belongs to, if the set says so
    source: str = ""  # as in `ImageSet`; "": what the user gave
    is_list: bool = False  # folders in its names are no splits
    stamp: str | None = ""  # of what the digest does not say; None: only all bytes do

    def take(self, indices: Iterable[int]) -> "Archive":
        """These images alone, in this order."""
        indices = list(indices)
        return dataclasses.replace(
            self,
            names=[self.names[index] for index in indices],
            labels=None if self.labels is None else self.labels[indices],
            places=[self.places[index] for index in indices],
            splits=self.splits and [self.splits[index] for index in indices],
        )

    def part(self, split: str) -> "Archive":
        """The images of a split, with a digest of their own."""
        chosen = [index for index, name in enumerate(self.splits or ()) if name == split]
        digest = hashlib.sha256(f"{self.digest}\t{split}".encode()).hexdigest()
        return dataclasses.replace(self.take(chosen), digest=digest)

    def where(self, index: int) -> str:
        """Where an image is, for messages: a list may name it at another address than its own."""
        address = getattr(self.places[index], "of", None)
        return address if isinstance(address, str) else f"{self.root}/{self.names[index]}"

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[IO[bytes]]:
        """The bytes of an image. Raises BadImage."""
        try:
            with self.opener(self.places[index]) as file:
                yield file
        except (BadImage, *ERRORS):
            raise
        except Exception as error:  # of tarfile, zlib, pyarrow, or a user's own dataset
            raise BadImage(f"cannot be read from its archive: {printable(error)[:120]}") from error

    def content(self) -> str:
        """What is kept of images goes by it and `changed`: for a list or dataset, of all bytes."""
        if self.stamp is not None:
            return f"{self.digest}{self.stamp}"
        total = hashlib.sha256(self.digest.encode())
        for index in range(len(self.names)):
            total.update(f"{index}\n".encode())
            with contextlib.suppress(BadImage), self.open(index) as file:
                total.update(hashlib.sha256(file.read()).digest())
        return total.hexdigest()

    def changed(self, index: int) -> int:
        """As `ImageSet.changed`; 0 where `content` says all of it."""
        return getattr(self.places[index], "changed", 0)
