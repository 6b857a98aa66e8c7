"""Embeddings are timm's, in the set's order, and what makes none is refused."""

import copy
import tracemalloc

import numpy as np
import pytest
import timm
import torch
from conftest import PACKAGED, make_images
from timm.data import create_transform, resolve_model_data_config

import cgh_models
from cgh_models.backbone import create
from cgh_models.data.image_set import load
from cgh_models.errors import InputError
from cgh_models.evaluate import embedder, extract


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create("resnet18_cifar_w16", {"input_size": (3, 32, 32)})


def test_embeddings_are_timms_in_the_sets_order(image_root, model):
    images = load(image_root / "val")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        model.eval()
        expected = [model(transform(images.image(i))[None])[0].numpy() for i in range(len(images))]
        model.train()
    embeddings = extract(model, image_root / "val", batch_size=7, workers=0)
    assert embeddings.shape == (20, 128) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(
        extract(model, images, indices=np.array([5, 2])), embeddings[[5, 2]], atol=1e-5
    )
    assert model.training and all(m.training for m in model.modules())


def test_a_bad_image_is_named_instead_of_embedded_as_another(tmp_path, model):
    make_images(tmp_path, 4)
    (tmp_path / "class2" / "00002.png").write_bytes(b"no")
    for workers in (0, 2):
        with pytest.raises(
            InputError, match=r"^\S*class2/00002.png: not readable .*mend or remove it$"
        ):
            extract(model, tmp_path, workers=workers)


