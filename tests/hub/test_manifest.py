"""The manifest: both copies are equal, it has its schema, a bad one is refused with row and key."""

import contextlib
import copy
import json
import random
from pathlib import Path

import fastjsonschema
import pytest

import cgh_models
from cgh_models.errors import InputError, IntegrityError
from cgh_models.hub import manifest
from cgh_models.hub.row import HEADS, OLD_HEADS, Row

REPO = Path(__file__).resolve().parents[2]

ROW = {
    "name": "test_resnet.cgh",
    "architecture": "test_resnet",
    "model_args": {},
    "parameters": 5,
    "num_features": 3,
    "pool_size": [2, 2],
    "method": "cgh",
    "method_config": {"taps": 2},
    "train_config": {},
    "branch": "student",
    "data": {"name": "Some Set", "images": 64, "digest": "0" * 64, "license_note": "Free."},
    "epochs": 1.5,
    "steps": 4,
    "seed": 0,
    "code": {"version": "0.1.0", "commit": None},
    "command": "cgh pretrain",
    "files": {"model.safetensors": {"bytes": 9, "sha256": "a" * 64, "urls": None}},
    "hub": None,
    "preprocessing": {
        "input_size": [3, 64, 64],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    },
    "license": None,
    "paper_ids": ["arXiv:2308.13392"],
    "metrics": {"knn": None, "linear": None},
    "fingerprint": [0.5] * 8,
    "notes": [],
}


def write(path, *rows):
    path.write_text(json.dumps({"schema": 1, "weights": list(rows)}))
    return path


def changed(way: str, value):
    """ROW with the value at a/b/c replaced, or removed if it is ..."""
    return changed_at(ROW, way.split("/"), value)


def test_both_copies_are_equal_and_every_row_keeps_the_schema():
    packaged = (Path(cgh_models.__file__).parent / "weights_manifest.json").read_bytes()
    assert packaged == (REPO / "weights_manifest.json").read_bytes()
    rows = manifest.read(REPO / "weights_manifest.json")
    assert rows == list(manifest.rows().values())
    assert sorted(row.name for row in rows) == manifest.names()


@pytest.mark.parametrize(
    "file",
    [REPO / "weights_manifest.json", REPO / "tests" / "old_folders" / "weights" / "weights.json"],
)
def test_rows_come_back_as_the_json_they_were(file):
    values = json.loads(file.read_text())
    for row in values.get("weights", [values]):
        assert json.dumps(Row.from_json(row).to_json()) == json.dumps(row)
    assert Row.from_json(ROW).to_json() == ROW


# Values that JSON can hold, each of them right in some places and wrong in others.
VALUES = (None, True, -1, 0, 3, 0.5, 101, 5000, "", "knn", "a" * 64, "x" * 3000, "a/b", [], {})
VALUES += ([3, 64, 64], [0.5, 0.5, 0.5], {"a": 1}, ["a"], [None] * 8)


