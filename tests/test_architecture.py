"""The house rules: rooms import one way, libraries have one front door, files stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cgh_models
from cgh_models.methods import METHODS

PACKAGE = Path(cgh_models.__file__).parent
GROUND = {
    "config",
    "dataclass_json",
    "errors",
    "files",
    "hashing",
    "kept_memory",
    "one_process",
    "progress",
    "public_names",
    "recipes",
    "schedule",
    "small_resnets",
    "tensors",
    "version",
    "view_recipes",
}
# Which rooms each room may import from; a room may always import from itself and from the ground.
ROOMS = {
    "backbone": set(),
    "own_network": {"backbone"},
    "data": {"backbone"},
    "methods": {"backbone"},
    "evaluate": {"backbone", "data", "methods"},
    "train": {"backbone", "data", "methods", "evaluate"},
    "hub": {"backbone", "data", "methods", "evaluate", "train"},
    "report": {"backbone", "data", "methods", "evaluate", "train", "hub"},
    "cli": {"backbone", "data", "methods", "evaluate", "train", "hub", "report"},
    "__main__": {"cli"},
}
DOORS = {
    "timm": {
        *("backbone", "small_resnets", "train.optim", "train.norm_sync"),
        *("data", "hub", "methods.compatibility"),
    },
    "huggingface_hub": {"hub"},
    "pooch": {"hub"},
    "requests": {"hub"},
    "matplotlib": {"hub", "report"},
    "jinja2": {"report"},
    "imagehash": {"report"},
    "umap": {"report"},
    "pyarrow": {"evaluate", "data.parquet"},
    "datasets": {"data.hf_datasets"},
    "fsspec": {"data.file_cache"},
    "PIL": {"data", "report"},
    "wandb": {"train.wandb_log"},
    "simplejpeg": {"data"},
    "tifffile": {"data"},
    "torchvision": {"data"},
    "tyro": {"cli"},
    "docstring_parser": {"cli"},
    "tqdm": {"progress"},
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
METHOD_FILES = {method.__module__.removeprefix("cgh_models.") for method in METHODS.values()}
LONGEST_CHAIN = 7
# What has to be read to trust a number; the pages for people are counted apart.
MOST_LINES = 19_280
MOST_LINES_OF_PAGES = 2_085


def room(name: str) -> str:
    """The room a module lies in; "" for the ground floor and for the package itself."""
    top = name.partition(".")[0]
    return "" if top in GROUND or top == "__init__" else top


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _executed(node)


@cache
def imports(name: str) -> frozenset[tuple[str, str]]:
    """("own", module) and ("library", package) for every import in a module, lazy ones too."""
    found = set()
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    if name == "__init__":
        package = []
    for node in _executed(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {("library", alias.name.split(".")[0]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(("library", (node.module or "").split(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (
                node.module.split(".") if node.module else []
            )
            for alias in node.names:
                target = ".".join([*base, alias.name])
                found.add(("own", target if target in FILES else ".".join(base)))
    return frozenset(found)


def own(name: str) -> list[str]:
    return sorted(other for kind, other in imports(name) if kind == "own" and other in FILES)


def chain(name: str, below: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The longest way down from a module, itself first."""
    assert name not in below, f"a circle: {' -> '.join((*below, name))}"
    ways = [chain(other, (*below, name)) for other in own(name)]
    return (name, *max(ways, key=len, default=()))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_imports_only_from_the_rooms_below_its_own(name):
    if name == "__init__":
        return
    for other in own(name):
        if not room(name):
            assert not room(other), f"{name} is on the ground floor and imports {other}"
        else:
            allowed = ROOMS[room(name)] | {room(name), ""}
            assert room(other) in allowed, f"{name} imports {other}"
        if name.startswith("train."):
            assert other not in METHOD_FILES | {"methods"}, (
                f"{name} imports {other}; it is handed a method object"
            )
        if name in METHOD_FILES:
            assert other not in METHOD_FILES | {"methods"}, (
                f"{name} imports {other}; methods never import methods"
            )


def test_no_imports_go_in_a_circle_and_no_chain_is_long():
    chains = {name: chain(name) for name in FILES if name != "__init__"}
    pages = ("", "__main__", "cli", "report")
    longest = max((chains[name] for name in chains if room(name) not in pages), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_library_enters_by_its_front_door(name):
    for kind, other in imports(name):
        if kind == "library" and other in DOORS:
            assert DOORS[other] & {name, name.partition(".")[0]}, (
                f"{name} imports {other}; only {DOORS[other]} may"
            )


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_stay_small(name):
    lines = FILES[name].read_text("utf-8").splitlines()
    assert len(lines) <= 300
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = 80 if node.name in ("pretrain", "_train") else 50
            assert node.end_lineno - node.lineno < limit, f"{name}.{node.name}"
    assert FILES[name].stem not in {
        "utils",
        "misc",
        "common",
        "helpers",
        "queue",
        "types",
        "random",
    }


def test_the_package_stays_small_and_plainly_formatted():
    texts = {name: path.read_text("utf-8") for name, path in FILES.items()}
    lines = {name: text.count("\n") for name, text in texts.items()}
    pages = sum(count for name, count in lines.items() if room(name) == "report")
    assert pages <= MOST_LINES_OF_PAGES
    assert sum(lines.values()) - pages <= MOST_LINES
    assert sum(text.count("fmt: skip") for text in texts.values()) <= 10


def test_classes_never_inherit_from_each_other():
    classes = {
        f"{name}.{node.name}": node
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    ours = {node.name for node in classes.values()}
    for name, node in classes.items():
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        assert not bases & ours, name


def test_every_public_function_and_class_says_what_it_is():
    for name, path in FILES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}.{node.name}"


def test_every_folder_says_what_is_in_it_and_hands_out_its_names():
    import importlib

    for folder in ("data", "methods", "train", "evaluate", "hub", "report", "cli"):
        module = importlib.import_module(f"cgh_models.{folder}")
        assert len((module.__doc__ or "").splitlines()) >= 1
        for public in getattr(module, "__all__", ()):
            assert getattr(module, public) is not None


def _fresh(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_timm():
    out = _fresh(
        "import sys, cgh_models\n"
        "print([m for m in ('torch', 'timm', 'numpy', 'PIL', 'tyro') if m in sys.modules])"
    )
    assert out == "[]"


def test_help_loads_no_torch():
    code = (
        "import sys; from cgh_models.cli.main import main; sys.argv = ['', '-h']\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    assert _fresh(code).splitlines()[-1] == "False"
