"""The demo trains, measures and exports on the packaged photographs, and the features improve."""

import hashlib
import zipfile
from importlib import resources

import pytest
from conftest import cgh

SAMPLE = resources.files("cgh_models") / "sample"


def test_the_sample_is_3000_attributed_photographs():
    with resources.as_file(SAMPLE / "cifar10.zip") as path, zipfile.ZipFile(path) as sample:
        names = sample.namelist()
        digests = {hashlib.sha256(sample.read(name)).hexdigest() for name in names}
    assert len([n for n in names if n.startswith("train/")]) == 2500 and len(names) == 3000
    assert len({n.split("/")[1] for n in names}) == 10 and len(digests) > 2990
    assert "Krizhevsky" in (SAMPLE / "ATTRIBUTION.txt").read_text()


@pytest.mark.slow
def test_knn_after_the_demo_beats_knn_before_it(tmp_path):
    done = cgh("demo", "--out", "d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    before, after = (float(word) for word in said[-1].split() if word[0].isdigit())
    assert after > before, done.stdout
    assert said[0].endswith(f"untrained resnet18_cifar_w16: kNN {before:.1f} %")
    assert said[1].endswith(f"kNN {after:.1f} %")
    assert (tmp_path / "d" / "weights" / "model.safetensors").exists()
    second = cgh("demo", "--out", "d", cwd=tmp_path)
    assert second.returncode == 2 and "not an empty folder" in second.stderr
