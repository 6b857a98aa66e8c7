"""Fine-tuning: the labelled share and its file, what is trained on what, and how."""

import codecs
import copy
import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from conftest import make_images

from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.data.image_set import load, load_splits
from cgh_models.data.loader import batches
from cgh_models.errors import InputError
from cgh_models.evaluate.classifier import CROP
from cgh_models.evaluate.finetune import finetune, rate_at
from cgh_models.evaluate.protocols import FINETUNE, EvalSettings, FinetuneConfig
from cgh_models.evaluate.splits import draw, labelled, subset

SETTINGS = EvalSettings(workers=0)
QUICK = FinetuneConfig(lr=0.05, head_lr=0.5, epochs=2, train_batch_size=16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create("test_resnet", {"input_size": (3, 32, 32)})


@pytest.fixture
def splits(image_root):
    return load_splits(image_root)


# --- the labelled share


@pytest.mark.parametrize("percent, a_class", [(1, 5), (10, 50)])
def test_a_share_has_equally_many_images_of_every_class(percent, a_class):
    labels = np.random.default_rng(0).permutation(np.arange(5000) % 10)
    indices = draw(labels, percent, 0)
    assert np.bincount(labels[indices]).tolist() == [a_class] * 10 and (np.diff(indices) > 0).all()
    assert np.array_equal(indices, draw(labels, percent, 0)) and not np.array_equal(
        indices, draw(labels, percent, 1)
    )


def test_one_percent_is_among_ten_percent_and_all_is_all():
    labels = np.arange(5000) % 7
    one, ten, everything = (draw(labels, percent, 3) for percent in (1, 10, 100))
    assert set(one) < set(ten) and np.array_equal(everything, np.arange(5000))


def test_a_class_smaller_than_its_part_gives_all_it_has():
    labels = np.array([0] * 900 + [1] * 97 + [2] * 3)
    assert np.bincount(labels[draw(labels, 10, 0)]).tolist() == [33, 33, 3]


@pytest.mark.parametrize("count, percent, more", [(64, 1, 10), (39, 1, 100), (39, 10, 100)])
def test_fewer_labels_than_classes_is_one_sentence(count, percent, more):
    with pytest.raises(InputError) as error:
        draw(np.arange(count) % 4, percent, 0)
    assert str(error.value) == (
        f"--labels {percent}%: {count * percent // 100} of {count} training images, "
        f"fewer labels than the 4 classes; give --labels {more}%, or more images"
    )


def test_the_names_are_written_and_read_again_in_place_of_the_seeds(splits, tmp_path):
    train, file = splits[0], tmp_path / "labelled.txt"
    indices, digest = labelled(train, 10, 0, file)
    assert (
        file.read_text().splitlines() == [train.names[index] for index in indices]
        and len(indices) == 4
    )
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert not np.array_equal(labelled(train, 10, 1)[0], indices)
    file.write_text(
        "\n".join(reversed(file.read_text().splitlines()))
    )  # any order, no newline at the end
    repeated, same = labelled(train, 10, 1, file)
    assert np.array_equal(repeated, indices) and same == digest
    assert not file.read_text().endswith("\n")  # it was read, not written


def test_a_name_that_is_not_unicode_or_has_separators_survives_the_file(tmp_path):
    make_images(tmp_path / "train", 40)
    make_images(tmp_path / "val", 4)
    name = b"\xff\xc3\x0b\xe2\x80\xa8.png"
    for path in sorted((tmp_path / "train").glob("*/*.png"))[::10]:
        path.rename(path.parent / name.decode("utf-8", "surrogateescape"))
    train, _ = load_splits(tmp_path)
    everything, digest = labelled(train, 100, 0, tmp_path / "names.txt")
    assert (tmp_path / "names.txt").read_bytes().count(name) == 4
    assert labelled(train, 100, 0, tmp_path / "names.txt")[1] == digest and len(everything) == 40
    plain = (tmp_path / "names.txt").read_bytes()
    (tmp_path / "names.txt").write_bytes(codecs.BOM_UTF8 + plain.replace(b"\n", b"\r\n"))
    assert labelled(train, 100, 0, tmp_path / "names.txt")[1] == digest


FILES = {
    "a name of no image": (
        lambda lines: ["class0/none.png", *lines[1:]],
        "1 of its 4 lines name no such image, 'cl",
    ),
    "a name twice": (
        lambda lines: [*lines[:3], lines[0]],
        "names an image more than once; expected",
    ),
    "too few": (
        lambda lines: lines[:3],
        "3 images, which are not 10% of 64; expected 4 to 7 names of images in",
    ),
    "nothing": (lambda lines: [], "0 images, which are not 10% of 64"),
    "too many": (
        lambda lines: [f"class0/{n:05d}.png" for n in range(0, 32, 4)],
        "8 images, which are not 10%",
    ),
    "a class without": (
        lambda lines: [f"class0/{n:05d}.png" for n in range(0, 16, 4)],
        "no image of 3 classes; expected",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_such_share_is_one_sentence(case, splits, tmp_path):
    file = tmp_path / "names.txt"
    labelled(splits[0], 10, 0, file)
    change, message = FILES[case]
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(InputError, match=rf"names.txt: (has )?{message}"):
        labelled(splits[0], 10, 0, file)
    with pytest.raises(
        InputError, match="not a file; give --splits-file a text file of image names"
    ):
        labelled(splits[0], 10, 0, tmp_path)


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127])
def test_a_splits_file_may_have_the_longest_name_that_there_is(splits, tmp_path, name):
    drawn = [labelled(splits[0], 10, 0, tmp_path / name)[1] for _ in range(2)]
    assert drawn[0] == drawn[1] and [path.name for path in tmp_path.iterdir()] == [name]


def test_a_subset_keeps_names_labels_and_classes_and_has_a_digest_of_its_own(splits):
    train, _ = splits
    for kept in (False, True):
        if kept:
            train.cache_pixels(1.0)
        part = subset(train, np.array([40, 3, 17]))
        assert (
            part.names == [train.names[index] for index in (40, 3, 17)]
            and part.classes == train.classes
        )
        assert (
            part.labels.tolist() == train.labels[[40, 3, 17]].tolist()
            and (part.pixels is not None) == kept
        )
        assert part.image(2).tobytes() == train.image(17).tobytes()
        assert part.digest != train.digest != subset(train, np.array([40, 3])).digest


@pytest.mark.parametrize("stacked", [True, False])
def test_a_subset_holds_no_pixels_a_second_time_and_gives_the_same_views(
    stacked, tmp_path, counters
):
    train = load(make_images(tmp_path, 64))
    train.cache_pixels(1.0)
    assert isinstance(train.pixels, torch.Tensor)
    train.pixels = train.pixels if stacked else list(train.pixels)
    config = TrainConfig(image_size=32, batch_size=4, workers=0)
    with counters.LiveBytes() as live:
        part = subset(subset(train, np.arange(1, 64)), np.arange(0, 60, 2))
    assert live.peak == 0
    taken = [train.image(index) for index in range(1, 61, 2)]
    assert [part.image(index) for index in range(30)] == taken
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in taken])
    copied = dataclasses.replace(part, places=None, pixels=pixels if stacked else list(pixels))
    views, expected = (
        list(batches(images, (CROP,), config, 0, 6, torch.device("cpu")))
        for images in (part, copied)
    )
    for ((ours,), indices), ((theirs,), same) in zip(views, expected, strict=True):
        assert torch.equal(ours, theirs) and (indices == same).all()


