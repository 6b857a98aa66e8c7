"""A run that an earlier commit stopped at step 4 of 8 is resumed to its end."""

import shutil
from pathlib import Path

import torch
from small_runs import lines

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.dataclass_json import from_dict, from_older
from cgh_models.hub.registry import new_method_of_run
from cgh_models.methods import METHODS
from cgh_models.tensors import read_tensors
from cgh_models.train import checkpoint, loop

OLD = Path(__file__).parents[1] / "old_folders"


def test_settings_younger_than_a_run_mean_what_it_did():
    method, run = new_method_of_run(OLD / "run")
    assert "split_hypercolumn" not in run["method_config"]
    assert not method.config.split_hypercolumn and method.config.zero_init_last
    assert method.student.backbone.pretrained_cfg["interpolation"] == "bicubic"
    assert not from_older(METHODS["byol"].Config, {"hidden_width": 16}).wide_crops


def test_a_run_of_an_earlier_commit_is_resumed_to_its_end(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    description = checkpoint.read_run(run)
    config = from_dict(TrainConfig, description["train"])
    method_class = METHODS[description["method"]]
    method_config = from_older(method_class.Config, description["method_config"])
    side = config.image_size
    method = method_class(
        create(description["arch"], {"input_size": (3, side, side)}), method_config
    )

    saved = read_tensors(OLD / "run" / "checkpoint-00000004.safetensors")
    loaded, momentum = [], []
    real = loop.train_step

    def train_step(method, optimizer, *rest):
        if not loaded:
            loaded.append({f"method.{k}": v.clone() for k, v in method.state_dict().items()})
            state = optimizer.state_dict()["state"]
            momentum.append({i: values["momentum_buffer"].clone() for i, values in state.items()})
        return real(method, optimizer, *rest)

    monkeypatch.setattr(loop, "train_step", train_step)
    loop.pretrain(method, OLD / "images", config, run, resume=True)
    for name, tensor in loaded[0].items():
        assert torch.equal(tensor, saved.pop(name)), name
    for number, tensor in momentum[0].items():
        assert torch.equal(tensor, saved.pop(f"optimizer.{number}.momentum_buffer"))
    assert saved.keys() <= {"random.cpu", "random.cuda"} and len(momentum[0]) > 10
    assert checkpoint.newest(run, print)[0] == 8
    assert [row["step"] for row in lines(run)] == list(range(9))
    old = lines(OLD / "run")
    assert "feature_std" not in old[4], "the signal that stopped it left out a measurement"
    assert lines(run)[:4] == old[:4] and lines(run)[4].items() >= old[4].items()
    assert "feature_std" in lines(run)[4]
    said = capsys.readouterr().err
    assert "damaged" not in said and "missing" not in said and "done after 8 steps" in said
