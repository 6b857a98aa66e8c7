"""What a name of images stands for, beside a folder and a list: archives, datasets, addresses."""

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, printable, say
from . import hf_datasets, listing
from .archive import GIVEN, Archive, below
from .archives import open_tars, open_zips
from .file_cache import Cache, CachedFile, called, is_address, listed, unpacked
from .file_names import PATTERN, container, expanded, is_hidden, split_of, why_hidden
from .formats import EXTENSIONS
from .parquet import Table, open_parquet
from .path_list import Row, has_addresses, is_list, named_files, open_list, open_rows, read_list
from .walk import Walked, walk

# timm's readers that go through a set in an order of their own.
_UNORDERED = ("hfids/", "tfds/", "wds/")
_BESIDE_PARQUET = {".md", ".json", ".txt"}  # files that the Hub's datasets have, too
Endings = Collection[str] | None  # of images; None: a reader takes all files
Opened = Archive | list[Table]


class Found(NamedTuple):
    """What a set of images is."""

    source: str  # as in `ImageSet`
    root: Path
    names: Sequence[str]
    labels: np.ndarray | None  # (N,)
    classes: list[str]
    skipped: Counter[str]
    archive: Archive | None = None  # None: they are files below the root
    is_folder: bool = False  # its folders may be splits
    walked: Walked | None = None  # None: it is no folder of files


def find_images(
    data: Any,
    follow_links: bool,
    cache: Cache,
    endings: Endings = EXTENSIONS,
    to_8_bits: bool = True,
    lister: Callable[[Path, bool, Endings], Walked] = walk,
) -> Found:
    """The images of a path, another name or a Python object. Raises InputError.

    Images in a folder, which ``lister`` lists, have ``endings``. ``to_8_bits`` as in `open_object`.
    """
    is_table = hasattr(data, "select_columns") and hasattr(data, "__len__")
    if is_table and not isinstance(data, Mapping):  # a datasets.Dataset, and no DatasetDict
        return _of_archive(hf_datasets.open_dataset(data, f"{GIVEN}{type(data).__name__}"), False)
    if not isinstance(data, (str, os.PathLike)):
        from .python_images import open_object, paths_of  # imported late: torch takes seconds

        if paths := paths_of(data):
            return Found(f"{GIVEN}paths", Path(os.sep), paths, None, [], Counter())
        return _of_archive(open_object(data, to_8_bits), False)
    data, split = _split_asked(data)
    path = Path(data)
    if os.path.isfile(path):
        listing.refuse_compressed(path)
    source = _full_name(data, split)
    opened = _open_named(data, split, cache, endings)
    if isinstance(opened, Archive):
        opened.source = opened.source or source
        return _of_archive(opened, not split and not opened.is_list)
    if opened:  # tables that name files
        home = path if os.path.isdir(path) else path.parent
        names, of_rows, skipped = named_files(home / path.name, _rows_of(opened), split)
    elif os.path.isdir(path):
        home = listing.find_split(path, split) if split else path
        walked = lister(home, follow_links, endings)
        index = (walked.names, *listing.class_folders(walked.names), walked.skipped)
        return Found(source, home, *index, None, not split, walked)
    elif os.path.isfile(path):
        return _of_list(path, split, source, cache)
    else:
        what = f"{printable(path)}: there is no such folder or list"
        raise InputError(f"{what}; give --data a folder of images")
    return Found(source, home, names, *listing.numbered(of_rows), skipped)


def _rows_of(tables: list[Table]) -> list[Row]:
    return [row for table in tables for row in zip(*table[:3], strict=True)]


def _of_list(path: Path, split: str, source: str, cache: Cache) -> Found:
    try:
        names, of_rows, skipped = read_list(path, split)
    except InputError:
        if not has_addresses(path):
            raise
        archive = open_list(path, split, cache)
        return _of_archive(dataclasses.replace(archive, source=source), False)
    return Found(source, path.parent, names, *listing.numbered(of_rows), skipped)


