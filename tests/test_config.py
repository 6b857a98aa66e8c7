"""Settings: recipes, warm-ups, --set, JSON, and how a changed setting is reported."""

import dataclasses

import pytest

from cgh_models.cli import demo
from cgh_models.config import TrainConfig
from cgh_models.dataclass_json import from_dict, from_older, to_dict
from cgh_models.errors import InputError
from cgh_models.methods import METHODS
from cgh_models.methods.cgh import CGH
from cgh_models.recipes import RECIPES, method_config, short_run, train_config
from cgh_models.schedule import learning_rate
from cgh_models.train.run_folder import explain_changes


def test_the_defaults_are_the_papers_imagenet_values():
    train, cgh = TrainConfig(), CGH.Config()
    assert (
        train.image_size,
        train.epochs,
        train.batch_size,
        train.base_lr,
        train.weight_decay,
    ) == (224, 200, 256, 0.05, 1e-4)
    assert (cgh.queue_length, cgh.projection_width, cgh.hidden_width, cgh.teacher_momentum) == (
        131072,
        512,
        4096,
        0.999,
    )
    assert (cgh.global_teacher_temperature, cgh.global_student_temperature) == (0.04, 0.1)
    assert (
        cgh.hyper_teacher_temperature,
        cgh.hyper_student_temperature,
        cgh.warmup_temperature,
    ) == (0.08, 0.08, 0.2)
    assert method_config(CGH, "imagenet", train) == cgh


def test_the_small_recipes_are_ressls():
    cifar = train_config("cifar")
    assert (cifar.image_size, cifar.base_lr, cifar.weight_decay, cifar.decay_norms) == (
        32,
        0.06,
        5e-4,
        True,
    )
    for name in ("cgh", "ressl"):
        config = method_config(METHODS[name], "cifar", cifar)
        assert (config.queue_length, config.teacher_momentum) == (4096, 0.99), name
        assert (config.hidden_width, config.projection_width) == (2048, 128), name
        assert method_config(METHODS[name], "tiny", cifar).queue_length == 16384


def test_moco_on_cifar_is_its_authors_demo():
    train = train_config("cifar", "moco_v2")
    assert (train.lr, train.batch_size, train.warmup, train.epochs) == (0.06, 512, 0, 200)
    config = method_config(METHODS["moco_v2"], "cifar", train)
    values = (config.temperature, config.queue_length, config.teacher_momentum)
    assert values == (0.1, 4096, 0.99) and config.batch_norm_splits == 8
    assert not config.blur and config.wide_crops and not config.symmetric


def test_sce_on_cifar_is_its_authors_run():
    train = train_config("cifar", "sce")
    assert (train.lr, train.batch_size, train.warmup, train.epochs) == (0.06, 256, 5 / 200, 200)
    assert train.weight_decay == 5e-4 and train.decay_norms
    config = method_config(METHODS["sce"], "cifar", train)
    values = (config.contrast, config.student_temperature, config.teacher_temperature)
    assert values == (0.5, 0.1, 0.05) and config.batch_norm_splits == 8
    assert (config.queue_length, config.teacher_momentum) == (4096, 0.99)
    assert (config.hidden_width, config.projection_width) == (512, 128)


def test_the_fast_recipe_is_that_of_cifar_but_for_the_network_and_the_steps():
    fast, cifar = RECIPES["cifar-fast"], RECIPES["cifar"]
    assert (fast.method, fast.method_of) == (cifar.method, cifar.method_of)
    train, slow = to_dict(train_config("cifar-fast", "cgh")), to_dict(train_config("cifar", "cgh"))
    changed = {key for key, value in train.items() if slow[key] != value}
    assert changed == {"epochs", "batch_size", "optimizer", "base_lr"}
    assert train_config("cifar-fast", "moco_v2").base_lr == train["base_lr"]  # not its demo's


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_gives_every_method_values_that_its_fields_take(name, recipe):
    """What a recipe sets for one method is a field of that method or of the trainer."""
    train = train_config(recipe, name)
    config = method_config(METHODS[name], recipe, train)
    train_values = RECIPES[recipe].train_of.get(name, {})
    method_values = RECIPES[recipe].method_of.get(name, {})
    assert all(getattr(train, key) == value for key, value in train_values.items())
    assert all(getattr(config, key) == value for key, value in method_values.items())
    if recipe == "imagenet" and name != "cgh":  # whose warm-up follows the trainer's
        assert config == METHODS[name].Config()