# --- the training


def test_all_of_the_backbone_is_trained_and_val_is_classified_above_chance(splits, model):
    before = copy.deepcopy(model.state_dict())
    model.train()
    found = finetune(model, *splits, dataclasses.replace(QUICK, epochs=20), SETTINGS)
    assert (found.n, found.parameters["labelled"]) == (20, 64)
    assert found.value >= 60  # of 4 classes that colour and stripes tell apart
    same = [key for key, tensor in model.state_dict().items() if torch.equal(tensor, before[key])]
    assert same == [] and all(
        m.training for m in model.modules()
    )  # running means of the batch norms moved as well


def test_the_same_seed_gives_the_same_number_and_network(splits):
    def run(seed):
        torch.manual_seed(0)
        fresh = create("test_resnet", {"input_size": (3, 32, 32)})
        settings = EvalSettings(workers=0, seed=seed)
        return finetune(fresh, *splits, QUICK, settings), fresh.state_dict()

    (first, ours), (second, theirs), (_, others) = run(0), run(0), run(1)
    assert first == second and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert any(not torch.equal(ours[key], others[key]) for key in ours)


def test_images_outside_the_share_are_never_opened(tmp_path, model):
    make_images(tmp_path / "train", 80)
    make_images(tmp_path / "val", 8)
    train, val = load_splits(tmp_path)
    indices, _ = labelled(train, 10, 0)
    for index in set(range(80)) - set(indices.tolist()):
        (tmp_path / "train" / train.names[index]).write_bytes(b"no")
    found = finetune(model, subset(train, indices), val, QUICK, SETTINGS)
    assert len(indices) == found.parameters["labelled"] == found.n == 8