def _of_archive(archive: Archive, is_folder: bool) -> Found:
    classes = archive.classes if len(archive.classes) > 1 else []
    labels = archive.labels if classes else None
    index = (archive.names, labels, classes, archive.skipped, archive, is_folder)
    return Found(archive.source, Path(archive.root), *index)


def _split_asked(data: Any) -> tuple[Any, str]:
    """``NAME`` and ``SPLIT`` of NAME:SPLIT, where NAME may be there and NAME:SPLIT is not."""
    found = re.fullmatch(r"(.+):([A-Za-z][\w-]*)", str(data), re.DOTALL)
    if found is None or os.path.exists(data) or str(data).startswith(("hfds/", GIVEN)):
        return data, ""
    name = found[1]
    known = os.path.exists(name) or is_address(name) or PATTERN.search(name)
    return (name, found[2]) if known else (data, "")


def _full_name(name: Any, split: str) -> str:
    """What finds the same from any folder."""
    text = str(name)
    if os.path.exists(name):
        text = str(Path(name).resolve())
    elif not is_address(text) and not text.startswith("hfds/"):
        text = os.path.abspath(text)
    return f"{text}:{split}" if split else text


def _open_named(data: Any, split: str, cache: Cache, endings: Endings) -> Opened | None:
    """What is no folder of files and no list: an archive, or tables that name files."""
    text = str(data)
    exists = os.path.exists(data)
    if text.startswith(GIVEN) and not exists:
        what = f"{printable(text)}: these images were given in Python"
        how = "pretrain(method, the same images, config, run_dir, resume=True)"
        raise InputError(f"{what}, and only there a run goes on with them: {how}")
    if text.startswith("hfds/") and not exists:
        return hf_datasets.open_hub_dataset(text)
    if text.startswith(_UNORDERED) and not exists:
        what = f"{printable(text)}: gives its images in an order that no run could resume"
        raise InputError(f"{what}; give a folder, a tar archive or hfds/NAME")
    if is_address(text) and not exists:
        return _open_address(text, split, cache, endings)
    if hf_datasets.is_saved(data):
        return hf_datasets.open_saved(Path(data).resolve(), split)
    files: list[Path] = []
    if exists:
        home = Path.cwd() if Path(data) == Path() else Path(data)
        text = str(home)  # without ./ and a slash at its end
        is_file = [home] if container(text) else []
        files = _only_containers(home) if os.path.isdir(home) else is_file
    elif PATTERN.search(text):
        text = os.path.abspath(text)
        for pattern in expanded(text):
            matches = sorted(glob.glob(pattern))
            if not matches:
                what = f"{printable(pattern)}: there is no such file"
                raise InputError(f"{what}; put it there, or mend the pattern of --data")
            files += map(Path, matches)
        text = os.path.dirname(re.split(PATTERN, text)[0])
    if not files:
        return None
    opened = _open_files(text, files, cache, endings)
    return _of_split(opened, split) if isinstance(opened, Archive) else opened


def splits_of(root: Any) -> dict[str, str] | None:
    """The names of train and val in what holds both; None if they are folders or files in it."""
    text = str(root)
    splits = ("train", "val")
    if text.startswith("hfds/") and not os.path.exists(root):
        names = hf_datasets.hub_splits(text)
        return {split: f"{text}:{listing.pick_split(names, split, text)}" for split in splits}
    if os.path.isdir(root) and not hf_datasets.is_saved(root):
        files = _only_containers(Path(root))
        kinds = {container(file.name) for file in files}
        if kinds != {"parquet"} or any(split_of(file.name) for file in files):
            return None
    elif not (os.path.exists(root) or is_address(text) or PATTERN.search(text)):
        return None
    return {split: f"{text}:{split}" for split in splits}


def _only_containers(path: Path) -> list[Path]:
    """The tars, zips or parquet files of a folder of nothing else; it may have other millions."""
    files: list[Path] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name) or Path(entry).suffix in _BESIDE_PARQUET:
                    continue
                if not container(entry.name) or not entry.is_file():
                    return []
                files.append(Path(entry))
    except OSError:  # no folder, or one that cannot be read: whoever reads it as a folder says so
        return []
    return sorted(files)