def test_published_learning_rates():
    """The absolute rates of the papers and releases, at their batch sizes."""
    absolute = {
        "cgh": 0.05,
        "ressl": 0.05,
        "moco_v2": 0.03,
        "lewel": 3.6,
        "byol": 7.2,
        "mnclglf": 0.1,
    }
    assert {name: pytest.approx(train_config("imagenet", name).lr) for name in absolute} == absolute
    assert (
        train_config("imagenet", "lewel").batch_size == 1024
        and train_config("imagenet", "byol").batch_size == 4096
    )


def test_warmups_are_a_tenth_of_a_short_run_at_most():
    assert TrainConfig(epochs=200).warmup == 5 / 200
    assert TrainConfig(epochs=50).warmup == 5 / 50
    assert TrainConfig(epochs=12).warmup == 0.1
    assert method_config(CGH, "cifar", TrainConfig(epochs=12, paper_faithful=True)).warmup == 0.1


@pytest.mark.parametrize(
    "epochs, warmup, temperature",
    [(1, 1.0, 0.1), (100, 1.0, 0.1), (150, 0.5 + 0.5 * 5 / 150, 0.15), (200, 5 / 200, 0.2)],
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_infonce_of_cgh_lasts_longer_in_a_short_run(recipe, epochs, warmup, temperature):
    config = method_config(CGH, recipe, TrainConfig(epochs=epochs))
    found = (config.warmup, config.warmup_temperature)
    assert found == pytest.approx((warmup, temperature))
    papers = method_config(CGH, recipe, TrainConfig(epochs=epochs, paper_faithful=True))
    expected = (TrainConfig(epochs=epochs).warmup, CGH.Config.warmup_temperature)
    assert (papers.warmup, papers.warmup_temperature) == expected


@pytest.mark.parametrize(
    "settings, expected",
    [
        (("warmup=0.5",), (0.5, 0.2)),  # the commands of runs that are older than these values
        (("warmup_temperature=0.3",), (1.0, 0.3)),
        (("warmup=0.5", "warmup_temperature=0.3"), (0.5, 0.3)),
    ],
)
def test_a_setting_that_is_given_stays_in_a_short_run(settings, expected):
    config = method_config(CGH, "cifar", TrainConfig(epochs=12), settings)
    assert (config.warmup, config.warmup_temperature) == expected


def test_the_demo_has_the_values_of_a_short_run_that_were_chosen_for_it():
    train = dataclasses.replace(train_config(demo.RECIPE, demo.METHOD), **demo.TRAINING)
    config = method_config(METHODS[demo.METHOD], demo.RECIPE, train, demo.SETTINGS)
    assert (config.warmup, config.warmup_temperature) == (1.0, 0.1)  # benchmarks/demo_settings.md


def test_what_a_short_run_changes_is_one_sentence_or_none():
    train = TrainConfig(epochs=150)
    found = short_run(CGH, "cifar", train, ("warmup_temperature=0.3",))
    assert (
        found == "short run of 150 epochs: warmup=0.516667; --paper-faithful keeps warmup=0.0333333"
    )
    assert not short_run(CGH, "cifar", train, ("warmup=0.5",))
    assert not short_run(CGH, "cifar", dataclasses.replace(train, paper_faithful=True))
    assert not short_run(CGH, "cifar", TrainConfig(epochs=200))
    assert not any(short_run(METHODS[name], "cifar", train) for name in METHODS if name != "cgh")


def test_the_learning_rate_starts_at_zero_peaks_after_the_warmup_and_ends_at_zero():
    assert learning_rate(0, 0.3, 0.1) == 0
    assert learning_rate(0.05, 0.3, 0.1) == pytest.approx(0.15)
    assert learning_rate(0.1, 0.3, 0.1) == pytest.approx(0.3)
    assert learning_rate(0.55, 0.3, 0.1) == pytest.approx(0.15)
    assert learning_rate(1, 0.3, 0.1) == pytest.approx(0, abs=1e-12)
    assert TrainConfig(batch_size=512, base_lr=0.05).lr == pytest.approx(0.1)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("tap=3", "there is no key 'tap', did you mean taps?"),
        ("taps", "has no value; write --set taps=VALUE"),
        ("taps=many", "^--set KEY=VALUE: CGH.Config: taps='many': expected int$"),
        ("zzz=1", "the keys are projection_width"),
        ("multi_crop=maybe", "multi_crop='maybe': expected bool"),
        ("taps=0", "taps=0: at least 1"),
        ("queue_length=1000000000000", "queue_length=1000000000000: at least 1 and at most"),
        ("warmup=5", "warmup=5.0: at least 0 and at most 1"),
        ("teacher_momentum=nan", "teacher_momentum=nan: at least 0"),
        ("global_teacher_temperature=nan", "global_teacher_temperature=nan: at least 0.02"),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting, message):
    with pytest.raises(InputError, match=message):
        method_config(CGH, "cifar", TrainConfig(), (setting,))


