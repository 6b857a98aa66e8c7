"""The house rules: imports flow one way, libraries have one front door, files stay small, names stay ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cgh_models

PACKAGE = Path(cgh_models.__file__).parent
# Modules of one floor never import each other, except on floor 0, where they may import what stands to their left.
FLOORS = [
    ["errors", "files", "tensors", "manifest", "card", "report", "download", "remote", "autoload", "architectures",
     "backbone", "heads", "teacher", "feature_queue", "losses", "views", "fast_views", "images", "archives", "config",
     "recipes", "evaluate_config", "method"],
    ["methods.byol", "methods.cgh", "methods.lewel", "methods.mnclglf", "methods.moco_v2", "methods.nnclr",
     "methods.ressl", "optim", "step", "data", "checkpoint", "hub", "authors", "evaluate.collapse"],
    ["methods", "batches", "tags", "evaluate.cache", "evaluate.inference", "evaluate.splits"],
    ["evaluate.extraction", "evaluate.classifier", "registry"],
    ["evaluate.neighbours", "evaluate.linear", "evaluate.probes", "evaluate.finetune"],
    ["evaluate", "evaluate.measured"],
    ["journal", "integrity", "compatibility"],
    ["train", "export"],
    ["demo", "publish", "convert"],
    ["commands", "weights_commands", "evaluate_commands"],
    ["__main__"],
]  # fmt: skip
DOORS = {
    "timm": {"archives", "architectures", "backbone", "optim", "batches", "tags", "registry", "integrity",
             "compatibility", "export", "convert"},
    "huggingface_hub": {"hub", "remote", "publish", "card"},
    "requests": {"download"},
    "fastjsonschema": {"manifest"},
    "PIL": {"views", "images", "archives", "data", "batches", "report"},
    "torchvision": {"views", "batches"},
    "tyro": {"commands", "weights_commands", "evaluate_commands", "__main__"},
    "simplejpeg": {"images"},
    "tqdm": {"journal", "download"},
}  # fmt: skip
PLACES = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(name: str) -> set[tuple[str, str]]:
    """("own", module) and ("library", package) for every import in a module, lazy ones too."""
    found = set()
    prefix = (
        name.split(".")[:-1]
        if not FILES[name].name.startswith("__init__")
        else ([] if name == "__init__" else name.split("."))
    )
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {("library", alias.name.split(".")[0]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(("library", (node.module or "").split(".")[0]))
        elif isinstance(node, ast.ImportFrom):
            base = prefix[: len(prefix) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {("own", ".".join([*base, n])) for n in names if n}
    return found


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_imports_only_from_below(name):
    if name == "__init__":
        return
    floor, place = PLACES[name]
    for kind, other in imports(name):
        if kind == "own" and other in PLACES:
            theirs = PLACES[other]
            allowed = theirs[0] < floor or (floor == 0 and theirs[0] == 0 and theirs[1] < place)
            assert allowed, f"{name} (floor {floor}) imports {other} (floor {theirs[0]})"
        if name == "train":
            assert other.split(".")[0] not in ("registry", "methods")
        if name.startswith("methods."):
            assert other not in ("data", "train", "config")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_library_enters_by_its_front_door(name):
    for kind, other in imports(name):
        if kind == "library" and other in DOORS:
            assert name in DOORS[other], f"{name} imports {other}; only {sorted(DOORS[other])} may"


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_stay_small(name):
    lines = FILES[name].read_text("utf-8").splitlines()
    assert len(lines) <= 300
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = 80 if node.name == "pretrain" else 50
            assert node.end_lineno - node.lineno < limit, f"{name}.{node.name}"
    assert FILES[name].stem not in {"utils", "misc", "common", "helpers", "queue", "types", "random"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_classes_never_inherit_from_each_other(name):
    ours = {
        node.name
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            assert not {base.id for base in node.bases if isinstance(base, ast.Name)} & ours


def test_every_public_function_and_class_says_what_it_is():
    for name, path in FILES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{name}.{node.name}"


def _fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_timm():
    out = _fresh(
        "import sys, cgh_models; print([m for m in ('torch', 'timm', 'numpy', 'PIL', 'tyro') if m in sys.modules])"
    )
    assert out == "[]"


def test_help_loads_no_torch():
    code = (
        "import sys; from cgh_models.__main__ import main; sys.argv = ['', '-h']; main(); print('torch' in sys.modules)"
    )
    assert _fresh(code).splitlines()[-1] == "False"
