"""What a crafted description asks for is refused before its memory is taken."""

import json
import resource
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_integrity import edit

from cgh_models import backbone, create_model, load_method, verify
from cgh_models.errors import InputError, IntegrityError
from cgh_models.evaluate import extract
from cgh_models.hashing import sha256
from cgh_models.hub.memory_limit import MemoryLimit
from cgh_models.hub.registry import load_run
from cgh_models.hub.row import BACKBONE


@pytest.fixture
def folder(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(autouse=True)
def _at_most_a_gibibyte():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


HUGE = [
    ("method_config", "queue_length", 2**24),
    ("method_config", "hidden_width", 2**24),
    ("preprocessing", "input_size", [3, 4096, 4096]),
]


@pytest.mark.parametrize("part, key, value", HUGE, ids=[key for _, key, _ in HUGE])
@pytest.mark.parametrize("load", [load_method, verify])
def test_a_row_cannot_ask_for_more_than_its_tensors_justify(folder, part, key, value, load):
    edit(folder, lambda row: row[part].update({key: value}))
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"].update({key: value} if part == "preprocessing" else {})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="/w: its description asks for more memory than its"):
        load(folder)


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("method_config", "queue_length", 2**24),
        ("train", "image_size", 2**20),
        ("train", "image_size", 2**39),
    ],
)
def test_a_runs_config_cannot_ask_for_more_either(run, tmp_path, part, key, value):
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config[part][key] = value
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    message = "/run: its description asks for more memory|cannot take images of"
    with pytest.raises((IntegrityError, InputError), match=message):
        load_run(tmp_path / "run")


def test_tensors_of_the_right_shapes_do_not_open_the_door(folder):
    """LeViT's tables of N x N positions are no tensors of its file."""
    args = {"img_size": 4096}
    state = backbone.skeleton("levit_128s", **args).state_dict()
    save_file({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in state.items()}, folder / BACKBONE)
    row = json.loads((folder / "weights.json").read_text())
    row |= {"name": "levit_128s.cgh", "architecture": "levit_128s", "model_args": args}
    row["files"] = {BACKBONE: dict(bytes=1, sha256=sha256(folder / BACKBONE), urls=None)}
    (folder / "weights.json").write_text(json.dumps(row))
    for arguments in ({}, {"num_classes": 3}):
        with pytest.raises(IntegrityError, match="asks for more memory"):
            create_model(folder, **arguments)


def test_a_classifier_may_be_as_large_as_the_caller_wants_it(folder):
    model = create_model(folder, num_classes=1_500_000)
    assert model.get_classifier().weight.nbytes > 2**29


@pytest.mark.parametrize("arch", ["resnet50", "vit_small_patch16_224"])
def test_a_network_of_ordinary_size_is_far_from_the_limit(arch):
    with MemoryLimit("it", []) as limit, torch.inference_mode():
        model = timm.create_model(arch, num_classes=0).eval()
        model(torch.zeros(1, 3, 224, 224))
        assert limit.calls < 10_000 and limit.rest > 2**28
    del model
    assert limit.rest == 2**29  # what is freed can be taken again


def save_for_timm(folder, arch="test_vit", **config):
    folder.mkdir()
    args = {"global_pool": "avg"} if config.get("model_args", {}).get("global_pool") else {}
    model = timm.create_model(arch, num_classes=10, **args)
    save_file(model.state_dict(), folder / BACKBONE)
    cfg = {"num_classes": 10, "input_size": [3, 160, 160], "classifier": "head"}
    cfg["fixed_input_size"] = True
    written = {"architecture": arch, "num_classes": 10, "pretrained_cfg": cfg, **config}
    (folder / "config.json").write_text(json.dumps(written))
    return model