def _open_address(text: str, split: str, cache: Cache, endings: Endings) -> Archive:
    _refuse_reader(text, endings)
    files: list[CachedFile] = []
    root = ""
    for address in expanded(text):
        root, found = listed(address, cache)
        files += found
    if re.search("[*{]", text):
        root = re.split("[*{]", text)[0].rpartition("/")[0]
        root = called(root) if is_address(root) else root
    is_folder = str(files[0]) != root
    by_name = {below(root, file): file for file in files}
    if is_folder and hf_datasets.has_saved(by_name):
        return hf_datasets.open_saved_at(root, by_name, split, cache)
    if not is_folder and is_list(root):
        return open_list(files[0], split, cache)
    if split and is_folder:
        entries = {below(root, file).partition("/")[0] for file in files}
        if any(split_of(entry) for entry in entries):
            root = f"{root}/{listing.pick_split(sorted(entries), split, text)}"
            files = [file for file in files if f"{file}/".startswith(f"{root}/")]
            split = ""
    names = [below(root, file) for file in files]
    visible = [file for file, name in zip(files, names, strict=True) if not why_hidden(name, "")]
    shown = [file for file in visible if Path(str(file)).suffix not in _BESIDE_PARQUET]
    if all(map(_kind, shown)) or not is_folder:
        opened = _open_files(root, shown, cache, endings)
        if isinstance(opened, Archive):
            return _of_split(opened, split)
        home = root if is_folder else root.rpartition("/")[0]
        return open_rows(root, home, _rows_of(opened), split, cache)
    return _open_folder(root, dict(zip(names, files, strict=True)), endings or ())


def _refuse_reader(text: str, endings: Endings) -> None:
    if endings is None:
        raise InputError(f"--reader: takes paths of files; unpack {printable(text)} into a folder")


def _kind(file: Path | CachedFile) -> str:
    text = str(file)
    return container(text.partition("?")[0] if is_address(text) else text)


def _open_files(root: str, files: list[Any], cache: Cache, endings: Endings) -> Opened:
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or kinds == {""}:
        found = ", ".join(sorted(kind or "other" for kind in kinds))
        what = f"{printable(root)}: holds {found} files"
        expected = "give .tar, .tar.gz, .zip or .parquet files, all of one kind"
        raise InputError(f"{what}; {expected}, or a list that ends in .txt, .csv or .tsv")
    kind = kinds.pop()
    if kind == "parquet":
        return open_parquet(root, files)  # it may name files
    _refuse_reader(root, endings)
    if kind == "zip":
        return open_zips(root, files, endings or ())
    if kind == "tar.gz":
        files = [unpacked(file, cache) for file in files]
    return open_tars(root, files, endings or ())


def _open_folder(root: str, files: dict[str, CachedFile], endings: Collection[str]) -> Archive:
    """The images of a folder at an address, with the digest that it has on a disk."""
    skipped: Counter[str] = Counter()
    kept = {}
    for name, file in sorted(files.items()):
        ending = os.path.splitext(name)[1].lower()
        kind = why_hidden(name, "") or ("" if ending in endings else ending or "no extension")
        if kind:
            skipped[kind] += 1
        else:
            kept[name] = file
    names = list(kept)
    digest = listing.digest_of(names, [file.size for file in kept.values()])
    index = (names, *listing.class_folders(names), digest, list(kept.values()))
    return Archive(root, *index, CachedFile.open, skipped)


def _of_split(found: Archive, split: str) -> Archive:
    if not split:
        names = sorted({*found.splits} if found.splits else ())
        if len(names) > 1:
            shown = printable(", ".join(names))[:80]
            say(f"{printable(found.root)}: has the splits {shown}; all are taken")
        return found
    if found.splits is None:
        shared, _ = listing.splits_among(found.names)
        found.splits = [name[len(shared) :].partition("/")[0] for name in found.names]
    return found.part(listing.pick_split(sorted({*found.splits}), split, found.root))
