"""Changes of a recipe's views: their names, what they reach, what is refused."""

import dataclasses

import pytest
from small_runs import QUICK

from cgh_models.cli.main import parse
from cgh_models.errors import InputError
from cgh_models.view_recipes import RECIPES, View, described, kind_of, recipe_of

STRENGTHS = {field.name for field in dataclasses.fields(View)} - {"size"}


@pytest.mark.parametrize("name", RECIPES)
def test_without_changes_a_recipe_is_itself_and_with_one_only_that_differs(name):
    assert recipe_of(name) == RECIPES[name]
    for number, before in enumerate(RECIPES[name], 1):
        for strength in STRENGTHS:
            value = "0.05,0.06,0.07,0.08" if strength == "jitter" else "0.55"
            changed = recipe_of(name, [f"{number}.{strength}={value}"])
            kept = {**vars(changed[number - 1]), strength: getattr(before, strength)}
            assert View(**kept) == before and changed[number - 1] != before
            others = [*changed[: number - 1], *changed[number:]]
            assert others == [*RECIPES[name][: number - 1], *RECIPES[name][number:]]


def test_a_word_stands_for_all_views_of_that_kind_whatever_was_changed_before():
    kinds = [kind_of(view) for view in RECIPES["multi_crop"]]
    assert kinds == ["weak", "strong", "small", "small", "small", "small"]
    changed = recipe_of("multi_crop", ["weak.blur_p=1", "weak.grey_p=0.5", "small.flip=0"])
    assert [view.blur_p for view in changed] == [1, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [view.grey_p for view in changed[:2]] == [0.5, 0.2]
    assert [view.flip for view in changed] == [0.5, 0.5, 0, 0, 0, 0]
    assert [view.flip for view in recipe_of("byol", ["strong.flip=0"])] == [0, 0]


def test_one_number_stands_for_all_and_later_changes_win():
    weak, strong = recipe_of("weak_strong", ["strong.jitter=0", "weak.scale=1", "weak.scale=0.4,1"])
    assert strong.jitter == (0, 0, 0, 0) and weak.scale == (0.4, 1)


def test_views_of_a_list_are_described_by_changes_that_make_them_again():
    weak, strong = RECIPES["weak_strong"]
    mine = [dataclasses.replace(weak, scale=(1 / 3, 1.0), flip=0.1), strong]
    views, changes = described("weak_strong", mine)
    assert changes == ["1.scale=0.3333333333333333,1.0", "1.flip=0.1"]
    assert views == recipe_of("weak_strong", changes) == tuple(mine)
    plain = [dataclasses.replace(weak, scale=1.0), dataclasses.replace(strong, jitter=0)]
    views, changes = described("weak_strong", plain)  # one number stands for all, as in the flag
    assert changes == ["1.scale=1.0", "2.jitter=0"]
    assert (views[0].scale, views[1].jitter) == ((1, 1), (0, 0, 0, 0))
    views, changes = described("weak_strong", [len, strong])
    assert changes == ["1=builtins.len"] and views[0].side(32) == 32 and views[1] is strong


@pytest.mark.parametrize(
    "change, expected",
    [
        ("weak", "expected VIEW.STRENGTH=VALUE, for example weak.scale=0.4,1"),
        ("scale=1", "expected VIEW.STRENGTH=VALUE"),
        (
            "weak.crop_scale=0.4,1",
            r"\(crop_scale\): there is no such strength, did you mean scale\?",
        ),
        ("weak.hue=0", "no such strength, the strengths are scale, ratio, flip, jitter, jitter_p"),
        ("weak.size=1", "no such strength"),
        ("small.flip=0", r"\(small\): expected one of weak, strong, or a number from 1 to 2"),
        ("0.flip=0", "expected one of weak, strong, or a number"),
        ("weak.flip=two", r"\(two\): expected a number from 0 to 1"),
        ("weak.flip=1.1", "expected a number from 0 to 1"),
        ("weak.flip=nan", "expected a number from 0 to 1"),
        ("weak.scale=1,0.4", "expected LOWEST,HIGHEST from 0.001 to 1"),
        ("weak.scale=0,1", "expected LOWEST,HIGHEST"),
        ("weak.sigma=1,2,3", "expected LOWEST,HIGHEST from 0.01 to 100"),
        ("strong.jitter=0.6", r"HUE from 0 to 10 \(hue: at most 0.5\)"),
        ("strong.jitter=1,1", "expected BRIGHTNESS,CONTRAST,SATURATION,HUE"),
        ("2=my.function", "made; go on from Python with the same function: pretrain"),
    ],
)
def test_what_is_no_change_is_one_sentence(change, expected):
    with pytest.raises(InputError, match=expected):
        recipe_of("weak_strong", [change])


@pytest.mark.parametrize(
    "views, expected",
    [
        ([View()], "views: a list of 1; expected 2, as the method takes"),
        ([View(), "flip"], "views: view 2 is 'flip'; expected a View or a function"),
        ([View(size=0.5), View()], "view 1 has the size 0.5, expected the recipe's 1.0"),
        (len, "views: a builtin_function_or_method, not a list; expected one of 2, as the method"),
        (View(), "views: a View, not a list; expected one of 2, as the method takes"),
        ([View(flip=None), View()], "--view 1.flip=None .*: expected a number from 0 to 1"),
        ([View(), View(jitter=0.6)], r"HUE from 0 to 10 \(hue: at most 0.5\)"),
        ([View(flip=2), View()], "--view 1.flip=2 .*: expected a number from 0 to 1"),
    ],
)
def test_what_is_no_recipe_is_one_sentence(views, expected):
    with pytest.raises(InputError, match=expected):
        described("weak_strong", views)


def test_the_flag_is_taken_as_often_as_it_is_given():
    words = ["pretrain", "--data", "a", "--out", "b", "--view", "weak.flip=0", "--view", "2.flip=1"]
    assert parse(words).configs()[0].view == ("weak.flip=0", "2.flip=1")
    assert parse(words[:5]).configs()[0].view == QUICK.view == ()
