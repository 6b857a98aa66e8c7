"""View recipes: which views a method asks for, and how strongly each is augmented. No torch.

The views themselves are made in `data/`: `views` for one image, `batched_views` for a batch,
`own_views` for functions of the caller's.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from .errors import InputError, printable


@dataclass(frozen=True)
class View:
    """One view's augmentation; every ``_p`` is a probability in [0, 1]."""

    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop, as a share of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    flip: float = 0.5  # probability
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # of the blur, in pixels
    solarize_p: float = 0.0
    size: float = 1.0  # side, as a share of the image size

    def side(self, image_size: int) -> int:
        """Side of the square view, in pixels."""
        return max(1, round(self.size * image_size))


# Source: MoCo v2's views (arXiv 2003.04297) as the strong; crop and flip as the weak (ReSSL, CGH).
WEAK = View()
STRONG = View(jitter_p=0.8, grey_p=0.2, blur_p=0.5)
# Source: CGH's and ReSSL's released code, 192, 160, 128 and 96 pixels beside 224.
SMALL = (
    replace(STRONG, size=192 / 224, scale=(0.172, 0.86)),
    replace(STRONG, size=160 / 224, scale=(0.143, 0.715)),
    replace(STRONG, size=128 / 224, scale=(0.114, 0.571)),
    replace(STRONG, size=96 / 224, scale=(0.086, 0.429)),
)
# Source: BYOL (arXiv 2006.07733) appendix B, with crops of 0.2 to 1 in LEWEL's code; without blur
# as solo-learn has it on CIFAR.
FIRST = View(jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=1.0)
SECOND = replace(FIRST, blur_p=0.1, solarize_p=0.2)
WIDE = (0.08, 1.0)  # BYOL's crops, and those of MoCo's CIFAR demo
RECIPES = {
    "weak_strong": (WEAK, STRONG),
    "multi_crop": (WEAK, STRONG, *SMALL),
    "two_strong": (STRONG, STRONG),
    "three_strong": (STRONG, STRONG, STRONG),
    "asymmetric": (FIRST, SECOND),
    "byol": (replace(FIRST, scale=WIDE), replace(SECOND, scale=WIDE)),
    "two_wide": (replace(STRONG, scale=WIDE), replace(STRONG, scale=WIDE)),
}
for _name in ("asymmetric", "byol", "two_strong", "two_wide"):
    RECIPES[f"{_name}_sharp"] = tuple(replace(view, blur_p=0.0) for view in RECIPES[_name])

# What each strength of a view may be; of two numbers (scale, ratio, sigma) the first is the lower.
_LIMITS = {
    "scale": (1e-3, 1.0),
    "ratio": (0.01, 100.0),
    "flip": (0.0, 1.0),
    "jitter": (0.0, 10.0),
    "jitter_p": (0.0, 1.0),
    "grey_p": (0.0, 1.0),
    "blur_p": (0.0, 1.0),
    "sigma": (0.01, 100.0),
    "solarize_p": (0.0, 1.0),
}
_MOST_HUE = 0.5  # half a circle


@dataclass(frozen=True)
class OwnView:
    """A view that a function of the caller's makes."""

    make: Callable[[Any], object]  # an image -> a view, both as `data.own_views` says
    size: float  # side, as a share of the image size: that of the recipe's view in its place

    @property
    def name(self) -> str:
        """The function's qualified name, or that of the class of a callable object.

        A resumed run compares it alone: another function of the same name is not noticed.
        """
        named = self.make if hasattr(self.make, "__qualname__") else type(self.make)
        return printable(f"{named.__module__}.{named.__qualname__}")

    def side(self, image_size: int) -> int:
        """Side of the square view, in pixels."""
        return max(1, round(self.size * image_size))


Recipe = tuple[View | OwnView, ...]  # the views of a method, in its order


def kind_of(view: View) -> str:
    """small, strong (more than a crop and a flip) or weak."""
    changes = view.jitter_p or view.grey_p or view.blur_p or view.solarize_p
    return "small" if view.size < 1 else "strong" if changes else "weak"