@pytest.mark.parametrize(
    "count, batch, expected",
    [(5, 2, [2] * 4), (5, 256, [5] * 2), (9, 8, [8] * 2), (2, 16, [2] * 2)],
)
def test_no_batch_is_smaller_than_the_others_so_no_norm_sees_one_image(
    count, batch, expected, splits, model
):
    train, val = splits
    seen = []
    model.register_forward_hook(
        lambda module, inputs, _: seen.append(len(inputs[0])) if module.training else None
    )
    part = subset(train, np.arange(0, 64, 64 // count)[:count])
    finetune(model, part, val, dataclasses.replace(QUICK, train_batch_size=batch), SETTINGS)
    assert seen == expected


def test_the_rates_fall_to_a_tenth_at_epochs_30_and_60_of_70():
    rates = [rate_at(step / 700) for step in range(700)]
    assert rates[:300] == [1.0] * 300 and rates[300:600] == [pytest.approx(0.1)] * 300
    assert rates[600:] == [pytest.approx(0.01)] * 100


@pytest.mark.parametrize("still", ["lr", "head_lr"])
def test_backbone_and_layer_have_a_learning_rate_each(still, splits, model):
    before, lines = copy.deepcopy(dict(model.named_parameters())), []
    config = dataclasses.replace(QUICK, **{still: 0.0})
    finetune(model, *splits, config, EvalSettings(workers=0, log=lines.append))
    same = [torch.equal(p, before[name]) for name, p in model.named_parameters()]
    assert all(same) if still == "lr" else not any(same)
    assert len(lines) == 2 and lines[-1].startswith("epoch 2 of 2: loss ")


def test_a_bad_image_of_val_is_found_before_the_training(tmp_path, model):
    make_images(tmp_path / "train", 8)
    make_images(tmp_path / "val", 8)
    (tmp_path / "val" / "class2" / "00002.png").write_bytes(b"no")
    trained = []
    model.register_forward_hook(lambda module, *_: trained.append(module.training))
    with pytest.raises(InputError, match="val/class2/00002.png: not readable"):
        finetune(model, *load_splits(tmp_path), QUICK, SETTINGS)
    assert not any(trained)


def test_a_run_that_diverges_is_one_sentence(splits, model):
    config = dataclasses.replace(QUICK, lr=1e6, head_lr=1e6, epochs=10)
    message = r"epoch \d+: loss or weights are not finite; give a lower --lr or --head-lr"
    with pytest.raises(InputError, match=message):
        finetune(model, *splits, config, SETTINGS)


def test_the_defaults_are_the_papers_for_imagenet_with_few_labels():
    for labels in ("1%", "10%"):
        assert FINETUNE["imagenet", labels] == FinetuneConfig(0.005, 0.02, 70, 256, 0.9, 0.0)
    assert len(FINETUNE) == 9
    for wrong in ({"lr": -1.0}, {"head_lr": float("inf")}, {"epochs": 0}, {"weight_decay": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            FinetuneConfig(**wrong)
