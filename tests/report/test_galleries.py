"""Rows of neighbours are exact; a map holds a point, a name and a thumbnail for each image."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.evaluate.neighbours import nearest
from cgh_models.report import galleries


def test_the_nearest_are_those_of_all_cosines_sorted():
    rng = np.random.default_rng(0)
    memory, queries = rng.normal(size=(300, 16)), rng.normal(size=(7, 16))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (memory, queries)]
    cosines = unit[1] @ unit[0].T
    indices, found = nearest(memory.astype(np.float32), queries.astype(np.float32), 9)
    assert (indices == (-cosines).argsort(1)[:, :9]).all()
    np.testing.assert_allclose(found, -np.sort(-cosines)[:, :9], atol=1e-6)
    assert nearest(memory.astype(np.float32), queries.astype(np.float32), 999)[0].shape == (7, 300)


def test_an_image_is_no_neighbour_of_itself_however_many_are_equal_to_it():
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.normal(size=(4, 8)), 12, axis=0).astype(np.float32)  # 12 equal ones each
    queries = np.arange(48)
    indices, cosines = galleries.neighbour_rows(rows, queries, 5)
    assert indices.shape == cosines.shape == (48, 5)
    assert (indices != queries[:, None]).all() and (indices // 12 == queries[:, None] // 12).all()
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert galleries.neighbour_rows(rows[:3], np.array([2]), 8)[0].tolist() == [[0, 1]]


def test_a_map_has_a_point_a_name_a_class_and_a_thumbnail_for_each_image(image_root):
    images = load(image_root / "val")
    indices = np.array([3, 0, 19])
    points = np.array([[0.1, 0.2], [0.25, 0.5], [1, 0]])
    data = galleries.map_points(images, indices, {"before": points, "after": points[::-1]})
    assert [one["title"] for one in data["maps"]] == ["before", "after"]
    assert data["maps"][1]["points"] == points[::-1].tolist()
    assert data["names"] == [images.names[index] for index in indices]
    assert data["labels"] == images.labels[indices].tolist() and data["classes"] == images.classes
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sheet"]["src"].partition(",")[2])))
    side, columns = data["sheet"]["side"], data["sheet"]["columns"]
    assert data["sheet"]["count"] == 3 and sheet.width == columns * side
    for place, index in enumerate(indices):  # each thumbnail lies where the page looks for it
        row, column = divmod(place, columns)
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        found = np.asarray(sheet.convert("RGB").crop(box), float).mean((0, 1))
        np.testing.assert_allclose(found, np.asarray(images.image(index)).mean((0, 1)), atol=6)


def test_a_large_map_is_a_sample_and_a_large_sheet_holds_fewer_thumbnails(image_root, monkeypatch):
    images = load(image_root / "val")
    monkeypatch.setattr(galleries, "MOST_POINTS", 12)
    monkeypatch.setattr(galleries, "_SHEET_BYTES", 2000)
    indices = np.arange(20)
    points = np.stack([indices / 20, indices / 40], 1)
    data = galleries.map_points(images, indices, {"": points})
    shown = [images.names.index(name) for name in data["names"]]
    assert len(shown) == 12 and data["maps"][0]["points"] == points[shown].round(3).tolist()
    assert 0 < data["sheet"]["count"] < 12
    assert galleries.map_points(images, indices, {"": points}) == data


def test_pictures_of_another_class_are_marked(image_root):
    images = load(image_root / "val")
    addresses = galleries.pictures(images, [0, 1, 19], 16)
    assert sorted(addresses) == [0, 1, 19]
    query, same, other = [
        galleries.picture_of_set(images, i, addresses, "n", of=0) for i in (0, 1, 19)
    ]
    assert (same["differs"], other["differs"]) == (False, True)
    assert query["label"] == images.classes[0] and other["name"] == images.names[19]


def test_one_image_has_no_neighbours_and_that_is_a_sentence():
    with pytest.raises(InputError, match="images to compare: 1; give --data two or more"):
        galleries.neighbour_rows(np.ones((1, 4), np.float32), np.array([0]), 3)
    indices, _ = galleries.neighbour_rows(np.eye(2, 4, dtype=np.float32), np.array([0]), 3)
    assert indices.tolist() == [[1]]
