"""The command line: from training to export, and one sentence for every mistake."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import PACKAGED, cgh

from cgh_models.cli.main import COMMANDS, SHELLS, main, parse
from cgh_models.cli.pretrain import Pretrain
from cgh_models.cli.weights import List
from cgh_models.config import TrainConfig
from cgh_models.errors import InputError
from cgh_models.files import make_folder
from cgh_models.hub import manifest
from cgh_models.methods import METHODS
from cgh_models.methods.cgh import CGH
from cgh_models.recipes import method_config, train_config

PRETRAIN = [
    "pretrain",
    *["--arch", "resnet18_cifar_w16", "--recipe", "cifar", "--batch-size", "16", "--epochs", "2"],
]
PRETRAIN += ["--set", "queue_length=64"]


@pytest.fixture(scope="module")
def road(tmp_path_factory, image_root):
    """A folder with a finished run in it, and what was printed on the way."""
    folder = tmp_path_factory.mktemp("road")
    done = cgh(
        *PRETRAIN,
        "--data",
        image_root / "train",
        "--out",
        "run",
        "--eval-data",
        image_root,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_road_from_images_to_a_timm_model(road, image_root):
    folder, done = road
    assert done.stdout == "" and "warm-up of the learning rate: 0.2 of 2 epochs" in done.stderr
    ours, papers = (f"warmup={w}, warmup_temperature={t}" for w, t in (("1", 0.1), ("0.1", 0.2)))
    said = f"short run of 2 epochs: {ours}; --paper-faithful keeps {papers}\n"
    assert said in done.stderr
    resumed = cgh("resume", "run", cwd=folder)
    assert resumed.returncode == 0 and "finished at step 8 of 8" in resumed.stderr
    exported = cgh("export", "run", "--out", "weights", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    loads = "timm.create_model('local-dir:weights', pretrained=True) loads it"
    assert exported.stdout.splitlines()[-1] == f"after `import cgh_models`, {loads}"
    results = [
        cgh("evaluate", "knn", w, "--data", image_root, "--k", 5, cwd=folder)
        for w in ("run", "weights")
    ]
    values = [json.loads(r.stdout.splitlines()[-1]) for r in results]
    assert values[0] | {"weights": 0} == values[1] | {"weights": 0}
    assert values[0]["metric"] == "knn" and values[0]["queries"] == 20 and values[0]["memory"] == 64
    code = (
        "import cgh_models, timm\n"
        "print(timm.create_model('local-dir:weights', pretrained=True).num_features)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
        ).stdout
        == "128\n"
    )
    started = cgh(
        *PRETRAIN, "--data", image_root / "train", "--out", "next", "--init", "weights", cwd=folder
    )
    assert (
        started.returncode == 0
        and "started from weights: all but the queues, which begin anew" in started.stderr
    )


def test_python_dash_m_and_the_script_are_the_same_command(tmp_path):
    assert cgh("--version", cwd=tmp_path).stdout.strip() == __import__("cgh_models").__version__
    script = subprocess.run(
        [Path(sys.executable).with_name("cgh"), "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert script.returncode == 0


@pytest.fixture
def printed(monkeypatch, capsys):
    """Runs a command line in this process; returns its exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cgh", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def flags_in(text):
    return set(re.findall(r"(?<!\S)--[a-z-]+", text.replace("│", " ").replace(",", " ")))


@pytest.mark.parametrize("words", ["", "help", "--help", "-h"])
def test_the_overview_names_every_command(words, printed):
    code, text, _ = printed(*words.split())
    assert code == 0 and "`cgh --print-completion bash|zsh|fish`" in text
    for command in COMMANDS:
        assert f" • {command.split()[0]} " in text


