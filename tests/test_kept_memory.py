"""What a network on a CPU frees is used again, and goes back to the system afterwards."""

import json
import platform

import pytest
from conftest import make_images, python

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")

# Prints the pages that 20 tensors of 48 MiB, one after the other, were given in each place, and the
# MiB that the process holds after it, then after eight more such tensors that lived together.
COUNTS = """
import json, resource, torch
from cgh_models.kept_memory import freed_memory_kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(48, 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

cpu, found = torch.device("cpu"), {"before": pages()}
with freed_memory_kept(torch.device("meta")):
    found["elsewhere"] = pages()
with freed_memory_kept(cpu):
    torch.zeros(48, 2**18)
    found["within"] = pages()
    with freed_memory_kept(cpu):
        pass
    found["after an inner one"] = pages()
    found["held within"] = held()
found["held after"] = held()
[torch.zeros(48, 2**18) for _ in range(8)]
found["held later"] = held()
print(json.dumps(found))
"""


def test_freed_memory_is_used_again_within_and_returned_afterwards(tmp_path):
    found = json.loads(python(COUNTS, cwd=tmp_path).stdout)
    few = found["before"] / 2  # some may move, where other threads take memory, too
    assert found["within"] < few > found["after an inner one"], found
    assert found["elsewhere"] > few, found
    assert found["held after"] < found["held within"] - 40, found
    # One may lie in a hole that the first ones left, and 64 MiB at the end stay as glibc has it.
    assert found["held later"] < found["held after"] + 8 * 48 / 2, found


# Prints what a training, then an evaluation of its network, is given in the middle.
RUNS = (
    COUNTS.partition("cpu, found")[0]
    + """
from cgh_models import extract, pretrain
from cgh_models.config import TrainConfig
from cgh_models.methods import METHODS, build_method, preprocessing
config = TrainConfig(image_size=32, batch_size=8, epochs=1, eval_every=-1)
settings = METHODS["moco_v2"].Config(queue_length=64, batch_norm_splits=1)
method = build_method("moco_v2", "resnet18_cifar_w16", preprocessing(config), settings)
found = [pages()]

def count(*_):
    torch.zeros(48, 2**18)
    found.append(pages())

pretrain(method, "set", config, "run", on_log=count)
method.student.backbone.register_forward_hook(count)
extract(method.student.backbone, "set", workers=0)
print(json.dumps(found))
"""
)


def test_a_training_and_an_evaluation_on_a_cpu_keep_it(tmp_path):
    make_images(tmp_path / "set", 16)
    done = python(RUNS, cwd=tmp_path)
    assert not done.returncode, done.stderr
    before, *found = json.loads(done.stdout)
    assert len(found) > 2 and max(found) < before / 2, (before, found)
