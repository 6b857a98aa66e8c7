"""From a run to weights and back: timm's keys, equal bytes, equal losses, --init, damage."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import cgh
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from small_runs import QUICK, small, stop_at, train_run
from test_integrity import edit, replace

from cgh_models import backbone, tensors
from cgh_models.cli.main import main
from cgh_models.cli.pretrain import Resume
from cgh_models.errors import InputError, IntegrityError, Interrupted, NetworkError
from cgh_models.hashing import sha256
from cgh_models.hub import manifest, memory_limit
from cgh_models.hub.export import export, record
from cgh_models.hub.integrity import verify
from cgh_models.hub.registry import create_model, load_method, load_run, read_method, start_from
from cgh_models.hub.row import BACKBONE, HEADS, STUDENT_HEADS, TEACHER_HEADS, Metric
from cgh_models.methods import METHODS, build_method, preprocessing
from cgh_models.train import checkpoint
from cgh_models.train.loop import pretrain


def test_the_backbone_has_timms_keys_and_nothing_else(weights):
    assert sorted(load_file(weights / "model.safetensors")) == sorted(
        timm.create_model("test_resnet", num_classes=0).state_dict()
    )
    heads = load_file(weights / HEADS)
    assert not [k for k in heads if k.startswith("student.backbone.")]
    assert {k.split(".")[0] for k in heads} == {"student", "teacher", "queue"}


def test_plain_timm_loads_it_without_this_package(weights, run):
    code = f"""
