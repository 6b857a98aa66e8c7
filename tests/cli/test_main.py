"""The command line: the whole road, and one sentence for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGED, cgh

from cgh_models.cli.main import COMMANDS, main
from cgh_models.hub import manifest

PRETRAIN = ["pretrain", *["--arch", "resnet18_cifar_w16", "--recipe", "cifar", "--batch-size", "16", "--epochs", "2"]]
PRETRAIN += ["--set", "queue_length=64"]


@pytest.fixture(scope="module")
def road(tmp_path_factory, image_root):
    """A folder with a finished run in it, and what was printed on the way."""
    folder = tmp_path_factory.mktemp("road")
    done = cgh(*PRETRAIN, "--data", image_root / "train", "--out", "run", "--eval-data", image_root, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_road_from_images_to_a_timm_model(road, image_root):
    folder, done = road
    assert done.stdout == "" and "warm-up: 0.2 of 2 epochs" in done.stderr
    resumed = cgh("resume", "run", cwd=folder)
    assert resumed.returncode == 0 and "finished at step 8 of 8" in resumed.stderr
    exported = cgh("export", "run", "--out", "weights", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    results = [cgh("evaluate", "knn", w, "--data", image_root, "--k", 5, cwd=folder) for w in ("run", "weights")]
    values = [json.loads(r.stdout.splitlines()[-1]) for r in results]
    assert values[0] | {"weights": 0} == values[1] | {"weights": 0}
    assert values[0]["metric"] == "knn" and values[0]["queries"] == 20 and values[0]["memory"] == 64
    code = "import cgh_models, timm; print(timm.create_model('local-dir:weights', pretrained=True).num_features)"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True).stdout == "128\n"
    started = cgh(*PRETRAIN, "--data", image_root / "train", "--out", "next", "--init", "weights", cwd=folder)
    assert started.returncode == 0 and "started from weights: backbone, heads, teacher and queues" in started.stderr


def test_python_dash_m_and_the_script_are_the_same_command(tmp_path):
    assert cgh("--version", cwd=tmp_path).stdout.strip() == __import__("cgh_models").__version__
    script = subprocess.run(
        [Path(sys.executable).with_name("cgh"), "--version"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert script.returncode == 0


def test_help_names_every_command_and_every_promised_flag(tmp_path):
    text = cgh("--help", cwd=tmp_path).stdout
    for command in COMMANDS:
        assert f"  {command}  " in text
        assert cgh(*command.split(), "--help", cwd=tmp_path).returncode == 0
    flags = cgh("pretrain", "--help", cwd=tmp_path).stdout
    promised = "data out method arch recipe image-size epochs batch-size seed init device workers eval-data log-every"
    for flag in promised.split():
        assert f"--{flag} " in flags


def test_a_recipe_sets_the_defaults_and_flags_beside_it_win(tmp_path):
    assert "(default: 0.06)" in cgh("pretrain", "--recipe", "cifar", "--help", cwd=tmp_path).stdout
    assert "(default: 0.05)" in cgh("pretrain", "--help", cwd=tmp_path).stdout


def test_list_and_info_say_the_data_before_the_numbers_and_need_no_torch(tmp_path):
    name = PACKAGED
    row, table = manifest.row(name), cgh("list", cwd=tmp_path).stdout
    head, *lines = table.splitlines()
    assert head.index("trained on") < head.index("kNN") and len(lines) == len(manifest.names())
    knn = f"{row['metrics']['knn']['value']:.2f}"
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    assert line.index(row["data"]["name"]) < line.index(knn) and line.endswith("packaged")
    everything = cgh("info", name, cwd=tmp_path).stdout
    assert everything.index(row["data"]["license_note"]) < everything.index("value: ") and row["command"] in everything
    code = "import sys, cgh_models.__main__ as m; sys.argv[1:] = ['list']; m.main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_export_names_what_it_is_told_and_refuses_a_tag_that_cannot_be_one(road, tmp_path):
    folder, _ = road
    told = ["--tag", "cgh_mine", "--license", "apache-2.0", "--data-name", "My Set", "--data-license", "Mine alone."]
    assert cgh("export", "run", "--out", tmp_path / "named", *told, cwd=folder).returncode == 0
    row = manifest.read_row(tmp_path / "named")
    assert row["name"] == "resnet18_cifar_w16.cgh_mine" and row["data"]["license_note"] == "Mine alone."
    bad = cgh("export", "run", "--out", tmp_path / "bad", "--tag", "My Tag", cwd=folder)
    assert bad.returncode == 2 and "--tag 'My Tag': expected lower-case letters" in bad.stderr
    assert not (tmp_path / "bad").exists()


MISTAKES = [
    ("evaluate knn resnet18.nobody --random --data {images}", "no weights of this name and no such folder"),
    ("pretrain --data none --out o", "none: there is no such folder or list; give --data a folder of images"),
    ("pretrain --data empty --out o", "empty: no images (nothing found)"),
    ("pretrain --data text --out o", "text: no images (1 x .txt found)"),
    ("pretrain --data {images} --out o", "holds the splits train, val; give one of them"),
    (
        "pretrain --data {images}/train --out o --batch-size 65 --arch test_resnet",
        "batch size 65: larger than the set of 64",
    ),
    (
        "pretrain --data {images}/train --out o --arch resnet81 --batch-size 9",
        "architecture 'resnet81': timm has no model of this name",
    ),
    ("pretrain --data {images}/train --out o --method simclr", "there is no such method; the methods are cgh, lewel"),
    (
        "pretrain --data {images}/train --out o --batch-size 9 --arch test_resnet --method lewel --set heads=5",
        "heads=5: has to divide the embedding's width (",
    ),
    (
        "pretrain --data {images}/train --out o --batch-size 9 --arch vit_tiny_patch16_224 --set multi_crop=true",
        "multi_crop=True: vit_tiny_patch16_224 cannot take images of 192 x 192",
    ),
    (
        "pretrain --data {images}/train --out o --batch-size 9 --arch vgg11 --method mnclglf --image-size 32",
        "mnclglf looks at 2 x 2 tiles of an image: vgg11 cannot take images of 16 x 16",
    ),
    ("pretrain --data {images}/train --out o --batch-size 1", "batch_size=1: at least 2"),
    ("backbones resnot?", "'resnot?': timm has no architecture like that"),
    ("pretrain --data {images}/train --out o --set tap=3 --batch-size 9", "there is no key 'tap', did you mean taps?"),
    (
        "pretrain --data {images}/train --out o --arch test_resnet --set taps=99 --batch-size 9",
        "taps=99: test_resnet does not give that many",
    ),
    ("pretrain --data {images}/train --out o --epochs 0", "epochs=0: at least 1 is needed"),
    ("pretrain --data {images}/train --out o --epochs many", "--epochs"),
    (
        "pretrain --data {images}/train --out o --device cuda:77 --arch test_resnet --batch-size 9",
        "--device cuda:77: cannot be used",
    ),
    (
        "pretrain --data {images}/train --out o --eval-data empty --arch test_resnet --batch-size 9",
        "empty: has no train/ folder",
    ),
    (
        "pretrain --data {images}/train --out o --init nothing --arch test_resnet --batch-size 9",
        "'nothing': timm has no model",
    ),
    (
        "pretrain --data {images}/train --out text/a.txt --arch test_resnet --batch-size 9",
        "text/a.txt: exists and is not an empty folder; give another --out",
    ),
    ("pretrain --data {images}/train", "--out"),
    ("pretrain --data a --out b --batchsize 3", "--batch-size"),
    ("resume none", "none: not found|none/config.json: not found"),
    ("resume empty", "empty/config.json: not found; expected the config.json of a run folder"),
    ("evaluate knn empty --data {images}", "empty: holds no weights"),
    ("evaluate knn resnet18_cifar --data {images}", "no weights of this name"),
    ("evaluate knn resnet18_cifar_w16 --random --data empty", "empty: has no train/ folder"),
    ("evaluate knn resnet18_cifar_w16 --random --data {images} --k 65", "--k 65: expected 1 to 64"),
    ("evaluate", "there is no such command; did you mean `cgh evaluate knn`?"),
    (
        "evaluate knn resnet18_cifar_w16 --random --data {images} --batch-size 0",
        "batch size 0, workers 2: expected at least 1",
    ),
    ("evaluate knn no/such --data {images}", "no/such: there is no such folder"),
    ("evaluate knn local-dir:none --data {images}", "none: there is no such folder"),
    ("pretrain --data {images}/train/class0/00000.png --out o", "neither a folder nor a text file of paths"),
    (
        "pretrain --data {images}/train --out text --arch test_resnet --batch-size 9",
        "text: exists and is not an empty folder",
    ),
    ("pretrain --data {images}/train --out= --arch test_resnet", "neither may be empty"),
    (
        "pretrain --data {images}/train --out o --arch resnet18.a1_in1k --batch-size 9",
        "--init resnet18.a1_in1k to start from",
    ),
    ("pretrain --data {images}/train --out o --arch test_vit --image-size 100 --batch-size 9", "another --image-size?"),
    ("pretrain --data {images}/train --out o --device meta --batch-size 9", "--device meta: cannot be used"),
    (
        "pretrain --data {images}/train --out o --recipe cifar --batch-size 9 --set batch_norm_splits=8",
        "2 images a part",
    ),
    ("pretrain --data {images}/train --out o --base-lr nan", "base_lr=nan: at least 0"),
    ("export empty --out o", "empty: not a run folder"),
    ("demo --out text", "text: exists and is not an empty folder"),
    ("pretrian", "did you mean `cgh pretrain`?"),
    ("evaluate knn resnet18_cifar_w16 --random --record --data {images}", "--record: resnet18_cifar_w16 is no weights"),
    ("list vit_*", "vit_*: no published weights match; `cgh list` shows all"),
    ("info nobody", "nobody: no published weights of this name"),
    ("info empty", "empty/weights.json: not found; expected the description that `cgh export` writes"),
    ("info", "weights"),
    ("verify resnet18_cifar_w16.cgh", "did you mean resnet18_cifar_w16.cgh_cifar10?"),
    ("verify text", "text/weights.json: not found"),
    ("publish none --repo a/b", "none/weights.json: not found"),
    ("publish empty", "--repo"),
    ("autoload maybe", "maybe"),
    ("export {images} --out o --tag cgh", "not a run folder"),
]


@pytest.mark.parametrize("words, message", MISTAKES, ids=[m[0][:60] for m in MISTAKES])
def test_a_mistake_is_one_line_on_stderr_and_exit_2(tmp_path, image_root, monkeypatch, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cgh", *words.format(images=image_root).split()])
    with pytest.raises(SystemExit) as stopped:  # anything else would be a traceback
        main()
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and len(errors[0]) <= 420, said
    assert any(part in errors[0] for part in message.split("|")), errors[0]
    assert not (tmp_path / "o").exists()


def test_changed_settings_are_refused_or_explained_on_resume(road):
    folder, _ = road
    refused = cgh("resume", "run", "--epochs", 4, "--base-lr", 0.5, cwd=folder)
    assert refused.returncode == 2
    assert "epochs: 2 -> 4 changes the schedule; base_lr: 0.06 -> 0.5 changes the schedule" in refused.stderr
    model = cgh("resume", "run", "--set", "taps=3", cwd=folder)
    assert model.returncode == 2 and "taps: 2 -> 3 changes the model" in model.stderr
    safe = cgh("resume", "run", "--log-every", 7, cwd=folder)
    assert safe.returncode == 0 and "log_every: 0 -> 7 changes nothing" in safe.stderr


def test_a_damaged_checkpoint_is_exit_4(road, tmp_path):
    import shutil

    shutil.copytree(road[0] / "run", tmp_path / "run")
    for path in (tmp_path / "run").glob("*.safetensors"):
        path.write_bytes(b"x")
    done = cgh("export", "run", "--out", "w", cwd=tmp_path)
    assert done.returncode == 4 and "every checkpoint is damaged" in done.stderr.splitlines()[-1]