def test_a_word_that_is_no_choice_is_one_sentence():
    expected = r"negatives='all': expected Literal\['queue', 'batch'\]"
    with pytest.raises(InputError, match=expected):
        method_config(METHODS["lewel_m"], "cifar", TrainConfig(), ("negatives=all",))
    assert (
        method_config(METHODS["lewel_m"], "cifar", TrainConfig(), ("negatives=batch",)).negatives
        == "batch"
    )


def test_dataclasses_survive_json_and_unknown_missing_or_wrong_values_do_not():
    values = to_dict(TrainConfig())
    assert from_dict(TrainConfig, values) == TrainConfig()
    with pytest.raises(InputError, match="there is no key 'epoch', did you mean epochs"):
        from_dict(TrainConfig, {**values, "epoch": 3})
    with pytest.raises(InputError, match="the keys seed are missing"):
        from_dict(TrainConfig, {k: v for k, v in values.items() if k != "seed"})
    for key, value in (
        ("epochs", "3"),
        ("epochs", True),
        ("mean", 1.0),
        ("mean", [1.0]),
        ("mean", ["a", 1.0, 1.0]),
        ("std", [0.0, 1.0, 1.0]),
        ("device", 3),
        ("epochs", 0),
        ("batch_size", 1),
        ("precision", "float16"),
        ("base_lr", float("nan")),
        ("seed", 2**64),
        ("momentum", -1.0),
        ("crop_pct", 0.0),
        ("memory_gib", -1.0),
        ("eval_every", float("inf")),
        ("eval_every", -0.5),
    ):
        with pytest.raises(InputError, match=key):
            from_dict(TrainConfig, {**values, key: value})


def test_a_field_that_an_older_file_has_not_is_what_the_file_meant():
    @dataclasses.dataclass(frozen=True)
    class Config:
        width: int
        sizes: tuple[int, int] = (1, 2)
        wide_crops: bool = True

    assert from_older(Config, {"width": 3}) == Config(3, (1, 2), False)
    assert from_older(Config, {"width": 3, "wide_crops": True}) == from_dict(
        Config, {"width": 3}, complete=False
    )
    with pytest.raises(InputError, match="Config: the keys width are missing"):
        from_older(Config, {})
    with pytest.raises(
        InputError, match="there is no key 'gone', the keys are width, sizes, wide_crops"
    ):
        from_older(Config, {"width": 3, "gone": 1})


def test_each_changed_setting_is_explained():
    run = {"method": "cgh", "arch": "resnet18", "data": {"digest": "a", "count": 3}}
    before = {**run, "train": to_dict(TrainConfig()), "method_config": to_dict(CGH.Config())}
    after = {
        **before,
        "train": {**before["train"], "epochs": 400, "workers": 4, "device": "cpu"},
        "method_config": {**before["method_config"], "taps": 3},
        "data": {"digest": "b", "count": 4},
    }
    allowed, refused = explain_changes(before, after)
    assert allowed == [
        "device: auto -> cpu changes nothing but rounding",
        "workers: 2 -> 4 changes nothing",
    ]
    assert [line.split(":")[0] for line in refused] == ["epochs", "taps", "data"]
    assert "changes the schedule" in refused[0] and "changes the model" in refused[1]
    assert explain_changes(before, before) == ([], [])


def test_every_train_setting_says_what_changing_it_changes():
    assert all(f.metadata["changes"] for f in dataclasses.fields(TrainConfig))