def test_a_folder_that_timm_wrote_is_read(tmp_path):
    model = save_for_timm(tmp_path / "w", model_args={"global_pool": "avg", "num_classes": 10})
    loaded = create_model(tmp_path / "w")
    assert torch.equal(loaded.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert loaded.num_classes == 0 and create_model(tmp_path / "w", num_classes=3).num_classes == 3
    whole = create_model(tmp_path / "w", num_classes=10)
    assert torch.equal(whole.head.weight, model.head.weight)


@pytest.mark.parametrize(
    "key, value",
    [
        ("checkpoint_path", "/tmp/evil.pth"),
        ("checkpoint_path", 1),
        ("pretrained_strict", False),
        ("pretrained_cfg", {"url": "https://example.com/x.pth"}),
        ("cache_dir", "x"),
        ("act_layer", "a/b"),
        ("embed_dim", 10**9),
        ("depth", 101),
        ("depths", [[10**9, 1], 1]),
    ],
)
def test_no_other_argument_of_a_config_reaches_timm(tmp_path, key, value):
    save_for_timm(tmp_path / "w", model_args={key: value})
    for arguments in ({}, {"num_classes": 3}):
        with pytest.raises(InputError, match=f"config.json: model_args: {key}=.* not passed on"):
            create_model(tmp_path / "w", **arguments)


def test_a_config_that_timm_would_follow_elsewhere_leads_nowhere(tmp_path):
    cfg = {"custom_load": True, "file": "/tmp/x", "url": "https://x/y", "hf_hub_id": "a/b"}
    cfg |= {"state_dict": {}, "num_classes": 10, "source": "url", "input_size": [3, 160, 160]}
    cfg["classifier"] = "head"
    cfg["fixed_input_size"] = True
    model = save_for_timm(tmp_path / "w", pretrained_cfg=cfg)
    loaded = create_model(tmp_path / "w")
    assert torch.equal(loaded.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_tensors_under_other_names_are_refused_whatever_the_classifier(tmp_path):
    """timm loads them without a word as soon as the number of classes differs."""
    save_for_timm(tmp_path / "w")
    tensors = load_file(tmp_path / "w" / BACKBONE)
    save_file({f"model.{k}": v for k, v in tensors.items()}, tmp_path / "w" / BACKBONE)
    for arguments in ({}, {"num_classes": 3}, {"num_classes": 10}):
        with pytest.raises(IntegrityError, match="does not fit test_vit: .* tensors are missing"):
            create_model(tmp_path / "w", **arguments)


@pytest.mark.parametrize("args", [{"embed_dim": 10_000}, {"depth": 100}, {"img_size": 10_000}])
def test_sizes_that_the_tensors_do_not_have_are_refused_soon(tmp_path, args):
    save_for_timm(tmp_path / "w", model_args=args)
    with pytest.raises((IntegrityError, InputError), match="/w"):
        create_model(tmp_path / "w")


@pytest.mark.parametrize("described_by", ["us", "timm"])
@pytest.mark.parametrize(
    "key, value, said",
    [
        ("input_size", [3, 3000, 3000], "its description asks for more memory than its"),
        ("input_size", [3, 9000, 9000], "input_size.1'?: 9000, expected 1 to 4096"),
        ("crop_pct", 0.002, "crop_pct'?: 0.002, expected 0.01 to 1"),
        ("crop_pct", -1, "crop_pct'?: -1, expected 0.01 to 1"),
        ("std", [0, 0, 0], "std.0'?: 0, expected more than 0"),
    ],
)
def test_images_that_a_description_asks_for_are_of_a_size_that_fits(
    folder, tmp_path, image_root, key, value, said, described_by
):
    if described_by == "us":
        edit(folder, lambda row: row["preprocessing"].update({key: value}))
    else:
        folder = tmp_path / "timm"
        save_for_timm(folder, "test_resnet")
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] = {"num_classes": 10, "classifier": "fc", key: value}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((InputError, IntegrityError), match=said):
        extract(create_model(folder), image_root / "val", workers=0)


def test_images_that_would_be_resized_to_immense_ones_are_refused(image_root):
    model = backbone.create("test_resnet", {"input_size": (3, 100, 100), "crop_pct": 0.01})
    with pytest.raises(InputError, match="images would be resized to 10000 pixels before the crop"):
        extract(model, image_root / "val", workers=0)


def test_the_size_of_the_pooled_map_in_a_description_takes_no_memory(folder, image_root):
    before = extract(create_model(folder), image_root / "val", workers=0)
    edit(folder, lambda row: row.update(pool_size=[10**9, 10**9]))
    assert (extract(create_model(folder), image_root / "val", workers=0) == before).all()
