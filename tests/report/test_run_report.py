"""`cgh report`: what the pages say of real runs, and how they look in a browser."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from browser import look, needs_browser
from conftest import PACKAGED
from small_runs import train_run

from cgh_models.config import TrainConfig
from cgh_models.data.image_set import load
from cgh_models.data.loader import batches
from cgh_models.dataclass_json import from_dict
from cgh_models.errors import InputError
from cgh_models.evaluate.protocols import EvalSettings
from cgh_models.methods.mnclglf import tile_cosines
from cgh_models.report import before_after, method_pictures, runs
from cgh_models.report.contact_sheet import first_views, picture_of
from cgh_models.report.page import MOST_BYTES
from cgh_models.report.run_report import report, trained, untrained
from cgh_models.tensors import read_tensors
from cgh_models.view_recipes import RECIPES

SETTINGS = EvalSettings(workers=0, device="cpu")
METHODS = ("cgh", "lewel", "mnclglf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, image_root):
    """A run of four steps by each method that has pictures of its own."""
    root = tmp_path_factory.mktemp("runs")
    for name in METHODS:
        train_run(root / name, image_root, name=name)
    return {name: root / name for name in METHODS}


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    report([str(folder) for folder in folders.values()], out, settings=SETTINGS)
    return out


def text_of(page):
    return page.read_text("utf-8")


@needs_browser
def test_a_page_of_runs_works_in_a_browser_at_both_widths(page, tmp_path):
    probe = """
      const drawn = [...document.querySelectorAll("canvas")].slice(0, 4).map(canvas => {
        const {width, height} = canvas;
        return new Set(canvas.getContext("2d").getImageData(0, 0, width, height).data).size;
      });
      return {drawn, curves: document.querySelectorAll("svg").length};
    """
    narrow, wide = look(page, tmp_path, probe=probe)
    for found in (narrow, wide):
        assert (found["errors"], found["broken"], found["links"]) == ([], [], [])
        assert found["overflow"] == 0 and found["pictures"] > 100
        assert found["probe"]["curves"] >= 10 and min(found["probe"]["drawn"]) > 5  # four maps
    assert (narrow["width"], wide["width"]) == (400, 1400)


def test_the_page_is_one_file_of_at_most_five_megabytes_with_all_runs_and_their_own(page, folders):
    text = text_of(page)
    assert len(text) < MOST_BYTES and "http://" not in re.sub(
        r"<svg.*?</svg>", "", text, flags=re.S
    )
    for heading in ("Contexts of cgh", "Alignment maps of lewel", "Tiles and positives of mnclglf"):
        assert f"<h2>{heading}</h2>" in text
    for name, folder in folders.items():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        start, end = rows[0]["knn_train"], rows[-1]["knn_train"]
        assert f"kNN {start:.1f} % at the start, {end:.1f} % now" in text
        assert f"<h2>Views of {name}</h2>" in text and f"after 4 steps, {name}" in text


@pytest.mark.parametrize("name", METHODS)
def test_before_is_the_very_start_of_the_run(name, folders):
    method = untrained(runs.read(folders[name]))
    saved = read_tensors(folders[name] / "checkpoint-00000000.safetensors")
    for key, tensor in method.state_dict().items():
        assert torch.equal(saved[f"method.{key}"], tensor), key


@pytest.mark.parametrize("name", METHODS)
def test_the_views_are_those_that_the_first_step_trained_on(name, folders, image_root):
    run = runs.read(folders[name])
    images = load(image_root / "train")
    method = untrained(run)
    config = from_dict(TrainConfig, run.described["train"])
    recipe, cpu = RECIPES[method.view_recipe], torch.device("cpu")
    views, indices = first_views(config, images, recipe, before_after.QUERIES)
    trained, order = next(iter(batches(images, recipe, config, 0, run.total, cpu)))
    assert len(indices) == 6 and indices.tolist() == order[:6].tolist()
    for shown, view in zip(views, trained, strict=True):
        assert torch.allclose(shown, view[:6], atol=1e-5)


def test_a_picture_of_a_view_undoes_its_normalization():
    pixels = torch.randint(0, 256, (5, 4, 3), dtype=torch.uint8)
    mean, std = torch.tensor(TrainConfig().mean), torch.tensor(TrainConfig().std)
    view = ((pixels / 255 - mean) / std).permute(2, 0, 1)
    assert np.array_equal(np.array(picture_of(view, TrainConfig())), pixels.numpy())


def test_only_settings_that_differ_are_in_the_table(folders, tmp_path, image_root):
    first = runs.read(folders["cgh"])
    other = json.loads((folders["cgh"] / "config.json").read_text())
    other["train"] |= {"base_lr": 0.5, "device": "cuda"}
    other["method_config"]["taps"] = 1
    shutil.copytree(folders["cgh"], tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(other))
    before = first.described["train"]["base_lr"]
    assert runs.differences([first, runs.read(tmp_path / "other")]) == [
        ("base_lr", [str(before), "0.5"]),
        ("taps (method)", ["2", "1"]),
    ]
    names = [name for name, _ in runs.differences([first, runs.read(folders["lewel"])])]
    assert "method" in names and "taps (method)" not in names  # which only one of them has
    assert runs.differences([first, first]) == []


def test_a_log_is_split_into_measurements_and_steps(folders):
    run = runs.read(folders["cgh"])
    measured = run.names(measured=True)
    assert {"feature_std", "effective_rank", "knn_train", "view_match"} <= set(measured)
    steps = run.names(measured=False)
    assert {"loss", "global_to_hyper", "lr", "grad_norm"} <= set(steps)
    assert not set(steps) & {"step", "epoch", "progress", "waiting"}
    assert run.points("loss")[0] == [0.25, 0.5, 0.75, 1.0]  # epochs of four steps
    assert (run.done, run.total, run.state, run.knn) == (4, 4, "done, 4 steps", "knn_train")


def test_a_collapsed_run_is_named_and_its_sign_is_out_of_range(folders, tmp_path):
    shutil.copytree(folders["cgh"], tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(re.sub(r'"feature_std": [\d.e-]+', '"feature_std": 1e-05', log.read_text()))
    run = runs.read(tmp_path / "run")
    text, good = runs.verdict(run)
    assert text.startswith("collapsed: all images have nearly one embedding") and good is False
    (sign,) = [sign for sign in runs.signs(run) if sign["name"] == "feature_std"]
    assert (sign["now"], sign["good"]) == (1e-05, False)
    text, good = runs.verdict(runs.read(folders["cgh"]))
    assert text.startswith("not yet: kNN") and good is None


def test_without_its_images_a_run_has_curves_and_elsewhere_all_of_it(folders, tmp_path, image_root):
    shutil.copytree(folders["cgh"], tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    gone = str(tmp_path / "gone")
    described = json.loads(config.read_text())
    described["data"]["path"] = gone
    config.write_text(json.dumps(described))
    report([str(tmp_path / "run")], tmp_path / "a.html", settings=SETTINGS)
    text = text_of(tmp_path / "a.html")
    assert f"{gone}: there is no such folder" in text and "total loss" in text
    assert "<h2>Map</h2>" not in text
    data = str(image_root / "val")
    report([str(tmp_path / "run")], tmp_path / "b.html", data, settings=SETTINGS)
    text = text_of(tmp_path / "b.html")
    assert "<h2>Map</h2>" in text and "20 of 20 images" in text
    assert "these are not the images of the run" in text
    with pytest.raises(InputError, match="there is no such folder"):
        report([str(tmp_path / "run")], tmp_path / "c.html", gone, settings=SETTINGS)


def test_names_are_escaped(folders, tmp_path):
    odd = tmp_path / "<b>bold & <script>"
    shutil.copytree(folders["lewel"], odd)
    report([str(odd)], tmp_path / "page.html", settings=SETTINGS)
    text = text_of(tmp_path / "page.html")
    assert "<b>bold" not in text and "&lt;b&gt;bold &amp; &lt;script&gt;" in text


def test_a_run_that_began_with_weights_says_so(folders, tmp_path):
    shutil.copytree(folders["cgh"], tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    described = json.loads(config.read_text()) | {"init": "started from resnet18.cgh: backbone"}
    config.write_text(json.dumps(described))
    report([str(tmp_path / "run")], tmp_path / "page.html", settings=SETTINGS)
    text = text_of(tmp_path / "page.html")
    assert "run began with other weights, which are not shown" in text
    assert "started from resnet18.cgh: backbone" in text


def test_the_page_is_written_again_until_the_run_ends(folders, tmp_path, capsys):
    """Another process holds the lock, as a trainer does; meanwhile the page reloads itself."""
    run, out = folders["lewel"], tmp_path / "page.html"
    hold = (
        f"import fcntl, sys; file = open({str(run / '.cgh-lock')!r}, 'a+'); "
        "fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    assert runs.read(run).is_training
    seen = []

    original = time.sleep

    def sleep(seconds):
        seen.append("location.reload(), 500.0" in text_of(out))
        holder.communicate()
        original(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        report([str(run)], out, settings=SETTINGS, every=0.5)
    assert seen == [True] and not runs.read(run).is_training
    assert "location.reload" not in text_of(out)
    assert "page.html: written; done, 4 steps" in capsys.readouterr().err


def test_weights_have_their_row_and_with_images_neighbours_and_a_map(tmp_path, image_root):
    report([PACKAGED], tmp_path / "row.html", settings=SETTINGS)
    text = text_of(tmp_path / "row.html")
    assert PACKAGED in text and "metrics.knn.value" in text and "<h2>Training</h2>" in text
    assert "<h2>Map</h2>" not in text and "With --data IMAGES" in text
    report([PACKAGED], tmp_path / "all.html", str(image_root / "val"), settings=SETTINGS)
    assert "<h2>Map</h2>" in text_of(tmp_path / "all.html")


def test_what_is_no_run_beside_runs_and_what_cannot_be_written_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="nowhere: no run folder; give run folders, or one set"):
        report([str(folders["cgh"]), "nowhere"], tmp_path / "page.html")
    for out in (tmp_path, tmp_path / "no" / "page.html"):
        with pytest.raises(InputError, match="expected a file to write, in a folder that is there"):
            report([str(folders["cgh"])], out)


def test_the_agreement_of_two_equal_contexts_is_whole_and_of_strangers_is_chance():
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(2, 300, 16))
    (agreed,) = method_pictures._agreement((rows, rows)).values()
    (chance,) = method_pictures._agreement((rows, others)).values()
    assert agreed == 100 and chance < 2 * 100 * before_after.NEIGHBOURS / 299


def test_a_flat_map_has_no_peak_and_a_point_has_all_of_it():
    flat, point = torch.full((1, 2, 3, 4, 4), 1 / 16), torch.zeros(1, 2, 3, 4, 4)
    point[..., 0, 0] = 1
    assert list(method_pictures._peaks(flat).values()) == [pytest.approx(1)]
    assert list(method_pictures._peaks(point).values()) == [16]


def test_tile_cosines_compare_each_view_with_the_tiles_of_each_image(folders):
    method, _ = trained(runs.read(folders["mnclglf"]))
    views = torch.randn(2, 5, 3, 64, 64)
    cosines = tile_cosines(method, *views)
    assert cosines.shape == (6, 5, 5) and cosines.abs().max() <= 1 + 1e-5
    turned = tile_cosines(method, views[0], views[1].roll(1, 0))
    assert torch.allclose(turned, cosines.roll(1, 2), atol=1e-5)  # columns are the other images


def test_slow_networks_are_shown_fewer_images(folders, image_root, monkeypatch):
    images = load(image_root / "train")
    network = untrained(runs.read(folders["cgh"])).student.backbone
    assert len(before_after.sample_of(images, [network]).indices) == 64
    monkeypatch.setattr(before_after, "_SECONDS", 0.0)
    monkeypatch.setattr(before_after, "_FEWEST", 30)
    sample = before_after.sample_of(images, [network])
    assert len(sample.indices) == 30
    assert len(before_after.sample_of(images, [network], 50).indices) == 50  # as asked
    labels = images.labels[sample.indices[sample.queries]]
    assert len(set(labels.tolist())) == 4 and len(labels) == 6  # every class is asked about