@pytest.mark.parametrize("words", ["--help", "list", "--print-completion bash"])
def test_a_reader_that_stops_reading_ends_the_command_without_a_word(words):
    """With 141, as other programs end that print into a pipe which nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cgh_models", *words.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", ["evaluate", "evaluate --help", "help evaluate"])
def test_a_group_of_commands_has_an_overview(words, printed):
    code, text, _ = printed(*words.split())
    assert code == 0 and all(f" • {name} " in text for name in ("knn", "linear", "finetune"))


REPO = Path(__file__).resolve().parents[2]
# Flags that pages name and other programs have: torchrun, sbatch, srun, and those of `cgh` itself.
OF_OTHERS = """
--nproc-per-node --nnodes --max-restarts --shutdown-timeout --rdzv-backend --rdzv-endpoint --rdzv-id
--nodes --ntasks-per-node --cpus-per-task --gpus-per-node --gpus-per-task --requeue --signal --time
--quick --print-completion
"""


def test_every_flag_that_a_page_names_is_there(printed):
    there = set(OF_OTHERS.split())
    for command in COMMANDS:
        there |= set(re.findall("--[a-z][a-z-]+", printed(*command.split(), "--help")[1]))
    pages = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
    assert len(pages) > 8
    for page in pages:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
        assert named <= there, f"{page.name}: {sorted(named - there)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_flags(command, printed):
    code, text, _ = printed(*command.split(), "--help")
    assert code == 0 and text.startswith(f"usage: cgh {command} ")
    assert printed("help", *command.split()) == printed(*command.split(), "-h") == (0, text, "")
    assert max(map(len, text.splitlines()[1:])) <= 80
    kinds = set(re.findall(r"--[a-z-]+ ([A-Z/=]+)", text))
    assert kinds <= {
        *[
            "FOLDER",
            "FILE",
            "WEIGHTS",
            "NAME",
            "TEXT",
            "IMAGES",
            "KEY=VALUE",
            "ORG/NAME",
            "INT",
            "FLOAT",
            "RANGE",
            "SIZES",
            "PROJECT",
        ]
    }


def test_the_overview_is_quick_and_loads_no_torch(tmp_path):
    code = (
        "import resource, sys, cgh_models.__main__ as m; sys.argv[1:] = ['--help']\n"
        "try: m.main()\n"
        "finally: print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules],"
        " sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    modules, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert modules == "[]" and float(seconds) < 0.5


def test_pretrain_explains_every_flag_and_its_defaults_by_recipe(printed):
    text = " ".join(printed("pretrain", "--help")[1].replace("│", " ").split())
    promised = "data out method arch recipe image-size epochs batch-size seed init device workers"
    for flag in (*promised.split(), "eval-data", "log-every", "set"):
        assert f"--{flag} " in text
    assert {"--" + field.name.replace("_", "-") for field in fields(TrainConfig)} <= flags_in(text)
    assert (
        "Side of the square views, in pixels. (default: 224; cifar 32; tiny 64; cifar-fast 32)"
        in text
    )
    assert (
        "(default: 0.05; cifar 0.06; tiny 0.06; cifar-fast 0.12; muon 0.12; adamw 0.0005)" in text
    )
    assert "folder (flat, nested or class folders), a text file with a path a line" in text
    assert "a tar, zip or parquet file, a folder or pattern of those, hfds/NAME" in text


def test_resume_lists_only_what_may_change(printed):
    flags = flags_in(printed("resume", "--help")[1])
    for field in fields(TrainConfig):
        may_change = field.metadata["changes"].startswith("nothing")
        assert ("--" + field.name.replace("_", "-") in flags) == may_change, field.name
    assert not flags & {"--set", "--method", "--arch", "--recipe", "--init", "--out"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_completes_every_command_and_flag(shell, printed, tmp_path):
    code, script, _ = printed("--print-completion", shell)
    assert code == 0
    words = {*" ".join(COMMANDS).split(), "--batch-size", "--decay-norms", "--splits-file"}
    assert all(word in script for word in words)
    if shell == "bash":
        (tmp_path / "cgh.bash").write_text(script)
        subprocess.run(["bash", "-n", tmp_path / "cgh.bash"], check=True)
        complete = (
            f"source {tmp_path}/cgh.bash; COMP_WORDS=(cgh pretrain --batch); COMP_CWORD=2\n"
            "_tyro_cgh; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--batch-size"]


def configs(*words):
    command = parse(["pretrain", "--data", "images", "--out", "run", *words])
    assert isinstance(command, Pretrain)
    return command.configs()


def test_flags_that_are_not_given_have_the_values_of_recipe_method_and_optimizer():
    train, method = configs()
    assert train == train_config("imagenet", "cgh") == TrainConfig() and method == CGH.Config()
    train, method = configs("--recipe", "cifar", "--method=byol", "--optimizer", "adamw")
    assert train == train_config("cifar", "byol", "adamw")
    assert method == method_config(METHODS["byol"], "cifar", train)


def test_flags_that_are_given_win():
    words = "--recipe cifar --base-lr=0.3 --no-decay-norms --compile --std 1 2 3 --device cpu"
    train, method = configs(*words.split(), "--set", "taps=3", "--set=queue_length=64")
    given = {"base_lr": 0.3, "decay_norms": False, "compile": True, "std": (1.0, 2.0, 3.0)}
    assert train == replace(train_config("cifar", "cgh"), **given, device="cpu")
    assert (method.taps, method.queue_length) == (3, 64)


def test_list_and_info_say_the_data_before_the_numbers_and_need_no_torch(tmp_path):
    name = PACKAGED
    row, table = manifest.row(name), cgh("list", cwd=tmp_path).stdout
    head, *lines = table.splitlines()
    assert head.index("trained on") < head.index("kNN") and len(lines) == len(manifest.names())
    knn = f"{row.metrics['knn'].value:.2f}"
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    assert line.index(row.data.name) < line.index(knn) and line.endswith("packaged")
    everything = cgh("info", name, cwd=tmp_path).stdout
    assert (
        everything.index(row.data.license_note) < everything.index("value: ")
        and row.command in everything
    )
    code = (
        "import sys, cgh_models.__main__ as m; sys.argv[1:] = ['list']; m.main()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_export_uses_the_given_names_and_refuses_an_invalid_tag(road, tmp_path):
    folder, _ = road
    flags = [
        "--tag",
        "cgh_mine",
        "--license",
        "apache-2.0",
        "--data-name",
        "My Set",
        "--data-license",
        "Mine alone.",
    ]
    assert cgh("export", "run", "--out", tmp_path / "named", *flags, cwd=folder).returncode == 0
    row = manifest.read_row(tmp_path / "named")
    assert row.name == "resnet18_cifar_w16.cgh_mine" and row.data.license_note == "Mine alone."
    bad = cgh("export", "run", "--out", tmp_path / "bad", "--tag", "My Tag", cwd=folder)
    assert bad.returncode == 2 and "--tag 'My Tag': expected lower-case letters" in bad.stderr
    assert not (tmp_path / "bad").exists()


MISTAKES = [
    (
        "evaluate knn resnet18.nobody --random --data {images}",
        "no weights of this name and no such folder",
    ),
    (
        "pretrain --data none --out o",
        "none: there is no such folder or list; give --data a folder of images",
    ),
    ("pretrain --data empty --out o", "empty: no images (nothing found)"),
    ("pretrain --data text --out o", "text: no images (1 x .txt found)"),
    ("pretrain --data {images} --out o", "holds the splits train, val; give one of them"),
    (
        "{pretrain} --arch resnet81 --batch-size 9",
        "architecture 'resnet81': timm has no model of this name",
    ),
    ("{pretrain} --method simclr", "there is no such method; the methods are cgh, lewel"),
    (
        "{pretrain} --batch-size 9 --arch test_resnet --method lewel --set heads=5",
        "heads=5: has to divide the embedding's width (",
    ),
    (
        "{pretrain} --batch-size 9 --arch vit_tiny_patch16_224 --set multi_crop=true",
        "multi_crop=True: vit_tiny_patch16_224 cannot take images of 192 x 192",
    ),
    (
        "{pretrain} --batch-size 9 --arch vgg11 --method mnclglf --image-size 32",
        "mnclglf looks at 2 x 2 tiles of an image: vgg11 cannot take images of 16 x 16",
    ),
    ("{pretrain} --batch-size 1", "batch_size=1: at least 2"),
    ("backbones resnot?", "'resnot?': timm has no architecture like that"),
    ("{pretrain} --set tap=3 --batch-size 9", "there is no key 'tap', did you mean taps?"),
    (
        "{pretrain} --arch test_resnet --set taps=99 --batch-size 9",
        "taps=99: test_resnet does not give that many",
    ),
    ("{pretrain} --epochs 0", "epochs=0: at least 1 is needed"),
    (
        "{pretrain} --epochs many",
        "cgh pretrain: --epochs: expected INT, invalid literal for int() with base 10: 'many'; see",
    ),
    (
        "pretrain --data a --out b --mean 1 2",
        "mean: 2 numbers; 3 are expected, one for each channel",
    ),
    ("pretrain --data a --out b --device", "--device: expected NAME; see"),
    ("pretrain --data a --out b --views fst", "--views 'fst': expected one of fast, exact; see"),
    ("pretrain --data a --out b --compile yes", "'yes' is one word too many; see"),
    (
        "{pretrain} --device cuda:77 --arch test_resnet --batch-size 9",
        "--device cuda:77: cannot be used",
    ),
    (
        "{pretrain} --eval-data empty --arch test_resnet --batch-size 9",
        "empty: has no train/ folder",
    ),
    ("{pretrain} --init nothing --arch test_resnet --batch-size 9", "'nothing': timm has no model"),
    (
        "pretrain --data {images}/train --out text/a.txt --arch test_resnet --batch-size 9",
        "text/a.txt: exists and is not an empty folder; give another --out",
    ),
    (
        "pretrain",
        "cgh pretrain: expected --data IMAGES and --out FOLDER; see `cgh pretrain --help`",
    ),
    ("pretrain --data {images}/train", "cgh pretrain: expected --out FOLDER; see"),
    ("pretrain --data a --batchsize 3", "there is no flag --batchsize, did you mean --batch-size;"),
    ("evaluate knn a --data b --batchsize=3", "--batchsize, did you mean --batch-size; see"),
    ("pretrain --data a --out b --zzz", "cgh pretrain: there is no flag --zzz; see"),
    ("resume run --epochs 4 --no-decay-norms", "a resumed run keeps its settings, but --epochs"),
    ("resume run --set taps=3", "but --set changes the model; a new run can start from it: `cgh"),
    ("resume run --zzz", "cgh resume: there is no flag --zzz; see `cgh resume --help`"),
    ("resume none", "none: not found|none/config.json: not found"),
    ("resume empty", "empty/config.json: not found; expected the config.json of a run folder"),
    ("evaluate knn empty --data {images}", "empty: holds no weights"),
    ("evaluate knn resnet18_cifar --data {images}", "no weights of this name"),
    ("evaluate knn resnet18_cifar_w16 --random --data empty", "empty: has no train/ folder"),
    ("evaluate knn resnet18_cifar_w16 --random --data {images} --k 65", "--k 65: expected 1 to 64"),
    (
        "evaluate knn empty --data {images} --temperature inf",
        "--temperature inf: expected a number",
    ),
    ("evaluate knn empty --data {images} --temperature 0", "--temperature 0.0: expected a number"),
    ("{pretrain} --mean nan 0 0", "mean=(nan, 0.0, 0.0): each has to be a number"),
    ("{pretrain} --set temperature=inf --batch-size 9", "temperature"),
    ("evaluate kn", "cgh evaluate kn: there is no such command; did you mean `cgh evaluate knn`?"),
    ("knn a --data b", "did you mean `cgh evaluate knn`?"),
    ("zzz", "cgh zzz: there is no such command; `cgh --help` lists the commands"),
    ("--print-completion tcsh", "--print-completion tcsh: expected one of bash, zsh, fish"),
    (
        "evaluate knn resnet18_cifar_w16 --random --data {images} --batch-size 0",
        "batch size 0, workers 2: expected at least 1",
    ),
    ("evaluate knn no/such --data {images}", "no/such: there is no such folder"),
    ("evaluate knn local-dir:none --data {images}", "none: there is no such folder"),
    (
        "pretrain --data {images}/train/class0/00000.png --out o",
        "neither a folder nor a text file of paths",
    ),
    (
        "pretrain --data {images}/train --out text --arch test_resnet --batch-size 9",
        "text: exists and is not an empty folder",
    ),
    ("pretrain --data {images}/train --out= --arch test_resnet", "neither may be empty"),
    ("{pretrain} --arch resnet18.a1_in1k --batch-size 9", "--init resnet18.a1_in1k to start from"),
    ("{pretrain} --arch test_vit --image-size 100 --batch-size 9", "give a larger --image-size"),
    ("{pretrain} --device meta --batch-size 9", "--device meta: cannot be used"),
    ("{pretrain} --recipe cifar --batch-size 9 --set batch_norm_splits=8", "2 images a part"),
    ("{pretrain} --base-lr nan", "base_lr=nan: at least 0"),
    ("export empty --out o", "empty: not a run folder"),
    ("demo --out text", "text: exists and is not an empty folder"),
    ("pretrian", "did you mean `cgh pretrain`?"),
    (
        "evaluate knn resnet18_cifar_w16 --random --record --data {images}",
        "--record: resnet18_cifar_w16 is no weights",
    ),
    ("list vit_*", "vit_*: no published weights match; `cgh list` shows all"),
    ("info nobody", "nobody: no published weights of this name"),
    (
        "info empty",
        "empty/weights.json: not found; expected the description that `cgh export` writes",
    ),
    ("info", "cgh info: expected WEIGHTS; see `cgh info --help`"),
    ("info a b", "cgh info: 'b' is one word too many; see"),
    ("verify resnet10_cifar_fast.cgh", "did you mean resnet10_cifar_fast.cgh_cifar10"),
    ("verify text", "text/weights.json: not found"),
    ("publish none --repo a/b", "none/weights.json: not found"),
    ("publish empty", "--repo"),
    ("autoload maybe", "cgh autoload: 'maybe': expected one of on, off; see"),
    ("export {images} --out o --tag cgh", "not a run folder"),
]


def test_memory_that_ends_is_one_sentence_wherever_it_does(monkeypatch, capsys):
    monkeypatch.setattr(List, "run", lambda _: torch.empty(2**60))
    monkeypatch.setattr(sys, "argv", ["cgh", "list"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert "can't allocate memory" in said and said.count("\n") == 1
    assert "give a smaller --batch-size, or --device cpu" in said


@pytest.mark.parametrize("words, message", MISTAKES, ids=[m[0][:60] for m in MISTAKES])
def test_a_mistake_is_one_line_on_stderr_and_exit_2(
    tmp_path, image_root, monkeypatch, capsys, words, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    pretrain = f"pretrain --data {image_root}/train --out o"
    words = words.format(images=image_root, pretrain=pretrain).split()
    monkeypatch.setattr(sys, "argv", ["cgh", *words])
    with pytest.raises(SystemExit) as stopped:  # anything else would be a traceback
        main()
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and len(errors[0]) <= 420, said
    assert any(part in errors[0] for part in message.split("|")), errors[0]
    assert not (tmp_path / "o").exists()


LONG_PATHS = [
    ("pretrain --data LONG --out o", "--data"),
    ("pretrain --data {images}/train --out LONG", "--out"),
    ("pretrain --data {images}/train --out o --init LONG", "--init"),
    ("pretrain --data {images}/train --out o --eval-data LONG", "--eval-data"),
    ("resume LONG", "RUN"),
    ("resume run --data=LONG", "--data"),
    ("resume run --eval-data LONG", "--eval-data"),
    ("export LONG --out o", "RUN"),
    ("export run --out LONG", "--out"),
    ("demo --out LONG", "--out"),
    ("evaluate knn LONG --data {images}", "WEIGHTS"),
    ("evaluate knn test_resnet --random --data LONG", "--data"),
    ("evaluate knn test_resnet --random --data {images} --cache LONG", "--cache"),
    ("evaluate linear test_resnet --protocol sgd --data LONG", "--data"),
    (
        "evaluate finetune test_resnet --random --data {images} --labels 100% --splits-file LONG",
        "--splits-file",
    ),
    ("reproduce resnet10_cifar_fast.cgh_cifar10 --data LONG", "--data"),
    ("info LONG", "WEIGHTS"),
    ("verify a LONG", "[WEIGHTS ...]"),
    ("convert LONG --method cgh --out o", "FILE"),
    ("convert {images} --method cgh --out LONG", "--out"),
    ("publish LONG --repo a/b", "FOLDER"),
    ("publish {images} --repo a/b --manifest LONG", "--manifest"),
]


@pytest.mark.parametrize("words, argument", LONG_PATHS, ids=[m[0][:60] for m in LONG_PATHS])
def test_a_path_that_no_file_system_holds_is_named_by_its_argument(
    tmp_path, image_root, monkeypatch, capsys, words, argument
):
    monkeypatch.chdir(tmp_path)
    for long in ("x" * 300, "\u00e9" * 200, "a/" * 2100):
        given = words.format(images=image_root).replace("LONG", long).split()
        monkeypatch.setattr(sys, "argv", ["cgh", *given])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.startswith(f"error: {argument} {long[:9]}"), said
        assert said.endswith(": too long for a file system; give a shorter path\n"), said
        assert len(said) < 200 and not list(tmp_path.iterdir())


def test_without_the_events_of_tyro_a_mistake_is_its_own_box(monkeypatch, printed):
    monkeypatch.setattr("cgh_models.cli.main.on_parse_error", contextlib.nullcontext)
    code, out, err = printed("evaluate", "knn", "--k", "many")
    assert code == 2 and out == "" and "Missing from cgh evaluate knn" in err


def test_changed_settings_are_refused_or_explained_on_resume(road):
    folder, _ = road
    refused = cgh("resume", "run", "--epochs", 4, "--base-lr", 0.5, cwd=folder)
    assert refused.returncode == 2 and refused.stderr == (
        "error: cgh resume: a resumed run keeps its settings, but --epochs changes the schedule, "
        "--base-lr changes the schedule; a new run can start from it: `cgh pretrain --init RUN "
        "...`; see `cgh resume --help`\n"
    )
    safe = cgh("resume", "run", "--log-every", 7, cwd=folder)
    assert safe.returncode == 0 and "log_every: 0 -> 7 changes nothing" in safe.stderr


def test_a_damaged_checkpoint_is_exit_4(road, tmp_path):
    shutil.copytree(road[0] / "run", tmp_path / "run")
    for path in (tmp_path / "run").glob("*.safetensors"):
        path.write_bytes(b"x")
    done = cgh("export", "run", "--out", "w", cwd=tmp_path)
    assert done.returncode == 4 and "every checkpoint is damaged" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["\ud8ff", "a\0b"], ids=["half a character", "NUL"])
def test_characters_that_no_path_has_are_named(image_root, tmp_path, monkeypatch, capsys, name):
    folder = str(image_root / "train")
    for words in (["verify", name], ["pretrain", "--data", folder, "--out", name]):
        monkeypatch.setattr(sys, "argv", ["cgh", *words])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "has a character that no path has" in capsys.readouterr().err
    with pytest.raises(InputError, match="has a character that no path has"):
        make_folder(Path(name))
