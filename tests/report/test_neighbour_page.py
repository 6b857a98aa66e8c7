"""The page of neighbours says what is in the embeddings, and a browser draws all of it."""

import base64
import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from browser import look, needs_browser
from conftest import make_images

from cgh_models.backbone import create
from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.evaluate import extract
from cgh_models.evaluate.neighbours import groups
from cgh_models.evaluate.protocols import EvalSettings
from cgh_models.report import galleries
from cgh_models.report.neighbour_page import Asked, write_neighbours

SETTINGS = EvalSettings(workers=0, device="cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """120 images; the first of class1 lies there four times, one of class2 a second time."""
    root = tmp_path_factory.mktemp("set") / "<b>set"
    make_images(root, 120)
    for copy in ("copy1", "copy2", "copy3"):
        shutil.copy(root / "class1" / "00001.png", root / "class1" / f"{copy}.png")
    shutil.copy(root / "class2" / "00002.png", root / "class3" / "mislabelled.png")
    return root


@pytest.fixture(scope="module")
def page(images, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page.html"
    numbers = write_neighbours(
        model, load(images), out, SETTINGS, Asked(count=6, k=5, same=0.99999), "mine"
    )
    return out, numbers


def rows_of(text: str) -> list[list[dict]]:
    """The rows of images on a page: (classes of the figure, name, note) of each."""
    rows = []
    for row in re.findall(r'<div class="row">(.*?)</div>', text, re.S):
        found = r'<figure class="(.*?)">.*?alt="(.*?)".*?<figcaption>(?:<b>(.*?)</b>)?'
        rows.append([tuple(map(html.unescape, one)) for one in re.findall(found, row, re.S)])
    return rows


def test_groups_are_the_chains_of_similar_pairs():
    angles = np.deg2rad([0, 90, 5, 10, 200, 94, 300])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32) * 3
    found = groups(rows, np.cos(np.deg2rad(6)))
    assert [group.tolist() for group in found] == [[0, 2, 3], [1, 5]]
    equal = groups(np.ones((500, 8), np.float32), 1.0)
    assert [group.tolist() for group in equal] in ([list(range(500))], [])  # rounding may say none
    assert groups(np.eye(5, dtype=np.float32), 0.5) == []


def test_queries_have_their_nearest_in_order_with_their_similarity(page, images, model):
    rows, names = extract(model, images, workers=0, return_names=True)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shown = rows_of(page[0].read_text())[:6]
    for (kind, name, note), *near in shown:
        assert (kind.strip(), note) == ("query", "")
        cosines = unit @ unit[names.index(name)]
        cosines[names.index(name)] = -1
        expected = np.sort(cosines)[::-1][:5]
        assert [float(note) for _, _, note in near] == pytest.approx(expected, abs=6e-4)
        for marks, other, _ in near:
            assert ("differs" in marks) == (other.split("/")[0] != name.split("/")[0])


def test_copies_are_near_duplicates_and_an_image_unlike_all_others_is_an_outlier(
    page, model, tmp_path
):
    out, numbers = page
    rows = rows_of(out.read_text())
    assert (numbers["groups"], numbers["in_groups"]) == (2, 6) and len(rows) == 9
    largest, mislabelled = ([name for _, name, _ in row] for row in rows[6:8])
    assert sorted(largest) == [
        "class1/00001.png",
        *(f"class1/copy{number}.png" for number in (1, 2, 3)),
    ]
    assert mislabelled == ["class2/00002.png", "class3/mislabelled.png"]
    assert "differs" in rows[7][1][0]  # that its class is another one
    make_images(tmp_path / "odd", 40, classes=1)
    make_images(tmp_path / "other", 3, classes=3, seed=5)
    shutil.move(
        tmp_path / "other" / "class2" / "00002.png", tmp_path / "odd" / "class0" / "odd.png"
    )
    found = write_neighbours(
        model, load(tmp_path / "odd" / "class0"), tmp_path / "p.html", SETTINGS, Asked()
    )
    assert found["outliers"][0] == "odd.png" and found["same_class"] is None


def test_files_that_are_given_are_the_queries(model, images, tmp_path):
    (inside, outside) = images / "class1" / "00001.png", tmp_path / "outside.png"
    shutil.copy(images / "class2" / "00006.png", outside)
    asked = Asked((str(inside), str(outside)), k=3)
    write_neighbours(model, load(images), tmp_path / "p.html", SETTINGS, asked)
    of_inside, of_outside = rows_of((tmp_path / "p.html").read_text())[:2]
    assert of_inside[0][1] == str(inside) and of_outside[0][1] == str(outside)
    assert sorted(name for _, name, _ in of_inside[1:]) == [
        f"class1/copy{number}.png" for number in (1, 2, 3)
    ]  # not itself
    assert of_outside[1][1:] == ("class2/00006.png", "1.000")
    with pytest.raises(InputError, match="no such file"):
        write_neighbours(model, load(images), tmp_path / "p.html", SETTINGS, Asked(("absent.png",)))


def test_a_bad_image_is_left_out_and_what_remains_keeps_its_name_and_class(model, tmp_path):
    make_images(tmp_path / "set", 200)
    (tmp_path / "set" / "class0" / "00000.png").write_bytes(b"none")
    asked = Asked(count=200, k=1)
    found = write_neighbours(model, load(tmp_path / "set"), tmp_path / "p.html", SETTINGS, asked)
    assert (found["images"], found["left_out"]) == (199, 1)
    rows = rows_of((tmp_path / "p.html").read_text())[:199]
    assert [row[0][1] for row in rows] == load(tmp_path / "set").names[1:]


def test_what_cannot_be_is_one_sentence(model, tmp_path, monkeypatch):
    for wrong, message in (
        ({"k": 0}, "--k 0: expected at least 1"),
        ({"count": 0}, "--count 0"),
        ({"same": 1.5}, "--same 1.5: expected a cosine"),
    ):
        with pytest.raises(InputError, match=message):
            Asked(**wrong)
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(
        InputError, match="--map umap: .* pip install umap-learn, or give --map pca"
    ):
        Asked(projection="umap")
    make_images(tmp_path / "one", 1)
    with pytest.raises(InputError, match="one image; expected two or more"):
        write_neighbours(
            model, load(tmp_path / "one" / "class0"), tmp_path / "p.html", SETTINGS, Asked()
        )


def test_umap_keeps_clusters_apart():
    pytest.importorskip("umap", reason="umap-learn is not installed")
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(3, 16), 40, axis=0) + rng.normal(0, 0.05, (120, 16))
    points = galleries.project(rows.astype(np.float32), "umap").reshape(3, 40, 2)
    spread = points.std(1).max()
    centres = points.mean(1)
    assert (
        min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > spread
    )


PROBE = """
const canvas = document.querySelector("figure canvas");
const box = canvas.getBoundingClientRect();
const told = () => document.querySelector(".found p").textContent;
const inked = one => {
  const pixels = one.getContext("2d").getImageData(0, 0, one.width, one.height);
  return pixels.data.some(value => value);
};
const point = (kind, clientX, clientY) => {
  canvas.dispatchEvent(new PointerEvent(kind, {clientX, clientY}));
  return told();
};
const press = key => {
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
  return told();
};
const before = told();
const pointed = point("pointermove", box.left + 50, box.top + 50);
const right = press("ArrowRight");
const escaped = press("Escape");
const touched = point("pointerdown", box.right - 50, box.bottom - 50);
const buttons = [...document.querySelectorAll(".classes button")];
buttons.forEach(button => button.click());
const pressed = buttons.filter(button => button.getAttribute("aria-pressed") === "true");
const drawn = inked(canvas), thumbnail = inked(document.querySelector(".found canvas"));
return {before, pointed, right, escaped, touched, drawn, thumbnail,
  pressed: pressed.map(button => button.textContent)};
"""


@needs_browser
def test_a_browser_draws_the_page_at_400_and_1400_pixels_without_an_error(page, tmp_path):
    narrow, wide = look(page[0], tmp_path, probe=PROBE)
    assert (narrow["width"], wide["width"]) == (400, 1400)
    for found in (narrow, wide):
        assert found["errors"] == [] and found["links"] == [] and found["broken"] == []
        assert found["pictures"] == 6 * 6 + 6 + 24 + 1 and found["overflow"] == 0
        told = found["probe"]
        assert told["drawn"] and told["thumbnail"]
        assert told["before"] == told["escaped"] != told["pointed"] != told["right"]
        assert re.fullmatch(r"class\d: class\d/\w+\.png", told["touched"])
        assert told["pressed"] == ["pictures", "class3"]  # one class at a time


@needs_browser
def test_the_browser_would_see_what_is_wrong(page, tmp_path):
    broken = tmp_path / "broken.html"
    text = page[0].read_text().replace("<h2>Map", '<img alt="gone" src="x.png"><h2>Map', 1)
    wrong = '<script>absent()</script><div style="width: 3000px">wide</div></body>'
    broken.write_text(text.replace("</body>", wrong))
    for found in look(broken, tmp_path):
        assert found["broken"] == ["gone"] and found["overflow"] > 0
        assert any("absent" in error for error in found["errors"])


def test_names_on_the_page_cannot_be_markup(page):
    text = page[0].read_text()
    assert "<title>Neighbours in &lt;b&gt;set</title>" in text and "<b>set" not in text
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    assert len(json.loads(data)["names"]) == 124
    assert all(base64.b64decode(src) for src in re.findall('base64,([^"]+)"', text))
