"""The commands that measure: one JSON line, the record in a weights folder, mistakes."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys

import pytest
import torch
from conftest import PACKAGED, cgh, make_images
from small_runs import QUICK, build

from cgh_models.cli.main import main
from cgh_models.data.image_set import load_splits
from cgh_models.errors import DiskError
from cgh_models.hub import manifest
from cgh_models.hub.export import export
from cgh_models.train.loop import pretrain

ENV = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
SMALL = ["resnet18_cifar_w16", "--random", "--device", "cpu", "--workers", 0]


@pytest.fixture
def here(in_process):
    """Runs a command in this process, in a folder of the test's; gives its JSON."""
    return lambda *words: json.loads(in_process(*words).out.splitlines()[-1])


@pytest.fixture(scope="module")
def weights(tmp_path_factory, image_root):
    folder = tmp_path_factory.mktemp("measured")
    config = dataclasses.replace(QUICK, image_size=64, epochs=1)
    pretrain(build("cgh", config, "test_resnet"), image_root / "train", config, folder / "run")
    export(folder / "run", folder / "weights")
    return folder / "weights"


@pytest.mark.parametrize(
    "words, metric",
    [
        (
            [
                "linear",
                "--protocol",
                "sgd",
                "--recipe",
                "cifar",
                "--epochs",
                5,
                "--train-batch-size",
                16,
            ],
            "linear",
        ),
        (["linear", "--protocol", "lbfgs"], "linear_lbfgs"),
        (["finetune", "--labels", "10%", "--epochs", 2], "finetune_10"),
    ],
)
def test_a_command_prints_one_json_line_and_the_same_again(
    words, metric, image_root, here, tmp_path
):
    words = ["evaluate", words[0], *SMALL, "--data", image_root, *words[1:]]
    done = cgh(*words, cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (
        found["metric"] == metric
        and 0 <= found["value"] <= 100
        and found["val"] == 20
        and found["seed"] == 0
    )
    assert (
        found["weights"] == "resnet18_cifar_w16" and done.stderr.strip()
    )  # progress is not on stdout
    assert here(*words) == found


def test_the_json_says_all_that_the_number_depends_on(image_root, here):
    chosen = here(
        "evaluate",
        "linear",
        *SMALL,
        "--data",
        image_root,
        "--protocol=sgd",
        "--recipe=cifar",
        "--epochs=6",
    )
    assert chosen["choice"]["held_out_images"] == 6 and chosen["choice"]["epochs"] == 2
    assert (
        chosen["lr"] == chosen["choice"]["chosen"]
        and chosen["nesterov"] is True
        and chosen["epochs"] == 6
    )
    assert (chosen["protocol"], chosen["recipe"], chosen["train"]) == ("sgd", "cifar", 64)
    assert (chosen["momentum"], chosen["weight_decay"], chosen["train_batch_size"]) == (
        0.9,
        0.0,
        64,
    )
    fast = here(
        "evaluate",
        "linear",
        *SMALL,
        "--data",
        image_root,
        "--protocol=sgd",
        "--lr=0.3",
        "--epochs=1",
        "--fast",
    )
    assert "fast" not in chosen and fast["fast"] is True
    few = here(
        "evaluate",
        "finetune",
        *SMALL,
        "--data",
        image_root,
        "--labels",
        "10%",
        "--lr",
        0.5,
        "--epochs",
        1,
    )
    assert (few["labels"], few["labelled"], few["train_batch_size"], few["lr"]) == (
        "10%",
        4,
        4,
        0.5,
    )
    assert (few["head_lr"], few["weight_decay"], len(few["names_sha256"])) == (0.02, 0.0, 64)


def test_the_help_names_the_defaults_of_the_recipes_and_of_all_labels(monkeypatch, capsys):
    def help_of(command):
        monkeypatch.setattr(sys, "argv", ["cgh", "help", "evaluate", command])
        with pytest.raises(SystemExit):
            main()
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    assert "(default: 0.3; cifar 0; tiny 0)" in help_of("linear")
    assert "labelled images. (default: 70; all labels 30)" in help_of("finetune")


def test_a_record_stands_in_the_description_and_the_card(weights, image_root, here, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    common = [
        "w",
        "--data",
        image_root,
        "--record",
        "--data-name",
        "Stripes",
        "--device",
        "cpu",
        "--workers",
        0,
    ]
    given = [
        here("evaluate", "knn", *common, "--k", 5, "--cache", "kept"),
        here("evaluate", "linear", *common, "--protocol", "sgd", "--epochs", 1, "--cache", "kept"),
        here("evaluate", "linear", *common, "--protocol", "lbfgs", "--cache", "kept"),
        here("evaluate", "linear", *common, "--protocol", "ridge", "--cache", "kept"),
        here("evaluate", "finetune", *common, "--labels", "100%", "--epochs", 1),
    ]
    assert (
        len(list((tmp_path / "kept").glob("*.safetensors"))) == 2
    )  # train/ and val/, once for all of them
    metrics = manifest.read_row(tmp_path / "w").metrics
    assert list(metrics) == ["knn", "linear", "linear_lbfgs", "linear_ridge", "finetune_100"]
    card = (tmp_path / "w" / "README.md").read_text()
    for result in given:
        metric = metrics[result["metric"]]
        assert metric.value == result["value"] and metric.n == 20 and metric.data == "Stripes"
        assert metric.parameters.items() <= result.items() and "--record" in metric.command
        assert f"| {result['metric']} | Stripes | {result['value']} % |" in card


def test_the_splits_file_is_written_and_then_read(image_root, here, tmp_path):
    words = ["evaluate", "finetune", *SMALL, "--data", image_root, "--labels", "10%", "--epochs", 1]
    first = here(*words, "--splits-file", "names.txt")
    assert len((tmp_path / "names.txt").read_text().splitlines()) == 4
    other = here(*words, "--seed", 1)
    assert (
        first["split"] == other["split"] == "seed"
    )  # and the names of the seed's are kept as well
    (kept,) = tmp_path.glob("labels_10_seed1_*.txt")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == other["names_sha256"]
    assert other["names_sha256"] != first["names_sha256"] == here(*words)["names_sha256"]
    read = here(*words, "--seed", 1, "--splits-file", "names.txt")
    assert read["names_sha256"] == first["names_sha256"] and read["seed"] == 1


MISTAKES = [
    (
        "finetune {model} --labels 1%",
        "--labels 1%: 0 of 64 training images, fewer labels than the 4 classes; give",
    ),
    ("finetune {model} --labels 5%", "5%"),
    ("finetune {model}", "--labels"),
    ("finetune {model} --labels 100% --lr nan", "lr=nan: at least 0"),
    (
        "finetune {model} --labels 100% --batch-size 0",
        "batch size 0, workers 0: expected at least 1",
    ),
    (
        "finetune {model} --labels 10% --splits-file no/such/names.txt",
        "no/such/names.txt: cannot be written",
    ),
    (
        "finetune {model} --labels 10% --splits-file .",
        ".: not a file; give --splits-file a text file",
    ),
    ("finetune {model} --labels 100% --record", "--record: test_resnet is no weights folder"),
    ("finetune {model} --labels 100% --train-batch-size 1", "train_batch_size=1: at least 2"),
    ("linear {model}", "--protocol"),
    ("linear {model} --protocol svm", "svm"),
    ("linear {model} --protocol sgd --recipe stl", "stl"),
    ("linear {model} --protocol sgd --epochs 0", "epochs=0: at least 1"),
    ("linear {model} --protocol sgd --seed -1", "seed=-1: at least 0"),
    (
        "linear {model} --protocol ridge --epochs 3",
        "--protocol ridge: has no recipe, rate, epochs or",
    ),
    (
        "linear {model} --protocol lbfgs --recipe cifar",
        "--protocol lbfgs: has no recipe, rate, epochs or",
    ),
    ("linear {model} --protocol lbfgs --cache file", "file: cannot keep embeddings"),
    ("linear {model} --protocol lbfgs --device meta", "--device meta: cannot be used"),
    ("linear {model} --protocol sgd --record", "--record: test_resnet is no weights folder"),
    ("knn bare --data {root} --record", "bare/weights.json: not found; expected"),
]


@pytest.mark.parametrize("words, message", MISTAKES, ids=[m[0][:60] for m in MISTAKES])
def test_a_mistake_is_one_line_and_no_number(words, message, image_root, here, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "bare").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "bare" / name).write_text("{}")
    model = f"test_resnet --random --workers 0 --data {image_root}"
    with pytest.raises(SystemExit) as stopped:  # anything else would be a traceback
        here("evaluate", *words.format(model=model, root=image_root).split())
    said = capsys.readouterr()
    (error,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == (5 if "cannot be written" in message else 2) and said.out == ""
    assert message in error and len(error) <= 420


def reproduce(*words, cwd):
    done = cgh("reproduce", *words, "--workers", 0, "--device", "cpu", cwd=cwd, env=ENV)
    return done.returncode, json.loads(done.stdout or "null"), done.stderr.splitlines()


@pytest.mark.parametrize(
    "metric, flags",
    [
        ("knn", ["--k", 3]),
        (
            "linear",
            ["--protocol", "sgd", "--recipe", "cifar", "--epochs", 5, "--train-batch-size", 16],
        ),
    ],
)
def test_a_recorded_number_is_reproduced_and_an_altered_one_is_not(
    metric, flags, weights, image_root, here, tmp_path
):
    folder = shutil.copytree(weights, tmp_path / "mine")
    recorded = here(
        "evaluate", metric, folder, "--data", image_root, "--workers", 0, *flags, "--record"
    )
    code, found, _ = reproduce(folder, "--data", image_root, "--metric", metric, cwd=tmp_path)
    assert code == 0 and found["agrees"] and found["got"] == found["published"] == recorded["value"]
    row = manifest.read_row(folder)
    row.metrics[metric].value = abs(recorded["value"] - 2)
    manifest.write_row(folder, row)
    code, found, said = reproduce(folder, "--data", image_root, "--metric", metric, cwd=tmp_path)
    assert code == 1 and not found["agrees"] and found["got"] == recorded["value"]
    assert said[-1].startswith(
        f"error: {folder}: published {metric} {abs(recorded['value'] - 2):.2f} %, got "
    )


def test_other_images_are_named_as_the_reason_and_not_the_weights(
    weights, image_root, here, tmp_path
):
    folder = shutil.copytree(weights, tmp_path / "mine")
    name = manifest.read_row(folder).data.name
    here(
        "evaluate",
        "knn",
        folder,
        "--data",
        image_root,
        "--workers",
        0,
        "--record",
        "--data-name",
        name,
    )
    other = make_images(tmp_path / "other" / "train", 64, seed=5).parent
    make_images(other / "val", 20, seed=6)
    row = manifest.read_row(folder)
    row.metrics["knn"].value = 1.0
    manifest.write_row(folder, row)
    said = reproduce(folder, "--data", image_root, cwd=tmp_path)[2][-1]
    assert "`cgh verify" in said
    said = reproduce(folder, "--data", other, cwd=tmp_path)[2][-1]
    assert (
        f"{other}/train has other names or sizes than the images of {name} it was trained on"
        in said
    )


def test_a_number_that_cannot_be_recorded_is_printed_first(
    weights, image_root, here, tmp_path, capsys, monkeypatch
):
    folder = shutil.copytree(weights, tmp_path / "mine")

    def full(*_):
        raise DiskError("no room")

    monkeypatch.setattr("cgh_models.hub.export.record", full)
    with pytest.raises(SystemExit):
        here("evaluate", "knn", folder, "--data", image_root, "--workers", 0, "--record")
    said = capsys.readouterr()
    assert json.loads(said.out)["metric"] == "knn" and "error: no room" in said.err


def test_linked_classes_are_said_or_followed(image_root, here, tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for folder in (image_root / split).iterdir():
            (tmp_path / "set" / split / folder.name).symlink_to(folder)
        for number in (0, 1):
            copied = tmp_path / "set" / split / f"own{number}"
            shutil.copytree(image_root / split / f"class{number}", copied)
    capsys.readouterr()
    assert len(load_splits(tmp_path / "set")[1]) == 10
    assert "val: left out 4 x linked folder (--follow-links reads it)" in capsys.readouterr().err
    model = ["test_resnet", "--random", "--workers", 0, "--data", tmp_path / "set", "--k", 1]
    assert here("evaluate", "knn", *model)["queries"] == 10
    assert here("evaluate", "knn", *model, "--follow-links")["queries"] == 30


def test_that_a_name_means_itself_and_no_folder_is_said_once(
    image_root, here, tmp_path, monkeypatch
):
    (tmp_path / "test_efficientnet").mkdir()
    words = ["knn", "test_efficientnet", "--random", "--data", image_root, "--workers", 0]
    said = []
    monkeypatch.setattr(manifest, "say", said.append)
    here("evaluate", *words)
    assert len(said) == 1 and "the folder of that name is ./test_efficientnet" in said[0]


def test_what_cannot_be_reproduced_is_one_sentence(weights, image_root, tmp_path):
    name = PACKAGED
    for words, message in (
        ([name, "--data", tmp_path / "none"], "has no train/ folder"),
        ([name], "--data"),
        (
            [name, "--data", image_root],
            "64 images in train/ and 20 in val/, expected 50000 and 10000 of CIFAR-10",
        ),
        ([weights, "--data", image_root], "no knn was published of it (there are: none)"),
        (["resnet18.nobody", "--data", image_root], "no published weights of this name"),
    ):
        code, found, said = reproduce(*words, cwd=tmp_path)
        assert (code, found, len(said)) == (2, None, 1) and message in said[0], said


@pytest.mark.slow
@pytest.mark.skipif("CGH_LONG" not in os.environ, reason="minutes on one core: set CGH_LONG=1")
def test_the_packaged_weights_reproduce_their_number(cifar10, tmp_path):
    name = PACKAGED
    code, found, _ = reproduce(name, "--data", cifar10, cwd=tmp_path)
    assert (
        code == 0
        and found["agrees"]
        and found["published"] == manifest.row(name).metrics["knn"].value
    )
