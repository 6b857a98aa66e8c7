"""`cgh check`: text, JSON, advice that can be typed, files, mistakes."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from cgh_models.cli.main import parse
from cgh_models.data.image_set import load


@pytest.fixture
def here(in_process, monkeypatch, capsys, tmp_path, image_root):
    """Runs `cgh check` in a folder with photos/, made images and faults; gives its output."""
    shutil.copytree(image_root, tmp_path / "photos")
    train = tmp_path / "photos" / "train"
    (train / "class0" / "bad.jpg").write_text("no image")
    shutil.copy(train / "class0" / "00000.png", train / "class1" / "same.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def run(*words, code=None):
        words = ["check", *words, "--workers", 0]
        if code is None:
            return in_process(*words)
        with pytest.raises(SystemExit) as end:
            in_process(*words)
        assert end.value.code == code
        return capsys.readouterr()

    return run


def test_text_and_json_say_the_same_and_every_command_can_be_typed(here):
    shown = here("photos").out
    found = json.loads(here("photos", "--json").out)
    assert found["images"] == 86 and "images        86, " in shown
    assert "splits        train (66), val (20)" in shown
    assert "smallest 32 x 32" in shown and "86 smaller" not in shown
    assert "train/class0/bad.jpg: not readable" in shown
    assert "train/class0/00000.png = train/class1/same.png" in shown
    for sentence in found["advice"]:
        assert f"\n\n{sentence}" in shown
    commands = re.findall("`(cgh .*?)`", " ".join(found["advice"]))
    assert len(commands) >= 3
    for command in commands:
        if command != "cgh pretrain":
            parse(shlex.split(command)[1:])
    assert "--data photos/train --eval-data photos" in commands[0]


def test_known_images_are_checked_without_what_takes_seconds_to_import(image_root):
    command = ["cgh", "check", str(image_root / "train"), "--workers", "0"]
    code = f"""
import sys
from cgh_models.cli.main import main
sys.argv = {command}
main()
print([name for name in ("torch", "timm", "torchvision", "scipy") if name in sys.modules])
"""
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert second.stdout.splitlines()[-1] == "[]", second.stdout
    assert second.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]


def test_the_folder_of_results_holds_findings_images_to_train_on_and_views(here, tmp_path):
    shown = here("photos", "--recipe", "cifar", "--method", "byol", "--out", "my check")
    assert "--data 'my check/keep.csv'" in shown.out
    out = tmp_path / "my check"
    assert sorted(path.name for path in out.iterdir()) == ["check.json", "keep.csv", "views.png"]
    found = json.loads((out / "check.json").read_text())
    assert found["advice"] and found["recipe"] == "cifar" and found["views"] == 32
    assert "same.png" not in (out / "keep.csv").read_text()
    assert len(load(out / "keep.csv").classes) == 4
    assert Image.open(out / "views.png").size == (8 + 3 * 168, 24 + 8 * 184)
    here("photos", "--out", "my check")  # its own files are replaced


def test_good_images_get_no_advice(here, tmp_path, cifar_sample):
    assert json.loads(here(cifar_sample, "--recipe", "cifar", "--json").out)["advice"] == []


@pytest.fixture
def cifar_sample(tmp_path):
    """Thirty packaged photographs."""
    import zipfile
    from importlib import resources

    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        archive = zipfile.ZipFile(sample)
        names = [name for name in archive.namelist() if name.startswith("val/")][::17]
        archive.extractall(tmp_path / "sample", names)
    return tmp_path / "sample" / "val"


def test_mistakes_are_one_sentence(here, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    for words, sentence in [
        (["nowhere"], "nowhere: there is no such folder or list"),
        (["full"], "full: no images"),
        (["photos", "--out", "full"], "full: exists and is not an empty folder"),
        (["photos", "--method", "simclr"], "--method simclr: there is no such method"),
        (["photos", "--image-size", "-1"], "image_size=-1: at least 1 is needed"),
        (["photos", "--weights", "nothing"], "nothing"),
    ]:
        shown = here(*words, code=2)
        assert shown.out == "" and sentence in shown.err and shown.err.count("\n") == 1
