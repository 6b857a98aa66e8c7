"""The findings of `cgh check` as text, and what to do about them, a sentence each."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from ..data.file_names import split_of
from ..data.listing import counted
from ..errors import printable, shell_command
from ..recipes import RECIPES, train_config

_SHOWN = 3  # files that are named, and groups
# From the recipe's: a channel's mean, in [0, 1], and the factor between deviations, which for the
# recipes are those within images, less than those of all pixels.
_FAR_MEAN = 0.1
_FAR_STD = 1.5
_PLUG_INS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}


def as_text(found: dict[str, Any]) -> str:
    """Lines for people: the facts, then the advice."""
    sizes = found["sizes"]
    few = [f"{name} {_size(sizes[name])}" for name in ("smallest", "median", "largest")]
    common = f"most common {_size(sizes['most_common'])} ({sizes['of_most_common']:,})"
    reasons = [f"{name}: {why}" for name, why in found["unreadable"]["files"].items()]
    views = f"{found['smaller_than_views']:,} smaller than views of {found['views']} pixels"
    facts = {
        "images": [f"{found['images']:,}, {found['bytes'] / 2**20:,.1f} MiB"],
        "left out": [counted(Counter(found["left_out"]), 5)],
        "splits": [_counts(found["splits"])],
        "classes": [_classes(found["classes"])],
        "formats": [_counts(found["formats"])],
        "modes": [_counts(found["modes"])],
        "bits": [_counts(found["bits"])],
        "sizes": [", ".join([*few, common]), views],
        "tiny": _listed("shorter than 32 pixels", found["tiny"]["files"]),
        "long": _listed("longer than 3 times their shorter side", found["long"]["files"]),
        "one colour": _listed("", found["constant"]["files"]),
        "unreadable": _listed("", reasons),
        "equal": _groups(found["duplicates"]),
        "nearly equal": _groups(found["near_duplicates"]),
        "mean": [_beside(found, "mean")],
        "deviation": [_beside(found, "std")],
    }
    lines = []
    for name, parts in facts.items():
        if parts[0]:
            lines += [f"{name:<14}{parts[0]}", *[f"{'':<14}{part}" for part in parts[1:]]]
    return "\n".join([*lines, *[f"\n{sentence}" for sentence in found["advice"]]])


def _listed(what: str, items: list[str]) -> list[str]:
    first = f"{len(items):,} {what}".rstrip() if items else "none"
    return [first, *_few([printable(item) for item in items])]


def _groups(found: dict[str, Any]) -> list[str]:
    if not found["count"]:
        return [f"none ({found['rule']})"]
    counts = f"{found['spare']:,} repeat another, in {found['count']:,} groups"
    for across in ("splits", "classes"):
        if found[f"across_{across}"]:
            counts += f", {found[f'across_{across}']:,} across {across}"
    groups = [" = ".join(_few([printable(name) for name in group])) for group in found["groups"]]
    return [f"{counts} ({found['rule']})", *_few(groups)]


def _few(items: list[str]) -> list[str]:
    more = len(items) - _SHOWN
    return items if more <= 1 else [*items[:_SHOWN], f"and {more:,} more"]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)} ({count:,})" for name, count in counts.items())


def _classes(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] == counts[most]:
        return f"{len(counts):,}, of {counts[most]:,} images each"
    ends = [f"{counts[name]:,} ({printable(name)})" for name in (fewest, most)]
    return f"{len(counts):,}, of {' to '.join(ends)} images"


def _size(size: list[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _beside(found: dict[str, Any], name: str) -> str:
    if f"recipe_{name}" not in found:
        return " ".join(f"{value:.3g}" for value in found[name])
    ours, given = (
        " ".join(f"{value:.3f}" for value in values)
        for values in (found[name], found[f"recipe_{name}"])
    )
    return f"{ours}, the recipe's {given}"


def advice(found: dict[str, Any], data: str, out: str) -> list[str]:
    """A sentence, with what to type, for each thing that is wrong.

    ``data`` and ``out`` are what the user calls the images and the folder of results.
    """
    sentences = []
    for kind in sorted(found["left_out"].keys() & _PLUG_INS.keys()):
        install = f"`pip install {_PLUG_INS[kind]}` makes them readable"
        sentences.append(f"Files ending in {kind} are left out: {install}.")
    if found["splits"]:
        sentences.append(_one_split(found, data))
    sentences += _without_bad_images(found, data, out)
    if found["duplicates"]["across_classes"]:
        what = "Equal images lie in more than one class, so that a label of theirs is wrong"
        sentences.append(f"{what}: {shell_command('cgh', 'check', data, '--json')} names them.")
    if found["long"]["count"]:
        what = "Views of long images are stretched, or show a small part"
        sentences.append(f"{what}: cut them into shorter ones, or leave them out.")
    return sentences + _other_views(found) + _other_colours(found)


def _one_split(found: dict[str, Any], data: str) -> str:
    kinds = {folder: split_of(folder.rpartition("/")[2]) for folder in found["splits"]}
    first = min(kinds, key=lambda folder: kinds[folder] != "train")
    if found["archive"]:
        part = f"{data}:{first.rpartition('/')[2]}"
        words = ["cgh", "pretrain", "--data", part, "--out", "RUN"]
        return f"Training takes one split: type {shell_command(*words)}."
    words = ["cgh", "pretrain", "--data", Path(data, first)]
    if {"train", "val"} <= {*kinds.values()} and found["classes"]:
        words += ["--eval-data", Path(data, first).parent]
    return f"Training takes one split: type {shell_command(*words, '--out', 'RUN')}."


def _without_bad_images(found: dict[str, Any], data: str, out: str) -> list[str]:
    """What is to be left out, and how; none if nothing is."""
    same, near = found["duplicates"], found["near_duplicates"]
    across = same["across_splits"] + near["across_splits"]
    leak = (
        f" ({across:,} groups across splits, so that measurements are too good)" if across else ""
    )
    counts = {
        "cannot be read": found["unreadable"]["count"],
        f"repeat another{leak}": same["spare"] + near["spare"],
        "are of one colour": found["constant"]["count"],
    }
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    if not parts:
        return []
    how = f"train without them, `--data {shlex.quote(str(Path(out or 'CHECK', 'keep.csv')))}`"
    if not out:
        how = f"{shell_command('cgh', 'check', data, '--out', 'CHECK')}, then {how}"
    if found["archive"]:
        how = f"{shell_command('cgh', 'check', data, '--json')} names them"
    return [f"Of the images {', '.join(parts)}: {how}."]


def _other_views(found: dict[str, Any]) -> list[str]:
    """Another recipe, or size of views, if most images are smaller than the views."""
    if 2 * found["smaller_than_views"] <= found["images"]:
        return []
    shorter = min(found["sizes"]["median"])
    sides = {name: train_config(name).image_size for name in RECIPES}
    fitting = [name for name in sides if sides[name] <= shorter]
    flag = f"--image-size {shorter}"
    if fitting:
        flag = f"--recipe {max(fitting, key=sides.__getitem__)}"
    what = f"Most images are smaller than views of {found['views']} pixels"
    return [f"{what}: give `{flag}` to `cgh pretrain`."]


def _other_colours(found: dict[str, Any]) -> list[str]:
    flags = " ".join(f"--{name} {' '.join(map(str, found[name]))}" for name in ("mean", "std"))
    if "recipe_mean" not in found:
        flags = f"--in-chans {len(found['mean'])} {flags}"
        return [f"Bands are normalized by their own: give `{flags}` to `cgh pretrain`."]
    means = zip(found["mean"], found["recipe_mean"], strict=True)
    deviations = zip(found["std"], found["recipe_std"], strict=True)
    far = any(abs(ours - given) > _FAR_MEAN for ours, given in means)
    if not far and all(1 / _FAR_STD < ours / given < _FAR_STD for ours, given in deviations):
        return []
    what = "Colours are far from those that the recipe normalizes by"
    return [f"{what}: give `{flags}` to `cgh pretrain`."]
