"""The demo walks the whole road on the packaged photographs; untrained features are better for it."""

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


def knn(printed: str) -> list[float]:
    """Before and after, from the last line."""
    return [float(word) for word in printed.splitlines()[-1].split() if word[0].isdigit()]


@pytest.mark.slow
def test_the_demo_goes_on_from_the_packaged_weights(tmp_path):
    done = cgh("demo", "--out", "d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    untrained = float(done.stdout.splitlines()[0].split()[-2])
    before, after = knn(done.stdout)
    assert "started from resnet18_cifar_w16.cgh_cifar10" in done.stdout
    assert min(before, after) > untrained  # how much more training of so few photographs gives is not promised
    assert (tmp_path / "d" / "weights" / "model.safetensors").exists()
    again = cgh("demo", "--out", "d", cwd=tmp_path)
    assert again.returncode == 2 and "not an empty folder" in again.stderr


@pytest.mark.slow
def test_knn_after_an_untrained_demo_beats_knn_before_it(tmp_path):
    done = cgh("demo", "--random", "--out", "d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = knn(done.stdout)
    assert after > before and "started from" not in done.stdout, done.stdout
