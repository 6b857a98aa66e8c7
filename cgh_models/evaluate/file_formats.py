"""The files that embeddings are written to: parquet, npz, npy and csv, a part at a time."""

import csv
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..data.image_set import ImageSet
from ..errors import InputError, printable
from ..files import atomic

_GROUP_BYTES = 2**25  # of the embeddings in a row group of parquet
Part = dict[str, np.ndarray]


@dataclass(frozen=True)
class Content:
    """What is written: a row for each image, in the order of the set."""

    images: ImageSet
    count: int
    shape: tuple[int, ...]  # of an embedding
    dtype: np.dtype
    about: dict[str, object]  # weights, images and settings
    # of "index" (n,), "facts" (n, 3), "sha256" (n, 32) and "embedding" (n, ...) those asked for
    parts: Callable[..., Iterator[Part]]

    def columns(self, part: Part) -> dict[str, list[object]]:
        """All but the embeddings, by name."""
        images, indices = self.images, part["index"]
        columns: dict[str, list[object]] = {"path": [printable(images.names[i]) for i in indices]}
        if images.labels is not None:
            columns["label"] = [printable(images.classes[images.labels[i]]) for i in indices]
        facts = zip(("width", "height", "bytes"), part["facts"].T.tolist(), strict=True)
        return columns | dict(facts) | {"sha256": [row.tobytes().hex() for row in part["sha256"]]}


def check_format(path: Path, dense: bool) -> None:
    """Raises InputError unless the file's name says a format that can be written here."""
    name = printable(path)
    if path.suffix not in _WRITERS:
        raise InputError(f"--out {name}: expected a name that ends in {', '.join(_WRITERS)}")
    if path.suffix == ".csv" and dense:
        raise InputError(f"--out {name}: maps are too large for text; give a name in .parquet")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            advice = "type pip install '.[embed]', or give a name that ends in .npz"
            raise InputError(f"--out {name}: pyarrow is not installed; {advice}") from error


def write_file(path: Path, content: Content) -> None:
    """Writes the file atomically, in the format that its name ends in."""
    if path.suffix == ".npy":
        with atomic(path.with_name(f"{path.name}.paths.txt")) as temporary:
            lines = (f"{name}\n" for columns in _columns(content) for name in columns["path"])
            temporary.write_text("".join(lines), "utf-8")
    size = content.count * math.prod(content.shape) * content.dtype.itemsize
    with atomic(path, size) as temporary:
        _WRITERS[path.suffix](temporary, content)


def _write_parquet(path: Path, content: Content) -> None:
    import pyarrow
    from pyarrow import parquet

    width = math.prod(content.shape)
    kinds = {"width": pyarrow.int32(), "height": pyarrow.int32(), "bytes": pyarrow.int64()}
    names = ["path", *(["label"] * (content.images.labels is not None)), *kinds, "sha256"]
    fields = [pyarrow.field(name, kinds.get(name, pyarrow.string())) for name in names]
    vector = pyarrow.list_(pyarrow.from_numpy_dtype(content.dtype), width)
    about = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in (content.about | {"shape": content.shape}).items()
    }
    schema = pyarrow.schema([*fields, pyarrow.field("embedding", vector)], metadata=about)
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _in_groups(content):
            columns = content.columns(part)
            flat = pyarrow.array(part["embedding"].reshape(-1))
            arrays = [pyarrow.array(columns[field.name], field.type) for field in fields]
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _in_groups(content: Content) -> Iterator[Part]:
    """The parts, small ones put together."""
    group: list[Part] = []
    for part in content.parts("index", "facts", "sha256", "embedding"):
        group.append(part)
        if sum(part["embedding"].nbytes for part in group) >= _GROUP_BYTES:
            yield _concatenated(group)
            group = []
    if group:
        yield _concatenated(group)


def _concatenated(parts: list[Part]) -> Part:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_npy(path: Path, content: Content) -> None:
    with open(path, "wb") as file:
        _write_matrix(file, content)


def _write_matrix(file: IO[bytes], content: Content) -> None:
    _write_header(file, content.dtype, (content.count, *content.shape))
    for part in content.parts("embedding"):
        file.write(part["embedding"].tobytes())


def _write_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


def _write_npz(path: Path, content: Content) -> None:
    """An archive of arrays without pickle: texts have the width of the longest."""
    dtypes: dict[str, np.dtype] = {}
    for columns in _columns(content):
        for name, values in columns.items():
            found = np.array(values).dtype
            dtypes[name] = np.promote_types(dtypes.get(name, found), found)
    with zipfile.ZipFile(path, "w") as archive:

        def member(name: str) -> IO[bytes]:
            return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

        with member("embedding") as file:
            _write_matrix(file, content)
        for name, dtype in dtypes.items():
            with member(name) as file:
                _write_header(file, dtype, (content.count,))
                for columns in _columns(content):
                    file.write(np.array(columns[name], dtype).tobytes())
        with member("about") as file:
            np.lib.format.write_array(file, np.array(json.dumps(content.about)))


def _columns(content: Content) -> Iterator[dict[str, list[object]]]:
    for part in content.parts("index", "facts", "sha256"):
        yield content.columns(part)


def _write_csv(path: Path, content: Content) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for number, part in enumerate(content.parts("index", "facts", "sha256", "embedding")):
            columns = content.columns(part)
            if not number:
                width = math.prod(content.shape)
                writer.writerow([*columns, *(f"embedding_{place}" for place in range(width))])
            numbers = part["embedding"].astype(str).tolist()  # the shortest that give it back
            for facts, row in zip(zip(*columns.values(), strict=True), numbers, strict=True):
                writer.writerow([*facts, *row])


_WRITERS = {".parquet": _write_parquet, ".npz": _write_npz, ".npy": _write_npy, ".csv": _write_csv}
