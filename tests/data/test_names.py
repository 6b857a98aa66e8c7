"""The names of a set are one array of bytes that reads as a list of texts."""

import os
import pickle
import random
import tracemalloc

import pytest

from cgh_models.data.names import Names

ODD = ["", "a/ü.png", "日本/1.jpg", "\udcff.png", "\ud800x", "a\n\t\\.png", "😀", "a", "a/b", "a-b"]


def test_names_read_as_the_list_that_they_were_made_of():
    texts = [*ODD, *(f"{n:05d}.png" for n in range(10_000))]
    names = Names(texts)
    assert list(names) == texts and len(names) == len(texts) and names == texts and texts == names
    assert [names[n] for n in range(-3, 12)] == [texts[n] for n in range(-3, 12)]
    assert names[3:-2:7] == texts[3:-2:7] and names.index("\udcff.png") == 3 and "😀" in names
    assert names != texts[1:] and names != [*texts[1:], "x"] and names != "".join(texts)
    assert pickle.loads(pickle.dumps(names)) == names and list(Names()) == []
    with pytest.raises(IndexError):
        names[len(texts)]


def test_bytes_sort_as_texts_do():
    texts = [
        random.Random(0).choice("a/\udcff\ud800é日😀~-") * (n % 3) + str(n) for n in range(500)
    ]
    encoded = [bytes(Names([text]).data) for text in texts]
    assert [text for _, text in sorted(zip(encoded, texts, strict=True))] == sorted(texts)


def test_names_take_their_bytes_and_eight_more_and_no_objects():
    texts = (f"class{n % 10}/image_{n:08d}.jpg" for n in range(50_000))
    tracemalloc.start()
    try:
        names = Names(texts)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert sum(map(len, names)) == 50_000 * 25
        read = tracemalloc.get_traced_memory()[1] - kept
    finally:
        tracemalloc.stop()
    assert kept < 50_000 * (25 + 8) * 1.2 and read < 500_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a forked process shares memory")
def test_a_forked_process_that_reads_all_names_copies_no_page_of_them():
    names = Names(f"class{n % 10}/image_{n:08d}.jpg" for n in range(200_000))
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:  # what it owns alone of the pages of the names, before and after it read them
        before = _private_kib()
        for index in range(len(names)):
            names[index]
        os.write(theirs, f"{_private_kib() - before}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(ours, 100)) < 3000  # of 6,600 KiB; as texts they would be 17,000


def _private_kib():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
