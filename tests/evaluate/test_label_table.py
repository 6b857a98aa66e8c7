"""Labels of a table: what they are, and how well embeddings find them, by known answers."""

import dataclasses
import json
import zipfile
from importlib import resources

import numpy as np
import pytest
from conftest import PACKAGED
from PIL import Image

from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.evaluate.label_table import load_labelled, metric_of
from cgh_models.evaluate.neighbours import knn, mean_of_nearest
from cgh_models.evaluate.protocols import EvalSettings
from cgh_models.evaluate.targets import average_precision, measure_targets, r2
from cgh_models.hub.registry import create_model

ANIMALS = {"bird", "cat", "deer", "dog", "frog", "horse"}
FLYING = {"airplane", "bird"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The packaged photographs of CIFAR-10: 600 in train/, 200 in val/, class folders in both."""
    root = tmp_path_factory.mktemp("photographs")
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        file = zipfile.ZipFile(sample)
        for split, step, count in (("train", 4, 600), ("val", 2, 200)):
            names = sorted(name for name in file.namelist() if name.startswith(f"{split}/"))
            names = [name for name in names if name.endswith(".jpg")]
            file.extractall(root, names[::step][:count])
    return root


def table(root, of_image, header):
    """labels.csv in ``root``, a line for each image of its train/ and val/."""
    lines = [header]
    for path in sorted(root.glob("*/*/*.jpg")):
        name = path.relative_to(root).as_posix()
        lines.append(f"{name},{of_image(path)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"


def attributes(path):
    return f"{int(path.parent.name in ANIMALS)},{int(path.parent.name in FLYING)}"


def brightness(path):
    return f"{np.asarray(Image.open(path)).mean() / 255:.5f}"


@pytest.fixture
def measured(photographs, in_process):
    """Runs cgh evaluate with labels; gives its JSON of trained weights, and of random ones."""

    def run(*words):
        labelled = ["--data", photographs, "--labels", photographs / "labels.csv", "--workers", 0]
        labelled += ["--cache", f"{photographs}-embeddings"]
        networks = (PACKAGED,), (PACKAGED, "--random")
        found = []
        for network in networks:
            printed = in_process("evaluate", words[0], *network, *words[1:], *labelled).out
            found.append(json.loads(printed))
        return found

    return run


def test_what_several_columns_say_is_found_better_by_trained_weights(photographs, measured):
    table(photographs, attributes, "file,animal,can fly")
    chance = 100 * np.mean([0.6, 0.2])  # the mAP of scores without meaning: the shares
    for words, metric in [
        (["knn"], "knn_map"),
        (["linear", "--protocol", "ridge"], "linear_ridge_map"),
    ]:
        trained, random = measured(*words)
        assert trained["metric"] == metric and [*trained["columns"]] == ["animal", "can fly"]
        assert trained["value"] == pytest.approx(np.mean([*trained["columns"].values()]), abs=1e-3)
        assert trained["value"] > random["value"] + 5 and random["value"] > chance, words


def test_brightness_is_found_by_a_linear_layer_and_by_neighbours(photographs, measured):
    table(photographs, brightness, "file,brightness")
    ridge, _ = measured("linear", "--protocol", "ridge")
    near, _ = measured("knn")
    assert (ridge["metric"], near["metric"]) == ("linear_ridge_r2", "knn_r2")
    assert 0.6 < ridge["value"] <= 1 and 0.2 < near["value"] < ridge["value"]


@pytest.mark.parametrize(
    "words", [["knn"], ["linear", "--protocol", "ridge"], ["linear", "--protocol", "lbfgs"]]
)
def test_classes_of_a_table_are_as_good_as_class_folders(photographs, in_process, words):
    table(photographs, lambda path: path.parent.name, "file,label")
    command = ["evaluate", words[0], PACKAGED, *words[1:], "--data", photographs, "--workers", 0]
    command += ["--cache", f"{photographs}-embeddings"]
    of_folders = json.loads(in_process(*command).out)
    done = in_process(*command, "--labels", photographs / "labels.csv")
    of_table = json.loads(done.out)
    assert of_table.pop("metric") == f"{of_folders.pop('metric')}_accuracy"
    assert of_table == of_folders
    assert "the labels are classes (accuracy); 600 images to train on, 200 to m" in done.err


def test_a_column_of_splits_says_where_images_without_folders_belong(photographs, tmp_path):
    lines = ["Split;label;path"]
    for number, path in enumerate(sorted(photographs.glob("train/*/*.jpg"))[:30]):
        (tmp_path / f"{number:02d}.jpg").write_bytes(path.read_bytes())
        split = ("training", "val", "test")[number % 3]
        lines.append(f"{split};{number // 3 % 2};./{number:02d}.jpg")
    (tmp_path / "t.csv").write_bytes("\r\n".join([*lines, "", ""]).encode("utf-16"))
    train, val = load_labelled(str(tmp_path), str(tmp_path / "t.csv"))
    assert train.names == [f"{number:02d}.jpg" for number in range(0, 30, 3)]
    assert val.names == [f"{number:02d}.jpg" for number in range(1, 30, 3)]
    assert train.labels.tolist() == val.labels.tolist() == [0, 1] * 5
    assert train.classes == ["0", "1"] and metric_of(train) == "accuracy"


@pytest.mark.parametrize(
    "header, cells, metric",
    [
        ("file,y", ["3", "10", "3", "+3"], "accuracy"),
        ("file,y", ["cat", "3", "dog", "cat"], "accuracy"),
        ("file,y", ["0", "1", "1", "0"], "accuracy"),
        ("file,y", ["3.0", "10", "-2e3", "3"], "r2"),
        ("file,a,b", ["0,1", "1,1", "0,0", "1,0"], "map"),
        ("file,a,b", ["0.0,1.0", "1,1", "0,0", "1,0"], "map"),
        ("file,a,b", ["0,1", "1,7", "0,0", "1,0"], "r2"),
    ],
)
def test_what_the_columns_hold_decides_what_is_measured(
    image_root, header, cells, metric, tmp_path
):
    names = [f"{split}/class0/0000{n}.png" for split in ("train", "val") for n in (0, 4)]
    lines = [header, *map(",".join, zip(names, [cells[i] for i in (0, 1, 0, 1)], strict=True))]
    lines += [f"train/class1/0000{n}.png,{cell}" for n, cell in ((1, cells[2]), (5, cells[3]))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    train, val = load_labelled(str(image_root), str(tmp_path / "t.csv"))
    assert metric_of(train) == metric and (len(train), len(val)) == (4, 2)


TRAIN, VAL = "train/class0/00000.png,{}\n", "val/class0/00000.png,{}\n"
ONE = TRAIN.format(1) + VAL.format(1)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "no labels; expected a first line such as file,label"),
        ("file,label\n", "no labels; expected a first line"),
        ("file,a,a\n" + TRAIN.format("1,2"), "line 1 names a column twice; give each another"),
        ("file\n" + ONE.replace(",1", ""), "no column of labels; expected one beside file"),
        ("file,a\n" + ONE + "train/no.png,1\n", "line 4, column file, 'train/no.png': no such"),
        ("file,a\n" + ONE + TRAIN.format(1), "line 4, column file, .*: is named again"),
        ("file,a\n" + TRAIN.format("") + VAL.format(1), "line 2, column a, '': is empty; give"),
        ("file,a\n\n" + TRAIN.format(2.5) + VAL.format("x"), "line 4, column a, 'x': expected a"),
        ("file,a\n" + TRAIN.format(2.5) + VAL.format("nan"), "line 3, column a, 'nan': expect"),
        ("file,a,b\n" + TRAIN.format("1,no") + VAL.format("1,1"), "line 2, column b, 'no': expec"),
        ("file,a\n" + TRAIN.format("1,2"), "line 2: 3 cells, expected 2 as in the first line"),
        ("file,a,split\n" + TRAIN.format("1,fold3"), "line 2, column split, 'fold3': expected t"),
        ("file,a\n" + TRAIN.format(1), "line 2: neither it nor a later one is of val; give l"),
        ("file,a\n" + TRAIN.format("x") + VAL.format("y"), "line 3, column a, 'y': is the class"),
        (
            "file,a\n" + TRAIN.format(3) + VAL.format(44),
            "line 3, column a, '44': is the class of no image of train; .*quantities as 44.0",
        ),
        ("file,a,b\n" + TRAIN.format("0,1") + VAL.format("1,7"), "line 3, column b, '7': expec"),
        ("file,a,b\n" + TRAIN.format("5,1") + VAL.format("1,0"), "line 2, column a, '5': expec"),
    ],
)
def test_mistakes_in_a_table_name_file_line_and_column(image_root, tmp_path, text, expected):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=f"t.csv: {expected}"):
        load_labelled(str(image_root), str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "words, header, expected",
    [
        (["linear", "--protocol", "sgd"], "file,a,b", "--protocol sgd: fits classes, and"),
        (["linear", "--protocol", "lbfgs"], "file,a,b", "--protocol lbfgs: fits classes, and"),
        (["knn", "--record"], "file,quantity", "--record: cards hold percentages, and R2 is none"),
    ],
)
def test_what_is_not_measured_is_refused_in_a_sentence(
    photographs, in_process, capsys, words, header, expected
):
    labels = table(photographs, attributes if header == "file,a,b" else brightness, header)
    with pytest.raises(SystemExit):
        in_process(
            "evaluate", words[0], PACKAGED, *words[1:], "--data", photographs, "--labels", labels
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {expected}")
    assert "; give --protocol ridge" in error or "; leave --record out" in error


def by_thresholds(expected, scores):
    """Average precision, as its definition has it: over the distinct scores."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = expected[taken].sum() / expected.sum()
        total += (recall - before) * expected[taken].mean()
        before = recall
    return total


def test_average_precision_is_its_definition_with_and_without_equal_scores():
    rng = np.random.default_rng(0)
    for decimals in (9, 1, 0):
        scores = rng.random(60).round(decimals)
        expected = (rng.random(60) < 0.3).astype(float)
        assert average_precision(expected, scores) == pytest.approx(by_thresholds(expected, scores))
    assert average_precision(np.array([1.0, 0, 1]), np.array([3.0, 2, 1])) == pytest.approx(5 / 6)
    assert np.isnan(average_precision(np.zeros(3), np.arange(3.0)))


def test_r2_is_one_for_the_quantities_themselves_and_zero_for_their_mean():
    values = np.array([1.0, 2, 4, 9])
    assert r2(values, values) == 1 and r2(values, np.full(4, 4.0)) == 0
    assert r2(values, values + 1) == pytest.approx(1 - 4 / 38)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_column_whose_spread_is_no_number_is_null_and_not_in_the_mean(image_root, scale):
    sets = []
    for split in ("train", "val"):
        images = load(image_root / split)
        column = np.arange(len(images), dtype=float)
        names = {"classes": ["good", "bad"], "labels": np.stack([column, column * scale], 1)}
        sets.append(dataclasses.replace(images, **names))
    settings = EvalSettings(workers=0, device="cpu")
    found = measure_targets("knn", create_model(PACKAGED), *sets, settings)
    columns = found.parameters["columns"]
    assert columns["bad"] is None and found.value == pytest.approx(columns["good"], abs=1e-3)
    json.dumps(found.to_json(), allow_nan=False)


def test_the_mean_of_the_nearest_has_the_weights_of_the_votes():
    rng = np.random.default_rng(0)
    memory, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (90, 40))
    labels = np.arange(90) % 3
    found = mean_of_nearest(memory, np.eye(3)[labels], queries, k=7, temperature=0.1)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (memory, queries)]
    cosine = unit[1] @ unit[0].T
    for row, mean in zip(cosine, found, strict=True):
        near = np.argsort(-row)[:7]
        weights = np.exp(row[near] / 0.1)
        np.testing.assert_allclose(
            mean, weights @ np.eye(3)[labels[near]] / weights.sum(), rtol=1e-4
        )
    assert np.array_equal(found.argmax(1), knn(memory, labels, queries, k=7, temperature=0.1))