def _places(value, way=()):
    """The ways to everything inside a JSON value."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*way, key)
            yield from _places(value[key], (*way, key))


def test_the_dataclasses_check_what_the_schema_says(tmp_path):
    """Every place of a full row with every value, without it, and with a key more."""
    schema = json.loads((manifest.PACKAGE / "weights_manifest.schema.json").read_text())
    accepts = fastjsonschema.compile(schema)
    full = changed("metrics", {"knn": METRIC, "linear": None, "knn_tiny": METRIC})
    full |= {"hub": {"repo_id": "org/name", "revision": "0" * 40}, "model_args": {"img_size": 64}}
    full["files"]["model.safetensors"]["urls"] = ["https://example.com/a.safetensors"]
    full["training"] = {"hardware": "h", "hours": 1.5, "log": "l", "log_sha256": "c" * 64}
    both = 0
    for base in (full, full | {"converted_from": CONVERTED}):
        for way in _places(base):
            if way[0] in ("name", "architecture"):  # the schema cannot compare the two
                continue
            if way[:2] in (("preprocessing", "mean"), ("preprocessing", "std")) and way[2:]:
                continue  # nor how many numbers there are with the number of channels
            for value in (..., *VALUES):
                row = changed_at(base, way, value)
                if value is ... and isinstance(way[-1], str):
                    row_more = changed_at(base, (*way[:-1], "more"), 1)
                    assert _accepts(accepts, row_more) == _accepts(None, row_more), way
                assert _accepts(accepts, row) == _accepts(None, row), (way, value)
                both += _accepts(None, row)
    assert both > 100


def changed_at(row, way, value):
    row = copy.deepcopy(row)
    place = row
    for key in way[:-1]:
        place = place[key]
    if value is ...:
        del place[way[-1]]
    else:
        place[way[-1]] = value
    return row


def _accepts(schema, row) -> bool:
    try:
        if schema:
            schema({"schema": 1, "weights": [row]})
        else:
            Row.from_json(row)
    except ValueError:  # fastjsonschema's is one too
        return False
    return True


def test_what_is_published_can_be_traced_and_was_measured():
    for row in manifest.rows().values():
        knn, converted = row.metrics["knn"], row.converted_from
        assert row.license and row.notes and (converted or row.code.commit)
        assert row.command.startswith("cgh convert " if converted else "cgh pretrain ")
        assert knn and knn.data == row.data.name and knn.n >= 10_000
        assert knn.command.startswith("cgh evaluate")


CONVERTED = {"file": "a.pth", "bytes": 9, "sha256": "b" * 64, "prefix": "module.encoder_q."}
UNKNOWN = (
    "method_config",
    "train_config",
    "epochs",
    "steps",
    "seed",
    "data/name",
    "data/images",
    "data/digest",
)


def test_what_a_converted_file_cannot_say_may_be_null_and_nowhere_else(tmp_path):
    row = ROW | {
        "converted_from": CONVERTED,
        "data": ROW["data"] | dict.fromkeys(("name", "images", "digest")),
    }
    row |= dict.fromkeys(key for key in UNKNOWN if "/" not in key)
    assert manifest.read(write(tmp_path / "m.json", row))[0].to_json() == row
    for key in UNKNOWN:
        with pytest.raises(InputError, match=f"key '{key.replace('/', '.')}': null, expected "):
            manifest.read(write(tmp_path / "m.json", changed(key, None)))


@pytest.mark.parametrize("heads", [HEADS, OLD_HEADS])
def test_heads_have_a_new_and_an_old_name_and_converted_weights_have_none(tmp_path, heads):
    files = ROW["files"] | {heads: ROW["files"]["model.safetensors"]}
    (row,) = manifest.read(write(tmp_path / "m.json", ROW | {"files": files}))
    assert row.heads_file == heads and Row.from_json(ROW).heads_file is None
    with pytest.raises(InputError, match="key 'files'"):
        manifest.read(
            write(tmp_path / "m.json", ROW | {"files": files, "converted_from": CONVERTED})
        )


METRIC = {"data": "d", "protocol": "p", "parameters": {}, "value": 50, "n": 9, "command": "c"}


def test_a_whole_row_is_accepted(tmp_path):
    full = changed("metrics", {"knn": METRIC, "linear": None, "knn_tiny": METRIC})
    full["hub"] = {"repo_id": "org/name", "revision": "0" * 40}
    full["files"]["model.safetensors"]["urls"] = ["https://example.com/a.safetensors"]
    rows = manifest.read(write(tmp_path / "m.json", ROW | {"name": "test_resnet.b"}, full))
    assert rows[1].to_json() == full


FILE = "files/model.safetensors/"
BAD = [
    ("fingerprint", ..., "key 'fingerprint' is missing"),
    ("data/digest", ..., "key 'data.digest' is missing"),
    ("files/model.safetensors", ..., "key 'files': [], expected model.safetensors"),
    ("metrics/linear", ..., "key 'metrics': [\"knn\"], expected knn and linear"),
    ("colour", "red", "key 'colour' is not one of name, architecture, "),
    (
        "files/../../etc/passwd",
        None,
        'key \'files\': ["model.safetensors", "../../etc/passwd"], expected ',
    ),
    ("metrics/psnr", METRIC, "key 'metrics': \"psnr\", expected knn, linear"),
    ("name", "../../etc.passwd", "key 'name'"),
    ("name", "test_resnet", "key 'name'"),
    (
        "architecture",
        "test_vit",
        "key 'architecture': \"test_vit\", expected what stands before the name's dot",
    ),
    ("parameters", True, "key 'parameters': true, expected a whole number"),
    ("parameters", "5", "key 'parameters'"),
    ("steps", -1, "key 'steps': -1, expected 0 to"),
    ("epochs", None, "key 'epochs'"),
    ("branch", "head", "key 'branch'"),
    (FILE + "sha256", "a" * 63, "sha256': \"aaa"),
    (FILE + "sha256", "A" * 64, "sha256"),
    (FILE + "sha256", "a" * 64 + "\n", "sha256"),
    (FILE + "bytes", 0, "bytes': 0, expected 1 to"),
    (FILE + "urls", [], "urls"),
    (FILE + "urls", ["http://example.com/a"], "urls"),
    (FILE + "urls", ["https://user:secret@example.com/a"], "urls"),
    (FILE + "urls", ["file:///etc/passwd"], "urls"),
    ("hub", {"repo_id": "org/name"}, "key 'hub.revision' is missing"),
    ("hub", {"repo_id": "org/name", "revision": "main"}, "key 'hub.revision'"),
    ("hub", {"repo_id": "../name/x", "revision": "0" * 40}, "key 'hub.repo_id'"),
    ("preprocessing/input_size", [3, 64], "input_size"),
    ("preprocessing/input_size", [1, 64, 64], "input_size"),
    (
        "model_args/checkpoint_path",
        "/tmp/x.pth",
        "key 'model_args.checkpoint_path': \"/tmp/x.pth\", expected a whole number",
    ),
    (
        "model_args/checkpoint_path",
        1,
        "key 'model_args': {\"checkpoint_path\": 1}, expected img_size",
    ),
    ("model_args/img_size", 4097, "key 'model_args.img_size': 4097, expected 1 to 4096"),
    (
        "preprocessing/mean",
        [0, 1e308, 0],
        "key 'preprocessing.mean.1': 1e+308, expected a number",
    ),
    ("fingerprint", [10**400] * 8, "key 'fingerprint.0'"),
    ("preprocessing/std", [0, 0.2, 0.2], "std"),
    ("paper_ids", [], "paper_ids"),
    ("metrics/knn", {**METRIC, "value": 101}, "key 'metrics.knn.value'"),
    ("metrics/knn", {**METRIC, "command": ""}, "key 'metrics.knn.command'"),
    ("fingerprint", [0.5] * 7, "key 'fingerprint'"),
]


@pytest.mark.parametrize("way, value, message", BAD, ids=[f"{b[0]}={str(b[1])[:20]}" for b in BAD])
def test_a_bad_row_is_refused_with_row_and_key(tmp_path, way, value, message):
    if "/../" in way:
        row = copy.deepcopy(ROW)
        row["files"]["../../etc/passwd"] = row["files"]["model.safetensors"]
    else:
        row = changed(way, value)
    with pytest.raises(InputError) as refused:
        manifest.read(write(tmp_path / "m.json", ROW | {"name": "test_resnet.first"}, row))
    said = str(refused.value)
    assert (
        said.startswith(f"{tmp_path / 'm.json'}: row '{row['name']}'")
        and message in said
        and len(said) < 400
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {"schema": 2, "weights": []},
            "m.json: schema 2, keys schema, weights; expected a weights manifest",
        ),
        ({"weights": []}, "m.json: schema None, keys weights; expected"),
        ({"schema": 1, "weights": [], "more": 1}, "keys schema, weights, more; expected"),
        ({"schema": 1, "weights": {}}, "key 'weights'"),
        ({"schema": 1, "weights": ["row"]}, "row '0': \"row\", expected an object"),
        (
            {"schema": 1, "weights": [ROW, ROW]},
            "row 'test_resnet.cgh': key 'name': there are two rows of this name",
        ),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path, content, message):
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="m.json: ") as refused:
        manifest.read(tmp_path / "m.json")
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": NaN}', "[" * 100_000, "\xff"])
def test_what_is_not_json_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match="m.json: not (valid JSON|a JSON object)"):
        manifest.read(tmp_path / "m.json")


def test_mutated_manifests_are_read_or_refused(tmp_path):
    rng, whole = random.Random(0), json.dumps({"schema": 1, "weights": [ROW]})
    for _ in range(1000):
        text = list(whole)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = rng.choice('{}[]",:0-.eaT\\ ')
        (tmp_path / "m.json").write_text("".join(text))
        with contextlib.suppress(InputError, IntegrityError):
            manifest.read(tmp_path / "m.json")


def test_a_row_is_added_once_and_replaced_in_its_place(tmp_path):
    path = write(tmp_path / "m.json", ROW, ROW | {"name": "test_resnet.b"})
    manifest.add(path, Row.from_json(ROW | {"seed": 7}))
    manifest.add(path, Row.from_json(ROW | {"name": "test_resnet.c"}))
    assert [(row.name, row.seed) for row in manifest.read(path)] == [
        ("test_resnet.cgh", 7),
        ("test_resnet.b", 0),
        ("test_resnet.c", 0),
    ]
    before = path.read_bytes()
    wrong = Row.from_json(ROW)
    wrong.seed = "7"
    with pytest.raises(InputError, match="key 'seed'"):
        manifest.add(path, wrong)
    assert path.read_bytes() == before


def test_an_unknown_name_is_told_those_that_are_close(monkeypatch):
    monkeypatch.setattr(manifest, "rows", lambda: {"resnet50.cgh": Row.from_json(ROW)})
    with pytest.raises(
        InputError, match=r"resnet50.chg: no published weights .*; did you mean resnet50.cgh"
    ):
        manifest.row("resnet50.chg")
    info = cgh_models.weights_info("resnet50.cgh")
    info["files"].clear()
    assert ROW["files"] and cgh_models.list_pretrained("resnet50*") == ["resnet50.cgh"]
    assert cgh_models.list_pretrained("vit*") == []
