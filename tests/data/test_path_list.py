"""Lists of images: encodings, tables with labels, comments, paths of every kind."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import make_images

from cgh_models.data.image_set import load
from cgh_models.errors import InputError

NAMES = ["class0/00000.png", "class0/00002.png", "class1/00001.png", "class1/00003.png"]
PLAIN = "".join(f"{name}\n" for name in NAMES)


@pytest.fixture
def home(tmp_path):
    """Four images of two classes, and where a list of them is written."""
    return make_images(tmp_path, 4, classes=2)


def read(home, content):
    if isinstance(content, str):
        content = content.encode()
    (home / "list.txt").write_bytes(content)
    return load(home / "list.txt")


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-32"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r\n").encode("utf-16"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", " \t\n\n"),
        PLAIN.replace("/", "\\"),
        "# my images\n\n" + PLAIN + "#class9/none.png\n",
        "".join(f'"{name}"\n' for name in NAMES),
        "path\n" + PLAIN,
        "# a comment\n,path\n" + "".join(f"{n},{name}\n" for n, name in enumerate(NAMES)),
    ],
)
def test_a_list_in_any_of_these_forms_is_the_plain_list(home, content):
    images = read(home, content)
    assert [name.replace("\\", "/") for name in images.names] == NAMES
    assert images.digest == read(home, PLAIN).digest
    assert images.image(3).size == (32, 32)


@pytest.mark.parametrize(
    "content",
    [
        "path,label\n{}/00000.png,cat\n{}/00002.png,cat\n{}/00001.png,dog\n",
        "label;file_name\r\ncat;{}/00000.png\r\ncat;{}/00002.png\r\ndog;{}/00001.png\r\n",
        'id\tImage Path\tx\tClass\n0\t"{}/00000.png"\t1\tcat\n1\t{}/00002.png\t2\tcat\n'
        "2\t{}/00001.png\t3\tdog\n",
        "{}/00000.png cat\n{}/00002.png cat\n{}/00001.png dog\n",
        '"{}/00000.png", "cat"\n"{}/00002.png", "cat"\n"{}/00001.png", "dog"\n',
        "\ufeffcat,{}/00000.png\ncat,{}/00002.png\ndog,{}/00001.png\n",
    ],
)
def test_labels_of_a_table_are_classes(home, content):
    images = read(home, content.format("class0", "class0", "class1"))
    assert images.names == NAMES[:3] and images.classes == ["cat", "dog"]
    assert images.labels.tolist() == [0, 0, 1]
    assert images.digest == read(home, "\n".join(NAMES[:3])).digest


def test_labels_that_are_not_one_an_image_are_none_and_said(home, capfd):
    assert read(home, f"path,label\n{NAMES[0]},a\n{NAMES[1]},\n").labels is None
    said = "list.txt: 1 of its 2 images have no label, so no labels are used; give each image one\n"
    assert capfd.readouterr().err.endswith(said)
    rows = f"{NAMES[0]},a\n./{NAMES[0]},b\n{NAMES[1]},a\n{NAMES[2]},b\n"
    images = read(home, f"path,label\n{rows}")
    assert images.names == NAMES[:3] and images.labels is None and not images.classes
    said = "00000.png has the labels 'a' and 'b', so no labels are used; give each image one\n"
    assert capfd.readouterr().err.endswith(said)
    assert read(home, PLAIN).labels is None and not capfd.readouterr().err


@pytest.mark.parametrize("header", ["", "image,mask\n"])
def test_a_column_of_files_is_no_label(home, header, capfd):
    images = read(home, header + f"{NAMES[0]},{NAMES[1]}\n{NAMES[2]},{NAMES[3]}\n")
    assert images.names == [NAMES[0], NAMES[2]] and images.labels is None
    assert not capfd.readouterr().err
    images = read(home, header + f"{NAMES[0]},{NAMES[1]}\n{NAMES[2]},class0\n")
    assert images.classes == ["class0", NAMES[1]]


def test_a_list_is_the_same_however_its_path_is_written(home, monkeypatch):
    once = [NAMES[0], str(home / NAMES[0]), str(home / NAMES[1])]
    images = read(home, "\n".join(once))
    for folder, given in ((home, "list.txt"), (home / "class0", "../list.txt"), ("/", None)):
        monkeypatch.chdir(folder)
        again = load(given or (home / "list.txt").relative_to("/"))
        assert (again.names, again.digest) == (images.names, images.digest)
        assert again.skipped == {"named again": 1}


def test_absolute_and_relative_paths_and_those_named_again(home):
    twice = [NAMES[0], f"./{NAMES[0]}", str(home / NAMES[0]), str(home / NAMES[1])]
    images = read(home, "\n".join(twice))
    assert images.names == sorted([NAMES[0], str(home / NAMES[1])])
    assert images.skipped == {"named again": 2}


@pytest.mark.parametrize("table", [False, True])
def test_missing_files_are_counted_and_the_first_named(home, table):
    lines = [NAMES[0], "class0/z.png", *NAMES[1:], "a.png"]
    rows = [f"{name},x" for name in lines] if table else lines
    with pytest.raises(
        InputError, match="2 of its 6 lines are not files, the first is 'class0/z.png'"
    ):
        read(home, "\n".join(rows))


ODD = ["a,b.png", 'c"d.png', " e .png", "#f.png", "g;h\t.png", "i j 5.png", "path"]
SEPARATORS = [f"l{letter}m.png" for letter in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\xa0"]


@pytest.mark.skipif(os.name != "posix", reason="names that other systems refuse")
@pytest.mark.parametrize("names", [ODD, SEPARATORS, ["k\r.png", "n.png "]])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_names_with_separators_are_names(home, names, codec):
    for name in names:
        shutil.copy(home / NAMES[0], home / name)
    assert read(home, "\n".join([*names, ""]).encode(codec)).names == sorted(names)


@pytest.mark.skipif(os.name != "posix", reason="names that other systems refuse")
def test_a_cell_in_quotes_may_hold_any_letter(home):
    name = 'a\n"b", c.png'
    shutil.copy(home / NAMES[0], home / name)
    quoted = name.replace('"', '""')
    assert read(home, f'path,label\n"{quoted}",x\n{NAMES[1]},y\n').names == [name, NAMES[1]]


@pytest.mark.skipif(os.name != "posix", reason="names of bytes that are not text")
def test_names_that_are_not_utf_8_are_found_as_bytes_or_as_latin_1(home):
    shutil.copy(home / NAMES[0], os.fsencode(home) + b"/m\xfcll.png")
    assert read(home, PLAIN.encode() + b"m\xfcll.png\n").names[-1] == "m\udcfcll.png"
    os.remove(os.fsencode(home) + b"/m\xfcll.png")
    shutil.copy(home / NAMES[0], home / "müll.png")
    assert read(home, PLAIN.encode() + b"m\xfcll.png\n").names[-1] == "müll.png"


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 20, bytes(100), b"\0\1" * 9]
)
def test_what_is_no_text_is_one_sentence(home, content):
    with pytest.raises(
        InputError, match="list.txt: (neither a folder nor a text|.* are not files)"
    ):
        read(home, content)


def test_a_list_of_nothing_is_one_sentence(home):
    for content in ("", "\n\n", "# nothing\n"):
        with pytest.raises(InputError, match=r"no images \((nothing|1 x comment) found\)"):
            read(home, content)


def test_a_list_in_another_folder_names_images_relative_to_itself(home, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "lists").mkdir()
    Path(tmp_path / "lists" / "a.csv").write_text("image,label\n../class0/00000.png,x\n")
    assert load(tmp_path / "lists" / "a.csv").names == ["../class0/00000.png"]