class Wrapper(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def empty(model):
    return copy.deepcopy(model).to("meta")


def built(name="test_vit", **settings):
    return lambda _: timm.create_model(name, **{"num_classes": 0, **settings})


REFUSED = [
    (built("test_resnet", num_classes=10), "ends in a classifier of 10 classes; build it with num"),
    (
        built("test_resnet", features_only=True),
        "a FeatureListNet makes no embeddings; build the mo",
    ),
    (
        built("test_resnet", in_chans=1),
        "a ResNet cannot take images of 160 x 160 .* for 3 channels",
    ),
    (built(global_pool=""), "makes .101, 64. of an image, not one embedding; .* pooling"),
    (torch.jit.script, "a RecursiveScriptModule does not say which images it takes; give the timm"),
    (Wrapper, "a Wrapper hides the model that it wraps; give its .module"),
    (torch.nn.DataParallel, "a DataParallel hides the model that it wraps; give its .module"),
    (torch.nn.Sequential, "a Sequential makes no embeddings"),
    (empty, "has no weights: it is empty or on the meta device; load some"),
    (lambda _: "resnet18", "a str does not say which images it takes; give the timm module itself"),
    (lambda _: None, "a NoneType does not say which images it takes"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[m[:40] for _, m in REFUSED])
@pytest.mark.parametrize("fast", [False, True])
def test_a_model_that_makes_no_embeddings_is_one_sentence(image_root, model, change, message, fast):
    model.train()
    with pytest.raises(InputError, match=message):
        extract(change(model), image_root / "val", workers=0, fast=fast)
    assert all(m.training for m in model.modules())


def test_a_compiled_a_frozen_and_a_half_model_give_what_the_model_gives(image_root, model):
    expected = extract(model, image_root / "val", workers=0)
    frozen = copy.deepcopy(model).requires_grad_(False)
    compiled = torch.compile(model, backend="eager")
    for other in (frozen, compiled, copy.deepcopy(model).double()):
        found = extract(other, image_root / "val", workers=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for other in (compiled, copy.deepcopy(model).half()):
        found = extract(other, image_root / "val", workers=0, fast=other is compiled)
        cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
        assert (cosine / np.linalg.norm(expected, axis=1) > 0.999).all()


def test_a_mask_is_a_mask_and_other_indices_are_refused(image_root, model):
    whole = extract(model, image_root / "val", workers=0)
    mask = np.arange(20) % 3 == 0
    for indices in (
        mask,
        mask.tolist(),
        np.flatnonzero(mask),
        torch.from_numpy(mask),
        range(0, 20, 3),
    ):
        rows = extract(model, image_root / "val", indices=indices, workers=0)
        np.testing.assert_allclose(rows, whole[mask], atol=1e-5)
    for indices in ([], np.zeros(20, bool)):
        assert extract(model, image_root / "val", indices=indices, workers=0).shape == (0, 128)
    for indices in ([20], [-1], [1.5], mask[:5], [[1, 2]], 3, "all", slice(3), [[1], [2, 3]]):
        with pytest.raises(InputError, match="^indices: "):
            extract(model, image_root / "val", indices=indices, workers=0)


def test_paths_are_embedded_in_the_order_given(image_root, model, monkeypatch):
    images = load(image_root / "val")
    whole = extract(model, images, workers=0)
    paths = [images.path(index) for index in (7, 3, 7)]
    monkeypatch.chdir(image_root)
    relative = [path.relative_to(image_root) for path in paths]
    for data in (
        paths,
        list(map(str, paths)),
        iter(paths),
        tuple(relative),
        np.array(relative, str),
    ):
        np.testing.assert_allclose(extract(model, data, workers=0), whole[[7, 3, 7]], atol=1e-5)
    for data, message in (
        ([], "data: an empty list"),
        ([*paths, "nothing.png"], "nothing.png: there is no such file"),
        (None, "data: None: expected a folder"),
        (
            torch.zeros(1, 2, 32, 32),
            "2 bands .float32 of shape .32, 32, 2.., expected 3: give --in-chans 2",
        ),
        ([3], "data: a list: a int is no picture; expected"),
    ):
        with pytest.raises(InputError, match=message):
            extract(model, data, workers=0)


@pytest.mark.parametrize("name", ["batch_size", "workers"])
@pytest.mark.parametrize("value", [-1, 2.5, "8", None])
def test_impossible_counts_are_one_sentence(image_root, model, name, value):
    with pytest.raises(InputError, match="expected at least 1 and at least 0"):
        extract(model, image_root / "val", **{name: value})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_callers_defaults_change_nothing_and_stay(image_root, model, dtype):
    expected = extract(model, image_root / "val", workers=0, batch_size=7)
    images = torch.rand(2, 3, 32, 32)
    network = cgh_models.create_model(PACKAGED).eval()
    torch.manual_seed(0)  # new queues
    method = cgh_models.load_method("resnet18.cgh")
    features = network(images)
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(dtype)
        assert np.array_equal(extract(model, image_root / "val", workers=0, batch_size=7), expected)
        assert cgh_models.create_model(PACKAGED).conv1.weight.is_meta  # as timm's own loader does
        assert cgh_models.verify(PACKAGED)["fingerprint_error"] < 1e-4
        torch.set_default_device("cpu")
        for settings in ({}, {"num_classes": 3}):
            loaded = cgh_models.create_model(PACKAGED, **settings)
            assert loaded.conv1.weight.dtype == torch.float32
        assert torch.equal(cgh_models.create_model(PACKAGED).eval()(images), features)
        torch.manual_seed(0)
        again = cgh_models.load_method("resnet18.cgh").state_dict()
        assert all(torch.equal(again[key], value) for key, value in method.state_dict().items())
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_embeddings_are_written_once_into_one_array(image_root, model):
    """Beside the array of all rows, no more than one batch of them is there at any time."""
    images = load(image_root / "val")
    indices = np.arange(len(images)).repeat(2000)  # 40,000 rows of 128: 20 MB
    images.cache_pixels(1)
    tracemalloc.start()
    rows = extract(model, images, indices=indices[:64], workers=0)  # imports and the like
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    embedding = torch.zeros(512, 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "embed_function", lambda *_: lambda batch: embedding[: len(batch)])
        patch.setattr(embedder, "eval_batches", _batches)
        rows = extract(model, images, indices=indices, batch_size=512, workers=0)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert rows.shape == (40_000, 128) and peak < 1.2 * rows.nbytes


def _batches(_images, indices, _transform, size, *_):
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        yield torch.empty(len(part)), part


def test_names_come_with_the_embeddings(image_root, model):
    rows, names = extract(model, image_root / "val", return_names=True, workers=0)
    assert names == load(image_root / "val").names and len(rows) == 20
    some, few = extract(model, image_root / "val", indices=[7, 2], return_names=True, workers=0)
    assert few == [names[7], names[2]]
    np.testing.assert_allclose(some, rows[[7, 2]], atol=1e-5)