def recipe_of(name: str, changes: Sequence[str] = ()) -> tuple[View, ...]:
    """The views of a recipe with changes as ``--view`` takes them, such as ``weak.scale=0.4,1``.

    Before the dot: a view's number, from 1, or weak, strong or small, which are all of that kind in
    the recipe. Behind it: a field of `View`; one number stands for all of its numbers. Raises
    InputError, also for views that were functions of the caller's.
    """
    views = list(RECIPES[name])
    for change in changes:
        head, equals, text = change.partition("=")
        chosen, dot, field = head.partition(".")
        if is_own(change):
            what = f"{printable(change)} is a view that a function of yours made"
            call = "pretrain(method, data, config, run_dir, views=[...], resume=True)"
            raise InputError(f"{what}; go on from Python with the same function: {call}")
        if not dot or not equals:
            _refuse(change, "expected VIEW.STRENGTH=VALUE, for example weak.scale=0.4,1")
        named = [(str(number), kind_of(view)) for number, view in enumerate(RECIPES[name], 1)]
        places = [place for place, names in enumerate(named) if chosen in names]
        if not places:
            kinds = ", ".join(dict.fromkeys(kind for _, kind in named))
            _refuse(change, f"expected one of {kinds}, or a number from 1 to {len(views)}", chosen)
        values = _values(change, field, text)
        for place in places:
            views[place] = replace(views[place], **{field: values})
    return tuple(views)


def described(name: str, views: Sequence[object]) -> tuple[Recipe, list[str]]:
    """The recipe of a list of `View` and of functions, and the changes that describe it.

    Those of functions, as 2=module.function, only say so. Raises InputError for another number of
    views or another size than the recipe has.
    """
    recipe = RECIPES[name]
    if not isinstance(views, (list, tuple)):
        given = f"views: a {type(views).__name__}, not a list"
        raise InputError(f"{given}; expected one of {len(recipe)}, as the method takes ({name})")
    if len(views) != len(recipe):
        expected = f"expected {len(recipe)}, as the method takes ({name})"
        raise InputError(f"views: a list of {len(views)}; {expected}")
    own: dict[int, OwnView] = {}
    changes = []
    for number, (view, of_recipe) in enumerate(zip(views, recipe, strict=True), 1):
        if not isinstance(view, View) and not callable(view):
            given = f"views: view {number} is {printable(repr(view))[:60]}"
            raise InputError(f"{given}; expected a View or a function of an image")
        if not isinstance(view, View):
            own[number] = OwnView(view, of_recipe.size)
            changes.append(f"{number}={own[number].name}")
        elif view.size != of_recipe.size:
            given = f"views: view {number} has the size {view.size:g}"
            raise InputError(f"{given}, expected the recipe's {of_recipe.size!r}")
        else:
            for field in _LIMITS:
                value = getattr(view, field)
                if value != getattr(of_recipe, field):
                    numbers = value if isinstance(value, (tuple, list)) else (value,)
                    changes.append(f"{number}.{field}={','.join(map(str, numbers))}")
    changed = recipe_of(name, [change for change in changes if not is_own(change)])
    return tuple(own.get(number, view) for number, view in enumerate(changed, 1)), changes


def is_own(change: str) -> bool:
    """Whether a change says that a function of the caller's made the view: 2=module.function."""
    return change.partition("=")[0].isdecimal()


def _values(change: str, field: str, text: str) -> float | tuple[float, ...]:
    """The numbers of a strength. Raises InputError."""
    if field not in _LIMITS:
        near = difflib.get_close_matches(field, _LIMITS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the strengths are {', '.join(_LIMITS)}"
        _refuse(change, f"there is no such strength, {hint}", field)
    default = next(one.default for one in fields(View) if one.name == field)
    count = len(default) if isinstance(default, tuple) else 1
    low, high = _LIMITS[field]
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if len(numbers) == 1:
        numbers *= count
    fits = len(numbers) == count and all(low <= number <= high for number in numbers)
    if field == "jitter":
        fits = fits and numbers[3] <= _MOST_HUE
    if count == 2:
        fits = fits and numbers[0] <= numbers[1]
    if not fits:
        kinds = {1: "a number", 2: "LOWEST,HIGHEST", 4: "BRIGHTNESS,CONTRAST,SATURATION,HUE"}
        most = f" (hue: at most {_MOST_HUE:g})" if field == "jitter" else ""
        _refuse(change, f"expected {kinds[count]} from {low:g} to {high:g}{most}", text)
    return tuple(numbers) if count > 1 else numbers[0]


def _refuse(change: str, expected: str, part: str = "") -> NoReturn:
    named = f" ({printable(part)})" if part else ""
    raise InputError(f"--view {printable(change)[:80]}{named}: {expected}")