import json, sys, timm, torch
model = timm.create_model('local-dir:{weights}', pretrained=True).eval()
grey = timm.create_model('local-dir:{weights}', pretrained=True, num_classes=5, in_chans=1)
pyramid = timm.create_model('local-dir:{weights}', pretrained=True, features_only=True)
assert 'cgh_models' not in sys.modules
x = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
size = timm.data.resolve_model_data_config(model)['input_size']
print(json.dumps([size, model(x)[0].tolist(), grey(x[:, :1]).shape[1], len(pyramid(x))]))
"""
    run_it = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=run.parent
    )
    size, features, classes, maps = json.loads(run_it.stdout)
    x = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    expected = load_run(run).student.backbone.eval()(x)[0].tolist()
    assert features == expected and (size, classes, maps) == ([3, 64, 64], 5, 5)


def test_the_config_has_our_provenance_and_preprocessing_and_nothing_of_the_architectures_own(
    weights,
):
    cfg = json.loads((weights / "config.json").read_text())["pretrained_cfg"]
    stock = timm.get_pretrained_cfg("test_resnet")
    assert stock.tag == "r160_in1k" and stock.origin_url is None  # what must not leak
    assert (
        cfg["tag"] == "cgh" and cfg["paper_ids"] == ["arXiv:2308.13392"] and cfg["license"] is None
    )
    assert (
        cfg["input_size"] == [3, 64, 64]
        and cfg["mean"] == [0.485, 0.456, 0.406]
        and cfg["num_classes"] == 0
    )
    model = timm.create_model(f"local-dir:{weights}", pretrained=True)
    assert cfg["pool_size"] == [2, 2]  # of 64 px, not of the architecture's own 160
    assert model.pretrained_cfg["tag"] == "cgh" and not model.pretrained_cfg.get("test_input_size")


def test_equal_runs_export_equal_bytes(run, weights, tmp_path):
    export(run, tmp_path / "second", with_queue=True)
    names = [path.relative_to(weights) for path in weights.rglob("*") if path.is_file()]
    assert {BACKBONE, HEADS} < {str(name) for name in names}
    for name in names:
        assert (weights / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_method_restored_from_an_export_has_the_same_loss_to_the_bit(run, weights):
    torch.manual_seed(1)
    views = list(torch.randn(2, 6, 3, 64, 64))
    trained, restored = load_run(run), load_method(weights)
    for progress in (0.01, 0.7):
        ours, theirs = trained(views, progress), restored(views, progress)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_float16_halves_the_files_and_loads_as_float32(run, weights, tmp_path):
    export(run, tmp_path / "half", dtype="float16", with_queue=True)
    for name in (BACKBONE, HEADS):
        assert (tmp_path / "half" / name).stat().st_size < 0.6 * (weights / name).stat().st_size
    model = timm.create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    for key, value in model.state_dict().items():
        whole = load_file(weights / "model.safetensors")[key]
        assert torch.equal(
            value, whole.half().to(whole.dtype) if whole.is_floating_point() else whole
        )


def test_what_float16_cannot_hold_stays_float32_and_is_said(run, tmp_path, monkeypatch, capsys):
    lost = {"bn1.running_var": 5e6, "layer1.0.bn1.running_var": 2e-9, "layer2.0.bn1.weight": 1e-7}
    real = checkpoint.load_method_state

    def load(file, method):
        real(file, method)
        for key, value in lost.items():
            method.state_dict()[f"student.backbone.{key}"][0] = value
        weight = method.student.backbone.layer1[0].conv1.weight
        weight.data[0, 0, 0, 0] = 1e-9  # among larger ones: nothing that counts is lost
        method.queue.rows[0, 0] = 0

    monkeypatch.setattr(checkpoint, "load_method_state", load)
    export(run, tmp_path / "w", dtype="float16")
    found = load_file(tmp_path / "w" / BACKBONE)
    assert {k for k, v in found.items() if v.dtype == torch.float32} == lost.keys()
    model = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    for key, value in lost.items():
        assert model.state_dict()[key][0].item() == pytest.approx(value)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()
    assert torch.equal(
        load_method(tmp_path / "w").student.backbone.bn1.running_var, model.bn1.running_var
    )
    card = (tmp_path / "w" / "README.md").read_text()
    for text in (capsys.readouterr().err, card):
        assert "3 tensors are float32, as float16 cannot hold their values: bn1.running_var" in text


def test_what_is_not_in_the_files_is_not_said_of_them(run, tmp_path, monkeypatch, capsys):
    real = checkpoint.load_method_state

    def load(file, method):
        real(file, method)
        method.teacher.backbone.bn1.running_var[0] = 5e6

    monkeypatch.setattr(checkpoint, "load_method_state", load)
    export(run, tmp_path / "w", dtype="float16", heads="student")
    assert "float32" not in capsys.readouterr().err
    export(run, tmp_path / "all", dtype="float16")
    assert "1 tensors are float32, as float16 cannot hold" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in METHODS if name != "cgh"])
def test_every_method_exports_with_its_heads_and_goes_on_from_there(image_root, tmp_path, name):
    trained = train_run(tmp_path / "run", image_root, name=name)
    export(tmp_path / "run", tmp_path / "weights", with_queue=True)
    row = json.loads((tmp_path / "weights" / "weights.json").read_text())
    assert row["method"] == name and row["paper_ids"] == [METHODS[name].paper]
    card = (tmp_path / "weights" / "README.md").read_text()
    assert METHODS[name].paper in card and ("our reconstruction" in card) == (name == "lewel_m")
    torch.manual_seed(5)
    fresh = build_method(name, "test_resnet", {"input_size": (3, 64, 64)}, small(name))
    held = {"teacher": "teacher", "queue": "queues"}
    parts = [word for part, word in held.items() if hasattr(fresh, part)]
    said = start_from(fresh, tmp_path / "weights")
    assert said.endswith(", ".join(["backbone", "heads", *parts[:-1]]) + f" and {parts[-1]}")
    assert all(
        torch.equal(value, trained.state_dict()[key].cpu())
        for key, value in fresh.state_dict().items()
    )


def card_in(folder):
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["cgh", "byol", "nnclr"])
def test_the_students_heads_alone_start_a_training_with_a_new_teacher(image_root, tmp_path, name):
    trained = train_run(tmp_path / "run", image_root, name=name).to("cpu").state_dict()
    export(tmp_path / "run", tmp_path / "weights", heads="student")
    file = tmp_path / "weights" / STUDENT_HEADS
    assert all(key.startswith("student.") for key in load_file(file))
    assert "what its method has beside them begins anew" in card_in(tmp_path / "weights")
    fresh = build_method(name, "test_resnet", {"input_size": (3, 64, 64)}, small(name))
    said = start_from(fresh, tmp_path / "weights")
    expected = {
        "cgh": "backbone, heads; the teacher begins as the student, the queues anew",
        "byol": "all but the teacher, which begins as the student",
        "nnclr": "all but the queues, which begin anew",
    }[name]
    assert expected in said
    for key, value in fresh.state_dict().items():
        if key.startswith("queue."):
            assert not torch.equal(value, trained[key])
        else:
            expected = trained.get(key.replace("teacher.", "student."), torch.tensor(0))
            assert torch.equal(value, expected), key
    verify(tmp_path / "weights")
    export(tmp_path / "run", tmp_path / "bare", heads="none")
    assert verify(tmp_path / "bare")["files"] == [BACKBONE]
    assert "heads: left out, the weights have none" in start_from(fresh, tmp_path / "bare")
    with pytest.raises(InputError, match="holds a backbone without heads"):
        load_method(tmp_path / "bare")


@pytest.mark.parametrize("name", ["cgh", "byol", "mnclglf"])
def test_queues_are_left_out_unless_wanted_and_begin_anew(image_root, tmp_path, capsys, name):
    trained = train_run(tmp_path / "run", image_root, name=name).to("cpu").state_dict()
    queues = {key for key in trained if key.startswith("queue.")}
    capsys.readouterr()
    export(tmp_path / "run", tmp_path / "weights")
    assert ("--with-queue keeps them" in capsys.readouterr().err) == bool(queues)
    file = tmp_path / "weights" / (TEACHER_HEADS if queues else HEADS)
    assert {key.partition(".")[0] for key in load_file(file)} == {"student", "teacher"}
    card = card_in(tmp_path / "weights")
    assert "holds the heads and the teacher" in card and ("queues" in card) == bool(queues)
    loaded = load_method(tmp_path / "weights").state_dict()
    said = f"{tmp_path}/weights: all but the queues, which begin anew\n"
    assert capsys.readouterr().err == (said if queues else "")
    for key, value in loaded.items():
        assert torch.equal(value, trained[key]) != key.startswith("queue."), key
    fresh = build_method(name, "test_resnet", {"input_size": (3, 64, 64)}, small(name))
    told = "but the queues, which begin anew" if queues else "backbone, heads and teacher"
    assert start_from(fresh, tmp_path / "weights").endswith(told)
    assert capsys.readouterr().err == ""  # whoever calls says it
    verify(tmp_path / "weights")


def test_the_flags_of_an_export_leave_out_queues_and_heads(run, in_process, capsys):
    for out, flags in {"a": [], "b": ["--with-queue"], "c": ["--no-heads"]}.items():
        in_process("export", run, "--out", out, *flags)
    files = {out: sorted(manifest.read_row(Path(out)).files) for out in "abc"}
    assert files == {"a": [TEACHER_HEADS, BACKBONE], "b": [HEADS, BACKBONE], "c": [BACKBONE]}
    assert not Path("c", "heads").exists()


def test_a_folder_without_queues_may_ask_for_those_of_the_largest_recipe(run, tmp_path):
    """They take 512 MiB that no file holds; no description gets much more."""
    export(run, tmp_path / "w", heads="student")
    edit(tmp_path / "w", lambda row: row["method_config"].update(queue_length=2**23))
    assert load_method(tmp_path / "w").queue.rows.nbytes == 131_072 * 512 * 2 * 4
    edit(tmp_path / "w", lambda row: row["method_config"].update(queue_length=2**24))
    for load in (load_method, verify):
        with pytest.raises(IntegrityError, match="memory .* of queue_length=16777216; `cgh export"):
            load(tmp_path / "w")


def test_a_run_is_exported_whatever_the_length_of_its_queues(run, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_limit, "_BYTES", 2**21)
    monkeypatch.setattr(memory_limit, "_NEW_QUEUES", 0)
    export(run, tmp_path / "w", heads="student")
    edit(tmp_path / "w", lambda row: row["method_config"].update(queue_length=2**23))
    with pytest.raises(IntegrityError, match="asks for more memory"):
        load_method(tmp_path / "w")
    assert read_method(tmp_path / "w", trusted=True)[0].queue.rows.shape[1] == 2**23


def test_two_queues_of_196608_by_512_can_be_made_anew(run, tmp_path):
    export(run, tmp_path / "w", heads="student")
    settings = {"queue_length": 196_608 * 64}  # of width 8
    edit(tmp_path / "w", lambda row: row["method_config"].update(settings))
    assert load_method(tmp_path / "w").queue.rows.nbytes == 196_608 * 512 * 2 * 4


@pytest.mark.parametrize("lost", ["queue.", "teacher."])
def test_heads_that_lost_a_part_are_refused(weights, tmp_path, lost):
    shutil.copytree(weights, tmp_path / "w")

    def lose(tensors):
        for key in [key for key in tensors if key.startswith(lost)]:
            del tensors[key]

    replace(tmp_path / "w", HEADS, lose)
    for load in (load_method, verify):
        with pytest.raises(IntegrityError, match="tensors are missing"):
            load(tmp_path / "w")


@pytest.mark.parametrize("arch", ["test_vit", "test_convnext", "resnet18_cifar_w16"])
def test_other_families_export_too(image_root, tmp_path, arch):
    train_run(tmp_path / "run", image_root, arch, "ressl")
    export(tmp_path / "run", tmp_path / "weights")
    model = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.head_hidden_size)


def test_the_card_holds_the_numbers_of_the_row_and_no_other(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    card = (tmp_path / "w" / "README.md").read_text()
    assert (
        "Nothing yet: `cgh evaluate knn" in card
        and "64 images" in card
        and "1 epochs, 4 steps" in card
    )
    metric = Metric("Some Set", "p", {"k": 3}, 61.25, 20, "cgh x")
    record(tmp_path / "w", "knn", metric)
    card = (tmp_path / "w" / "README.md").read_text()
    assert card.index("**Data:**") < card.index(
        '| knn | Some Set | 61.25 % | 20 | p | `{"k": 3}` |'
    )
    card_data = ModelCard.load(tmp_path / "w" / "README.md").data
    assert [(r.metric_value, r.dataset_name) for r in card_data.eval_results] == [
        (61.25, "Some Set")
    ]
    assert json.loads((tmp_path / "w" / "weights.json").read_text())["metrics"] == {
        "knn": vars(metric),
        "linear": None,
    }


def test_a_failed_export_leaves_nothing_behind(run, tmp_path, monkeypatch):
    real = Path.rename

    def rename(path, target):
        if path.name == "config.json":  # the last
            raise OSError(28, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space left"):
        export(run, tmp_path / "w")
    monkeypatch.setattr("cgh_models.hub.card._front_matter", lambda row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, tmp_path / "w")
    assert [p.name for p in tmp_path.iterdir()] == ["w"] and not list((tmp_path / "w").iterdir())


def test_an_export_fills_the_folder_that_it_is_given(run, weights, tmp_path, monkeypatch):
    """A mount point, the folder in which the shell stands: never replaced by another."""
    draft = tmp_path / ".cgh-draft"  # of an export that was killed
    draft.mkdir()
    (draft / "half").write_text("")
    (tmp_path / "lost+found").mkdir()
    monkeypatch.chdir(tmp_path)
    inode, parent = tmp_path.stat().st_ino, sorted(tmp_path.parent.iterdir())
    export(run, ".")
    names = {path.name for path in weights.iterdir()} | {"lost+found"}
    assert tmp_path.stat().st_ino == inode and {p.name for p in tmp_path.iterdir()} == names
    assert sorted(tmp_path.parent.iterdir()) == parent
    assert create_model(Path(".")).num_features == create_model(weights).num_features


def test_an_export_of_a_run_that_goes_on_says_so(image_root, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train_run(tmp_path / "sp ace", image_root)
    export(tmp_path / "sp ace", tmp_path / "w")
    said = capsys.readouterr().err
    assert f"is at step 2 of 4, exported before its end; `cgh resume '{tmp_path}/sp ace'`" in said
    note = "Exported at step 2 of 4, before the end of its training."
    assert manifest.read_row(tmp_path / "w").notes == [note]
    assert note in (tmp_path / "w" / "README.md").read_text()


def test_an_export_of_a_run_that_collapsed_says_so(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as log:
        log.write('{"step": 4, "feature_std": 0.002}\n{"step": 5, "feature_std": 0.5}\n')
    export(tmp_path / "run", tmp_path / "w")
    found = "all images have nearly one embedding (feature_std 2.0e-03)"
    assert f"{tmp_path}/run: collapsed: {found}\n" in capsys.readouterr().err
    note = f"Verdict of the measurements of its training: collapsed: {found}."
    assert manifest.read_row(tmp_path / "w").notes == [note]
    assert f"collapsed: {found}." in (tmp_path / "w" / "README.md").read_text()


def test_a_run_whose_images_lie_beside_a_hidden_file_goes_on_and_is_exported(
    image_root, tmp_path, monkeypatch
):
    shutil.copytree(image_root / "train", tmp_path / "train")
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            train_run(run, tmp_path)
    assert json.loads((run / "config.json").read_text())["data"]["hidden"] == 1
    Resume(str(run), {}).run()
    assert load_run(run).name == "cgh"
    export(run, tmp_path / "w")
    assert create_model(tmp_path / "w").num_features == load_run(run).student.backbone.num_features


def test_names_that_are_no_text_are_escaped_in_what_is_published(
    image_root, tmp_path, monkeypatch, capsys
):
    """From the images to a recorded number: every name is one that a file system can hold."""
    root = tmp_path / os.fsdecode(b"d\xff ata\n")
    shutil.copytree(image_root, root)
    config = dataclasses.replace(QUICK, image_size=64, epochs=1, eval_data=str(root))
    method = build_method("ressl", "test_resnet", preprocessing(config), small("ressl"))
    run, out = tmp_path / os.fsdecode(b"r\xfe'un"), tmp_path / os.fsdecode(b"w\xfd")
    monkeypatch.setattr(sys, "argv", ["cgh", "pretrain", "--data", root.name])
    pretrain(method, root / "train", config, run)
    loop = "export it: `cgh export $'"
    assert loop in capsys.readouterr().err
    export(run, out, data_name=root.name)
    words = ["evaluate", "knn", str(out), "--data", str(root), "--k", "3", "--record"]
    monkeypatch.setattr(sys, "argv", ["cgh", *words])
    main()
    row = manifest.read_row(out)
    card = (out / "README.md").read_text("utf-8")
    assert row.data.name == r"d\udcff ata\n" and row.metrics["knn"].data == r"d\udcff ata\n"
    assert row.train_config["eval_data"] == r"d\udcff ata\n" and r"d\udcff ata" in row.command
    assert "\\udcfd" in card and row.metrics["knn"].command in card
    assert verify(out)["parameters"] == row.parameters
    before = (out / "weights.json").read_bytes(), (out / "README.md").read_bytes()
    with pytest.raises(InputError, match="is no text; give it in UTF-8"):
        record(out, "linear", Metric("d", "p\udcff", {}, 1.0, 1, "x"))
    assert ((out / "weights.json").read_bytes(), (out / "README.md").read_bytes()) == before


def test_a_vit_starts_from_weights_of_another_image_size(image_root, tmp_path):
    train_run(tmp_path / "run", image_root, "test_vit")
    export(tmp_path / "run", tmp_path / "weights")
    torch.manual_seed(0)
    settings = small("cgh")
    larger = build_method("cgh", "test_vit", {"input_size": (3, 96, 96)}, settings)
    assert "backbone; heads: left out" in start_from(larger, tmp_path / "weights")
    assert larger.student.backbone(torch.randn(1, 3, 96, 96)).shape == (1, 64)


def test_weights_and_runs_are_loaded_by_one_name(weights, run):
    x = torch.randn(1, 3, 64, 64)
    a, b = create_model(weights).eval(), create_model(run).eval()
    assert torch.equal(a(x), b(x))
    assert create_model(weights, num_classes=3)(x).shape == (1, 3)


def test_timms_name_comes_before_a_folder_that_is_called_like_it(
    weights, tmp_path, monkeypatch, image_root
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights, tmp_path / "test_resnet")
    shutil.copytree(weights, tmp_path / "test_resnet.mine")  # no tag of timm's
    with pytest.raises(NetworkError, match="test_resnet: its weights could not be fetched"):
        create_model("test_resnet")
    expected = load_file(weights / BACKBONE)["layer1.0.conv1.weight"]
    folder = Path("test_resnet")
    for name in ("./test_resnet", "local-dir:test_resnet", folder, "test_resnet.mine"):
        assert torch.equal(create_model(name).layer1[0].conv1.weight, expected), name
    assert "backbone, heads, teacher and queues" in start_from(new(), "./test_resnet")
    with pytest.raises(NetworkError):
        start_from(new(), "test_resnet")
    for call in (verify, load_method, manifest.find):  # timm's has no row, no heads
        with pytest.raises(InputError, match="test_resnet: no published weights of this name"):
            call("test_resnet")
        call("./test_resnet")
        call(folder)
    images = ["--data", image_root, "--workers", 0, "--device", "cpu", "--record"]
    done = cgh("evaluate", "knn", "test_resnet", *images, cwd=tmp_path)
    assert done.returncode == 2 and "--record: test_resnet is no weights folder" in done.stderr
    assert "the folder of that name is ./test_resnet" in done.stderr
    assert cgh("info", "test_resnet", cwd=tmp_path).returncode == 2
    with pytest.raises(InputError, match="nothing_here: there is no such folder"):
        create_model(Path("nothing_here"))  # a Path is never a name


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet18_cifarr", "did you mean resnet18_cifar"),
        ("resnet18_cifar", "no weights of this name .* --random takes untrained"),
        ("resnet18.nobody", "no weights of this name"),
        (".", "holds no weights .* and no run"),
    ],
)
def test_a_name_without_weights_is_one_sentence(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        create_model(name)


def test_a_damaged_file_is_named(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    whole = (tmp_path / "w" / "model.safetensors").read_bytes()
    for body in (b"", b"<html>not found</html>", whole[: len(whole) // 2]):
        (tmp_path / "w" / "model.safetensors").write_bytes(body)
        with pytest.raises(
            IntegrityError, match=r"model.safetensors: not a readable safetensors file"
        ):
            create_model(tmp_path / "w")


def test_heads_that_do_not_fit_the_backbone_are_refused(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    heads = load_file(weights / HEADS)
    heads.pop("queue.rows")
    save_file(heads, tmp_path / "w" / HEADS)
    row = json.loads((tmp_path / "w" / "weights.json").read_text())
    row["files"][HEADS]["sha256"] = sha256(tmp_path / "w" / HEADS)
    (tmp_path / "w" / "weights.json").write_text(json.dumps(row))
    with pytest.raises(IntegrityError, match=r"1 of \d+ tensors are missing, .* queue.rows"):
        load_method(tmp_path / "w")


def new(name="cgh", arch="test_resnet", **settings):
    torch.manual_seed(7)
    return build_method(name, arch, {"input_size": (3, 64, 64)}, small(name, **settings))


@pytest.mark.parametrize("source", ["weights", "run"])
def test_init_takes_the_heads_when_they_fit(request, source, run):
    method, trained = new(), load_run(run)
    assert "backbone, heads, teacher and queues" in start_from(
        method, request.getfixturevalue(source)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.state_dict().values(), trained.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("source", ["weights", "run"])
def test_init_with_another_length_of_the_queue_leaves_out_the_queue_alone(request, source, run):
    method, trained = new(queue_length=16), load_run(run).state_dict()
    own = method.queue.rows.clone()
    said = start_from(method, request.getfixturevalue(source))
    assert said.endswith("all but the queues, which begin anew")
    assert torch.equal(method.queue.rows, own) and method.queue.position == 0
    for key, value in method.state_dict().items():
        assert key.startswith("queue.") or torch.equal(value, trained[key])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"name": "ressl"}, "heads: left out, they are cgh's and not ressl's"),
        (
            {"hidden_width": 17},
            r"heads: left out, \d+ of \d+ tensors are missing, .* are student.hyper_projector.0",
        ),
    ],
)
def test_init_says_what_it_leaves_out(run, weights, settings, said):
    import re

    method, trained = new(**settings), load_run(run)
    assert re.search(said, start_from(method, weights))
    for branch in (method.student, method.teacher):
        for key, value in branch.backbone.state_dict().items():
            assert torch.equal(value, trained.student.backbone.state_dict()[key])


def test_init_with_another_architecture_is_refused(weights):
    with pytest.raises(
        InputError, match="does not fit the model: .* give weights of the same architecture"
    ):
        start_from(new(arch="resnet18_cifar_w16"), weights)


def test_init_with_a_deeper_network_is_refused(image_root, tmp_path):
    """All that the smaller one has is in it, in the same shapes."""
    train_run(tmp_path / "deep", image_root, arch="resnet34")
    with pytest.raises(
        InputError, match="does not fit the model: .* give weights of the same architecture"
    ):
        start_from(new(arch="resnet18"), tmp_path / "deep")


def test_what_a_run_started_from_is_told_and_no_folder_of_the_machine(
    run, image_root, tmp_path, monkeypatch
):
    config = dataclasses.replace(QUICK, image_size=64, epochs=1)
    method = build_method("cgh", "test_resnet", preprocessing(config), small("cgh"))
    start_from(method, run)
    monkeypatch.setattr(
        sys, "argv", ["cgh", "pretrain", "--data", f"{image_root}/train", f"--out={tmp_path}/run"]
    )
    pretrain(method, image_root / "train", config, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "w")
    row = manifest.read_row(tmp_path / "w")
    assert row.command == "cgh pretrain --data train --out=run"
    assert "Its training started from run: backbone, heads, teacher and queues." in row.notes
    record(tmp_path / "w", "knn", Metric("d", "p", {}, 1.0, 1, "cgh x --data /home/me/d"))
    card = (tmp_path / "w" / "README.md").read_text()
    assert str(tmp_path) not in card + json.dumps(row.to_json())
    assert "/home/me" not in (tmp_path / "w" / "README.md").read_text()


def test_an_export_beside_a_trainer_describes_what_it_wrote(run, tmp_path, monkeypatch):
    asked, real = [], checkpoint.newest
    monkeypatch.setattr(checkpoint, "newest", lambda *given: asked.append(1) or real(*given))
    export(run, tmp_path / "w")
    assert len(asked) == 1  # a newer one in between would be described and not written


def test_export_does_not_overwrite(run, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        export(run, tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        export(tmp_path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_reads_back_differently_is_an_error(run, tmp_path, monkeypatch):
    def altered(path, given):
        tensors.write_tensors(
            path, {k: v + 0.01 if v.is_floating_point() else v for k, v in given.items()}
        )

    monkeypatch.setattr("cgh_models.hub.export.write_tensors", altered)
    with pytest.raises(IntegrityError, match="do not use it"):
        export(run, tmp_path / "w")


def test_the_backbone_is_timms_own_class(run):
    assert type(load_run(run).student.backbone) is type(backbone.create("test_resnet"))


def test_feature_maps_that_a_network_has_not_are_one_sentence(weights):
    """timm's message for them is an IndexError."""
    for name in (str(weights), "test_resnet"):
        with pytest.raises(
            InputError, match="timm cannot build it with .*out_indices.*change those"
        ):
            create_model(name, name != "test_resnet", features_only=True, out_indices=(1, 7))
