"""Labels of images that stand in a table, beside the images."""

import csv
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.file_names import split_of
from ..data.image_set import ImageSet, load
from ..data.listing import splits_among
from ..data.path_list import read_text
from ..errors import InputError, printable, say
from .splits import subset

_WHOLE = "[+-]?[0-9]+"


class _Row(NamedTuple):
    place: str  # file and line, for messages
    cells: dict[str, str]  # by column

    def wrong(self, column: str, problem: str) -> InputError:
        given = printable(repr(self.cells[column]))[:80]
        return InputError(f"{self.place}, column {printable(column)}, {given}: {problem}")


def load_labelled(
    data: str, labels: str, follow_links: bool = False, **how: Any
) -> tuple[ImageSet, ImageSet]:
    """The train and val images of ``data`` that a table has labels of, read ``how`` `load` does.

    The table (CSV, its first row names the columns) has in the first column, or in ``file`` or
    ``path``, the images, by path from the root of the set; in ``split``, train or val, unless the
    folders say it; in the others, labels. What these hold decides what is measured:

    - several columns of 0 and 1: what each image has (mean average precision, mAP)
    - one column of words or whole numbers: its class (accuracy)
    - other numbers, in one column or more: quantities, 23.0 too (R2)

    Sets of classes have ``labels`` (N,), the others ``labels`` (N, columns), float64, and the
    columns' names as their ``classes``.

    Raises InputError, which names file, line and column, for what is none of these.
    """
    images = load(data, follow_links, splits=True, **how)
    images.report_skipped()
    rows = _read(Path(labels))
    file = next((column for column in rows[0].cells if column.casefold() in ("file", "path")), "")
    file = file or next(iter(rows[0].cells))
    split = next((column for column in rows[0].cells if column.casefold() == "split"), "split")
    columns = [column for column in rows[0].cells if column not in (file, split)]
    if not columns:
        raise InputError(f"{printable(labels)}: no column of labels; expected one beside {file}")
    found = _found(rows, file, split, images)
    chosen = [index for split in ("train", "val") for index in sorted(found[split])]
    kept = [(found["train"] | found["val"])[index] for index in chosen]
    values, names = _values(kept, columns)
    count = len(found["train"])
    _check_splits(values, count, kept, columns)
    train, val = (
        replace(subset(images, np.array(chosen[part])), labels=values[part], classes=names)
        for part in (slice(count), slice(count, None))
    )
    kinds = {"accuracy": "classes (accuracy)", "map": "0 and 1 of several (mAP)"}
    kind = kinds.get(metric_of(train), "quantities (R2)")
    counts = f"{len(train)} images to train on, {len(val)} to measure, {len(images)} in all"
    say(f"{printable(labels)}: the labels are {kind}; {counts}")
    return train, val


def _check_splits(values: np.ndarray, count: int, rows: list[_Row], columns: list[str]) -> None:
    """Raises InputError unless the first ``count`` rows, of train, and the others, of val, agree:
    in the classes that they have, in being 0 and 1 or quantities.
    """
    if values.ndim == 1:
        for place in np.flatnonzero(~np.isin(values[count:], values[:count])):
            problem = "is the class of no image of train; leave the line out"
            if re.fullmatch(_WHOLE, rows[count + place].cells[columns[0]]):
                problem += ", or write quantities as 44.0"
            raise rows[count + place].wrong(columns[0], problem)
        return
    outside = ~np.isin(values, (0, 1))
    if len(columns) > 1 and outside[:count].any() != outside[count:].any():
        place, number = np.argwhere(outside)[0]
        other = "val" if place < count else "train"
        expected = f"expected 0 or 1, as in all lines of {other}, or other numbers there too"
        raise rows[place].wrong(columns[number], expected)


def metric_of(images: ImageSet) -> str:
    """accuracy, map or r2: how well the labels of such a set are found."""
    labels = images.labels
    assert labels is not None
    if labels.ndim == 1:
        return "accuracy"
    return "map" if labels.shape[1] > 1 and np.isin(labels, (0, 1)).all() else "r2"


def _read(path: Path) -> list[_Row]:
    """The rows below the first, which names the columns."""
    if not path.is_file():
        raise InputError(f"--labels {printable(path)}: no such file; give a table of labels")
    text = read_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(text.splitlines(True), delimiter=delimiter, skipinitialspace=True)
    header: list[str] = []
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            place = f"{printable(path)}: line {reader.line_num}"
            if len(cells) != len(header) and header and any(cells):
                what = f"{len(cells)} cells, expected {len(header)} as in the first line"
                raise InputError(f"{place}: {what}; mend it")
            if header and any(cells):
                rows.append(_Row(place, dict(zip(header, cells, strict=True))))
            header = header or cells
    except csv.Error as error:
        raise InputError(f"{printable(path)}: line {reader.line_num}: {error}; mend it") from error
    if len(set(header)) < len(header):
        raise InputError(f"{printable(path)}: line 1 names a column twice; give each another name")
    if not rows:
        expected = "expected a first line such as file,label and a line for each image"
        raise InputError(f"{printable(path)}: no labels; {expected}")
    return rows


def _found(
    rows: list[_Row], file: str, of_split: str, images: ImageSet
) -> dict[str, dict[int, _Row]]:
    """The rows of train, val and test, by the index of the image."""
    index_of = {name: index for index, name in enumerate(images.names)}
    shared, folders = splits_among(images.names)
    found: dict[str, dict[int, _Row]] = {"train": {}, "val": {}, "test": {}}
    for row in rows:
        name = os.path.normpath(row.cells[file])
        if name not in index_of:
            example = printable(images.names[0])
            problem = f"no such image in {printable(images.place)}, as {example} is one"
            raise row.wrong(file, problem)
        index = index_of[name]
        if any(index in rows_of for rows_of in found.values()):
            raise row.wrong(file, "is named again; give it one line")
        folder = folders.get(name[len(shared) :].partition("/")[0], "")
        split = split_of(row.cells.get(of_split, folder))
        if not split:
            column = of_split if of_split in row.cells else file
            raise row.wrong(column, "expected train or val, in a column split or as folders")
        found[split][index] = row
    for split in ("train", "val"):
        if not found[split]:
            give = f"give lines of images in {split}/, or with {split} in a column split"
            raise InputError(f"{rows[0].place}: neither it nor a later one is of {split}; {give}")
    return found


def _values(rows: list[_Row], columns: list[str]) -> tuple[np.ndarray, list[str]]:
    """Classes (N,) and their names, or numbers (N, columns) and the columns' names."""
    for row in rows:
        for column in columns:
            if not row.cells[column]:
                raise row.wrong(column, "is empty; give a label, or leave the line out")
    numbers = np.array([[_number(row.cells[column]) for column in columns] for row in rows])
    if len(columns) == 1:
        words = [row.cells[columns[0]] for row in rows]
        whole = [re.fullmatch(_WHOLE, word) is not None for word in words]
        if (np.isnan(numbers[:, 0]) | whole).all():
            classes = sorted(set(words))
            return np.searchsorted(classes, words), classes
    for place, number in np.argwhere(np.isnan(numbers)):
        expected = "a number, as in other lines" if len(columns) == 1 else "0 or 1, or quantities"
        raise rows[place].wrong(columns[number], f"expected {expected}")
    return numbers, columns


def _number(cell: str) -> float:
    """A finite number; NaN if it is none."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
