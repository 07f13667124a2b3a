"""The index of a text, beside a search that looks at every stretch."""

import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.engine import kernels
from npgpt.text import index as indexes
from npgpt.text import index_file, suffixes
from npgpt.text.index import Index, Stretch, longest_stretches
from npgpt.training.overfitting import longest_overlap


def places(stretch, documents):
    """(number of the document, offset) of each place where documents hold a stretch."""
    return [
        (number, match.start())
        for number, document in enumerate(documents)
        for match in re.finditer(b"(?=" + re.escape(stretch) + b")", document)
    ]


def searched(text, documents, shortest=1):
    """What Index.stretches() says of itself, by asking for each stretch."""
    units = [text[i : i + 1] if isinstance(text, bytes) else text[i].encode() for i in range(len(text))]
    reach, stop = [], 0  # how far a document goes with the text from here
    for start in range(len(text)):
        stop = max(start, stop)
        while stop < len(text) and any(b"".join(units[start : stop + 1]) in d for d in documents):
            stop += 1
        reach.append(stop)
    taken, found = [False] * len(text), []
    while True:
        lengths = [
            next((i for i in range(start, stop) if taken[i]), stop) - start
            for start, stop in enumerate(reach)
        ]
        start = max(range(len(text)), key=lengths.__getitem__, default=0)
        if not lengths or lengths[start] < shortest:
            return found
        stop = start + lengths[start]
        at = places(b"".join(units[start:stop]), documents)
        found.append(Stretch(start, stop - start, len(at), *at[0]))
        taken[start:stop] = [True] * (stop - start)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 bytes, whose suffixes are sorted by 64."""
    monkeypatch.setattr(indexes, "BLOCK", 16)
    monkeypatch.setattr(indexes, "LONGEST", 64)
    monkeypatch.setattr(indexes, "AT_FIRST", 4)
    monkeypatch.setattr(index_file, "BLOCK", 16)


@given(symbols=st.lists(st.integers(0, 3), max_size=60))
def test_suffixes_are_sorted(impl, symbols):
    order = suffixes.sort_suffixes(np.array(symbols, np.uint16))
    assert order.dtype == np.int32
    assert order.tolist() == sorted(range(len(symbols)), key=lambda i: symbols[i:])


@pytest.mark.parametrize("text", [[5] * 3000, [1, 2] * 1500, [0, 256] * 900 + [0], list(range(257)) * 5])
def test_suffixes_of_repeated_symbols(impl, text):
    order = suffixes.sort_suffixes(np.array(text, np.uint16))
    assert order.tolist() == sorted(range(len(text)), key=lambda i: text[i:])


def test_symbols_are_checked(impl):
    with pytest.raises(ValueError, match=r"^sort_suffixes: symbols must be below 257, got 300$"):
        suffixes.sort_suffixes(np.array([1, 300], np.uint16))


def test_compiled_and_reference_sort_real_text_alike(data_dir):
    text = np.fromfile(data_dir / "tinyshakespeare" / "input.txt", np.uint8)[:200_000].astype(np.uint16) + 1
    if compiled := kernels.compiled("sort_suffixes"):
        assert np.array_equal(compiled(text, 257), suffixes.reference(text))


documents = st.lists(st.text("ab", max_size=24).map(str.encode), min_size=1, max_size=5)


@given(documents=documents, text=st.text("abc", max_size=40).map(str.encode), shortest=st.integers(1, 3))
def test_stretches_are_those_of_a_search(small_blocks, documents, text, shortest):
    assert Index.of(documents).stretches(text, shortest) == searched(text, documents, shortest)


letters = "aáãâ你佤"  # whose first bytes are the same


@given(
    documents=st.lists(st.text(letters, max_size=12), min_size=1, max_size=3),
    text=st.text(letters, max_size=16),
)
def test_stretches_of_a_str_are_whole_characters(small_blocks, documents, text):
    documents = [document.encode() for document in documents]
    assert Index.of(documents).stretches(text) == searched(text, documents)


@given(documents=documents, text=st.text("ab", max_size=30).map(str.encode))
def test_the_longest_is_that_of_a_search(small_blocks, documents, text):
    n = max((s.length for s in searched(text, documents)), default=0)
    first = next(
        text[i : i + n] for i in range(len(text) + 1) if any(text[i : i + n] in d for d in documents)
    )
    assert Index.of(documents).longest(text) == first


@given(
    texts=st.lists(st.text("ab", max_size=20).map(str.encode), max_size=3),
    document=st.text("ab", max_size=60),
)
def test_longest_stretches_are_those_of_a_search(small_blocks, texts, document):
    document = document.encode()
    assert longest_stretches(texts, document) == [longest_overlap(text, document) for text in texts]


def test_nothing_crosses_documents(small_blocks):
    index = Index.of([b"the cat", b" sat", b"t\0 s"])
    assert index.longest(b"the cat sat") == b"the cat"
    assert index.stretches(b"the cat sat") == [Stretch(0, 7, 1, 0, 0), Stretch(7, 4, 1, 1, 0)]
    assert index.stretches(b"t\0 s") == [Stretch(0, 4, 1, 2, 0)]  # a zero is no end
    assert index.find(b"t\0 sat") == (0, -1)


def test_repeated_text_is_one_stretch_and_its_rest(small_blocks):
    index = Index.of([b"abc " * 8])
    assert index.stretches(b"abc " * 12) == [Stretch(0, 32, 1, 0, 0), Stretch(32, 16, 5, 0, 0)]
    assert index.find(b"abc ") == (8, 0)
    assert Index.of([b"a" * 60]).find(b"a" * 20) == (41, 0)  # places overlap


def test_empty_texts(small_blocks):
    for documents in ([], [b""], [b"", b""]):
        index = Index.of(documents)
        assert index.longest(b"abc") == b"" and index.stretches("abc") == [] and index.find(b"a") == (0, -1)
    index = Index.of([b"abc"])
    assert index.longest(b"") == b"" and index.stretches("") == []
    with pytest.raises(ValueError, match=r"^find: stretch must be of 1 to 64 bytes, got 0$"):
        index.find(b"")
    with pytest.raises(ValueError, match="text must be of at most 64 bytes to be looked up, got 65"):
        index.stretches("a" * 65)


def test_lines(small_blocks):
    index = Index.of([b"a\nb\n" * 10, b"\nx\ny"])
    assert index.lines(0, [0, 1, 2, 3, 39]) == [1, 1, 2, 2, 20] and index.lines(0, []) == []
    assert index.lines(1, [0, 1, 3]) == [1, 2, 3]


@pytest.mark.parametrize("folder", ["tinyshakespeare", "machado"])
def test_real_text(data_dir, folder, monkeypatch, rng):
    """Copies of pieces with changed characters, and the text of another language, in blocks of 30,000."""
    monkeypatch.setattr(indexes, "BLOCK", 30_000)
    files = sorted((data_dir / folder).glob("*.txt"))[:3]
    documents = [path.read_bytes()[:100_000] for path in files]
    index = Index.of(documents)
    for document in documents:
        at = int(rng.integers(len(document) - 600))
        text = document[at : at + 600].decode("utf-8", "ignore")
        for i in rng.integers(0, len(text), 6):
            text = text[:i] + "ðñx"[i % 3] + text[i + 1 :]
        text += " Der Hund bellt."
        found = index.stretches(text, 10)
        assert found == searched(text, documents, 10) and sum(s.length for s in found) > 300


# ---------------------------------------------------------------------------- on the disk


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(documents, key="key"):
    """open_index(), and whether it made the index."""
    made = []

    def chunks():
        made.append(True)
        return ([document[:5], document[5:]] for document in documents)

    return index_file.open_index(key, chunks), bool(made)


@given(documents=documents, text=st.text("ab", max_size=30).map(str.encode))
def test_an_index_on_the_disk_is_that_in_memory(small_blocks, tmp_path_factory, monkeypatch, documents, text):
    monkeypatch.setenv("NPGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
    for made in (True, False):
        index, was_made = opened(documents)
        assert was_made == made and index.stretches(text) == Index.of(documents).stretches(text)


def test_a_file_is_found_by_its_key_and_takes_five_bytes_a_byte(small_blocks, cache):
    assert opened([b"abc" * 100])[1] and opened([b"abd" * 100], "other")[1]
    assert not opened([b"xyz"])[1], "the key tells the text"
    sizes = [path.stat().st_size for path in cache.iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 5 * 301 + 100


@pytest.mark.parametrize("fault", ["cut", "longer", "empty", "flipped", "another version", "of another key"])
def test_a_broken_file_is_made_again(small_blocks, cache, fault):
    opened([b"abc abd"])
    (path,) = cache.iterdir()
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        broken = bytearray(good)
        broken[at] ^= 4
        version = good.replace(b"npgptSA1", b"npgptSA0")
        faults = {"cut": good[:at], "longer": good + b"\0" * (at + 1), "empty": b"", "flipped": broken}
        path.write_bytes(faults.get(fault, version))
        if fault == "of another key":
            opened([b"xyz"], "other")
            other = next(p for p in cache.iterdir() if p != path)
            path.write_bytes(other.read_bytes())
        index, made = opened([b"abc abd"])
        assert made and index.find(b"ab") == (2, 0) and path.read_bytes() == good


def test_a_file_that_cannot_be_written_leaves_nothing(small_blocks, cache, monkeypatch):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_file, "sorted_blocks", fails)
    with pytest.raises(OSError, match="No space left on device") as error:
        opened([b"abc"])
    assert error.value.filename.endswith(".index") and list(cache.iterdir()) == []


def test_the_trailer_has_room_for_large_texts():
    assert struct.calcsize(index_file.TRAILER.format) % 8 == 0
