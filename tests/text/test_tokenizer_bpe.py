"""Byte-level BPE: compiled and in Python the same ids; training, files, and how bad files are refused."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt.engine import kernels
from npgpt.text import bpe
from npgpt.text.load import load_tokenizer, make_tokenizer
from npgpt.text.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer
from npgpt.text.unicode import LETTERS, NUMBERS

SOME = [
    "Não sei se a praia é bela; sei que o sol nasce e o mar bate na praia. " * 3,
    "the theme of the thesis: don't, we'll, I've, it's, they're, I'm, he'd. The end.\n\n\n  The end" * 3,
    "1234 12 1984, 2024 e 1984; ação, reação, atração, coração   \t\n  x" * 3,
    "aaaaaaa aaaa aaaaaaaaaaaa aa aaa ababababab abab ababab bababa" * 3,
]
DOCUMENTS = [text.encode() for text in SOME]
both = pytest.mark.parametrize("choice", ["numpy", "auto"])


@pytest.fixture(scope="module")
def trained():
    return BPETokenizer.train(DOCUMENTS, 350)


@pytest.fixture(scope="module")
def reference(trained):
    return bpe.ReferenceBpe(*trained._tables)


pieces = st.one_of(
    st.binary(),
    st.text().map(str.encode),
    st.text("ab ", max_size=200).map(str.encode),
    st.lists(st.sampled_from([*SOME[1].split(" "), "  ", "\n", "é", "'", "1", "\u3000"])).map(
        lambda words: " ".join(words).encode()
    ),
)


@given(pieces)
def test_any_bytes_come_back_and_the_kernels_do_what_the_reference_does(trained, reference, data):
    ids = trained.encode(data)
    assert ids.dtype == np.uint16 and ids.tolist() == reference.encode(data).tolist()
    assert trained.decode_bytes(ids) == data == reference.decode(ids)


def plainly(tokenizer, text):
    """The rule as it is told: always the first of the possible merges, of equals the leftmost."""
    byte_ids, table, _ = tokenizer._tables
    rules = {(left, right): (rank, token) for rank, (left, right, token) in enumerate(table.tolist())}
    ids = byte_ids[list(text.encode())].tolist()
    while found := [(*rules[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in rules]:
        _, token, i = min(found)
        ids[i : i + 2] = [token]
    return ids


@pytest.fixture(scope="module")
def shuffled(trained):
    """A vocabulary whose merges are not in the order in which anyone could have learnt them."""
    merges = [trained.vocabulary.merges[i] for i in np.random.default_rng(2).permutation(93)]
    return BPETokenizer(replace(trained.vocabulary, merges=merges))


@settings(max_examples=30)
@given(st.text("ab", min_size=200, max_size=320), st.sampled_from(["the", "aã", "ação"]))
def test_a_long_word_is_merged_like_a_short_one(trained, shuffled, text, unit):
    """From 256 bytes on another algorithm is at work."""
    for word in (text, unit * 90, text + unit):
        assert trained.encode(word).tolist() == plainly(trained, word)
        assert shuffled.encode(word).tolist() == plainly(shuffled, word)
        assert bpe.ReferenceBpe(*shuffled._tables).encode(word.encode()).tolist() == plainly(shuffled, word)


@pytest.mark.parametrize("pattern", bpe.PATTERNS)
@pytest.mark.parametrize("whole_pieces", [False, True])
def test_every_pattern_is_compiled_as_the_reference_has_it(trained, pattern, whole_pieces):
    """On texts of the characters that the patterns tell apart, and on any bytes."""
    how = {"split": pattern, "whole_pieces": np.arange(trained.vocab_size * whole_pieces, dtype=np.uint32)}
    compiled = (kernels.compiled("Bpe") or bpe.ReferenceBpe)(*trained._tables, **how)
    reference, rng = bpe.ReferenceBpe(*trained._tables, **how), np.random.default_rng(5)
    alphabet = np.array(
        [*"ab1Zé ' \n\r\t.!½Ⅷ一\u017fsStTlLvVeE", "  ", "\r\n", "'s", "'LL", "the ", "\x85", "\u3000"]
    )
    for n in range(1500):
        data = "".join(rng.choice(alphabet, n % 30)).encode() if n % 3 else rng.bytes(n % 40)
        assert compiled.encode(data).tolist() == reference.encode(data).tolist(), data
        assert b"".join(bpe.split(data, pattern)) == data == compiled.decode(reference.encode(data))
    long = "".join(rng.choice(alphabet, 300_000)).encode()  # cut for the threads
    assert (compiled.encode(long) == reference.encode(long)).all()


def test_unknown_patterns_are_refused(trained):
    for kind in (bpe.ReferenceBpe, kernels.compiled("Bpe") or bpe.ReferenceBpe):
        with pytest.raises(ValueError, match=r"^Bpe: split must be .*, got tekken$"):
            kind(*trained._tables, split="tekken")


@both
def test_a_whole_piece_that_is_a_token(trained, choice):
    """The merges of "the" made unusable: the token is found all the same, but by whole pieces alone."""
    byte_ids, merges, tokens = trained._tables
    merges = merges[[b"he" not in tokens[merge[2]] for merge in merges.tolist()]]
    at = tokens.index(b" the")
    with kernels.use(choice):
        kind = kernels.compiled("Bpe") or bpe.ReferenceBpe
        assert kind(byte_ids, merges, tokens, whole_pieces=[at]).encode(b"a the").tolist()[-1] == at
        assert at not in kind(byte_ids, merges, tokens).encode(b"a the").tolist()


@given(pieces)
def test_pieces_are_the_text(data):
    assert b"".join(bpe.split(data)) == data


def test_known_splits():
    def split(text, pattern="gpt-2"):
        return [piece.decode() for piece in bpe.split(text.encode(), pattern)]

    assert split("I'll  go,don't!\n\n x") == ["I", "'ll", " ", " go", ",", "don", "'t", "!", "\n\n", " x"]
    assert split("a\u3000\u3000b 12ab \n") == ["a", "\u3000", "\u3000", "b", " 12", "ab", " \n"]
    assert split("'S 's ''s's") == ["'", "S", " '", "s", " ''", "s", "'s"]
    assert split("em  1984, 3x", "smollm") == ["em", "  ", "1", "9", "8", "4", ",", " ", "3", "x"]
    assert split("I'LL go!\n\n 12345", "llama-bpe") == ["I", "'LL", " go", "!\n\n", " ", "123", "45"]
    assert split("a\n \n  b (c) 12", "qwen2") == ["a", "\n \n", " ", " b", " (", "c", ")", " ", "1", "2"]
    assert bpe.split(b"ab\xffcd \xe7\xe3o") == [b"ab", b"\xff", b"cd", b" \xe7\xe3", b"o"]


def test_the_kernels_have_the_reference_s_classes(trained, reference):
    """At the edges of every range; tests/parity has every code point, beside the peers."""
    edges = {c for steps in (LETTERS, NUMBERS) for c in accumulate(steps)} | {9, 14, 32, 0x85, 0xA0, 0x1680}
    edges |= {0x2000, 0x200B, 0x2028, 0x202A, 0x202F, 0x205F, 0x3000}
    near = {min(c + d, 0x10FFFF) for c in edges for d in (-1, 0, 1)} - set(range(0xD800, 0xE000))
    text = "".join(f"a{chr(c)}1{chr(c)} {chr(c)}\n" for c in sorted(near)).encode()
    assert len(near) > 2000 and (trained.encode(text) == reference.encode(text)).all()


@both
def test_training_by_hand(choice):
    with kernels.use(choice):
        learnt = BPETokenizer.train([b"low lower lowest low", b"new new"], 262)
    # lo and ow occur 4 times, " l" 3, then ew, ne and we twice: of equals the smaller pair of ids goes first.
    assert learnt.vocabulary.merges == [("l", "o"), ("lo", "w"), ("Ġ", "low"), ("e", "w"), ("n", "ew")]
    assert learnt.vocab_size == 262 and learnt.end_of_text == 261
    assert learnt.vocabulary.tokens["!"] == 0 and learnt.vocabulary.tokens["Ġ"] == 220  # as in GPT-2


texts = st.lists(st.text("aab c\n", min_size=1, max_size=120), min_size=1, max_size=3)


@given(texts, st.integers(0, 60), st.integers(1, 3))
def test_the_kernels_learn_what_the_reference_learns(documents, count, min_count):
    byte_ids = np.random.default_rng(count).permutation(256).astype(np.uint32)
    plain = bpe.ReferenceCounts()
    fast = (kernels.compiled("PieceCounts") or bpe.ReferenceCounts)()
    for document in documents:
        plain.add(document.encode())
        fast.add(document.encode())
    assert len(plain) == len(fast)
    np.testing.assert_array_equal(
        plain.train(byte_ids, count, min_count), fast.train(byte_ids, count, min_count)
    )


@both
def test_counts_of_parts_are_those_of_the_whole(choice):
    with kernels.use(choice):
        make = kernels.compiled("PieceCounts") or bpe.ReferenceCounts
    whole, halves, joined = make(), (make(), make()), make()
    joined.add_table(*joined.table())  # of nothing
    for counts, text in zip(halves, (b"low lower\xff ", b"lowest low low"), strict=True):
        counts.add(text)
        whole.add(text)
        joined.add_table(*counts.table())
    tables = [
        dict(zip(cut(*counts.table()), counts.table()[2].tolist(), strict=True)) for counts in (whole, joined)
    ]
    assert tables[0] == tables[1] and tables[0][b" low"] == 2 and len(joined) == len(whole)
    byte_ids = np.arange(256, dtype=np.uint32)
    np.testing.assert_array_equal(whole.train(byte_ids, 9, 2), joined.train(byte_ids, 9, 2))


def cut(text, lengths, _):
    return [bytes(piece) for piece in np.split(text, np.cumsum(lengths)[:-1].astype(int))]


def test_tables_that_do_not_fit_are_refused():
    counts = kernels.compiled("PieceCounts")
    if counts is None:
        pytest.skip("without kernels nothing reads past the end")
    one, text = np.ones(1, np.uint64), np.zeros(3, np.uint8)
    for lengths, times in (
        (4 * one, one),
        (0 * one, one),
        (one, np.ones(2, np.uint64)),
        (one * (2**64 - 1), one),
    ):
        with pytest.raises(ValueError, match="add_table: lengths"):
            counts().add_table(text, lengths, times)


def test_as_many_threads_as_one_will(trained, threads, rng):
    words = [word.encode() for text in SOME for word in re.split(r"(?<=\W)", text)]
    text = b"".join(words[i] for i in rng.integers(0, len(words), 300_000)) + b"x" * 500_000
    whole = []
    for n in (1, 2, 3):
        threads(n)
        whole.append(trained.encode(text))
    assert len(text) > 1_500_000
    assert whole[0].tolist() == whole[1].tolist() == whole[2].tolist()
    at, parts = 0, []
    while at < len(text):  # in lines, which no piece crosses but by the blanks around it
        end = text.find(b". ", at) + 1 or len(text)
        parts += trained.encode(text[at:end]).tolist()
        at = end
    assert parts == whole[0].tolist()


def test_memory_of_training_is_that_of_the_distinct_pieces():
    if not kernels.compiled("Bpe"):
        pytest.skip("there are no kernels")
    script = """
import resource
from npgpt.text.tokenizer import BPETokenizer
block = b"".join(b"%d um dois " % n for n in range(1000, 2000)) * 100
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
BPETokenizer.train((block for _ in range(30)), 300)
print(len(block) * 30 / 1e6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    text, grown = map(float, done.stdout.split())  # MB
    assert text > 35 and grown < 8


@both
def test_a_stream_never_breaks_a_character(choice):
    with kernels.use(choice):
        tokenizer = BPETokenizer.train([("ç€😀 " * 9).encode()], 262)
    text = "ç€😀 é ç€"
    ids = tokenizer.encode(text).tolist()
    decoder = tokenizer.stream()
    out = [decoder.push(i) for i in ids] + [decoder.close()]
    assert "".join(out) == text and "\ufffd" not in "".join(out) and len(ids) > len(text.split())
    decoder = tokenizer.stream()
    assert decoder.push(*tokenizer.encode(b"a\xc3")) == "a" and decoder.close() == "\ufffd"


def test_special_tokens_are_spelt_only_when_asked(trained):
    end, text = trained.end_of_text, f"um{END_OF_TEXT}dois"
    assert end == 349 and end not in trained.encode(text)
    ids = trained.encode(text, special_tokens=True).tolist()
    assert ids == [*trained.encode("um"), end, *trained.encode("dois")]
    assert trained.decode(ids) == "umdois"
    assert trained.decode(ids, skip_special_tokens=False) == text
    ids = ByteTokenizer().encode(text, special_tokens=True)
    assert ids.tolist() == [*b"um", 256, *b"dois"]
    assert ByteTokenizer().decode(ids, skip_special_tokens=False) == text


def test_files(trained, tmp_path):
    trained.save(tmp_path, 128)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, BPETokenizer) and again == trained and again.name == "bpe:350"
    assert pickle.loads(pickle.dumps(again)) == trained  # for processes that share the work
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path) == load_tokenizer(tmp_path / "vocab.json") == trained
    assert BPETokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt") == trained
    for old, new in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (tmp_path / old).rename(tmp_path / new)
    assert load_tokenizer(tmp_path) == trained != ByteTokenizer()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "nothing")


def test_the_byte_tokenizer_is_recognised(tmp_path):
    ByteTokenizer().save(tmp_path, 64)
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    assert load_tokenizer(tmp_path) == ByteTokenizer()


@pytest.mark.parametrize("size", [100, 256, 0, -1, 300.5, True, "many"])
def test_too_small_a_vocabulary_is_refused(size):
    with pytest.raises(ValueError, match=r"bpe: vocab_size must be a whole number, at least 257 .*got"):
        BPETokenizer.train(DOCUMENTS, size)


@both
def test_a_text_with_too_few_pairs_is_refused(choice):
    with kernels.use(choice), pytest.raises(ValueError, match="bpe:4096: the text has pairs for at most 259"):
        BPETokenizer.train([b"abc abc"], 4096)


def change(folder, edit):
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    edit(whole)
    path.write_text(json.dumps(whole), encoding="utf-8")


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w["model"]["merges"].pop(3), "no merge makes the token"),
        (lambda w: w["model"]["merges"].append(w["model"]["merges"][3]), "is there twice"),
        (lambda w: w["model"]["merges"].append("zz z"), "needs 'zz', which is no token"),
        (lambda w: w["model"]["merges"].append("a b c"), "must be two tokens, got"),
        (lambda w: w["model"]["merges"].append(3), "must be two tokens, got 3"),
        (lambda w: w["model"]["vocab"].pop("a"), "ids must be 0..348 without holes, but 64 is no token's"),
        (lambda w: w["model"]["vocab"].update(a=65), "have the same id 65"),
        (lambda w: w["model"]["vocab"].update(a=-1), "without holes, but 64 is"),
        (lambda w: w["model"]["vocab"].update(a="x"), "the id of 'a' must be a whole number, got 'x'"),
        (lambda w: w["model"]["vocab"].update({"日": 350}), "characters that stand for bytes"),
        (lambda w: w["model"].update(vocab=[]), "must map tokens to ids"),
        (lambda w: w["model"].update(type="Unigram"), "must hold a BPE model"),
        (lambda w: w.update(normalizer={"type": "NFKC"}), "but for normalizer"),
        (lambda w: w["pre_tokenizer"].update(add_prefix_space=True), "but for add_prefix_space"),
        (lambda w: w.update(pre_tokenizer={"type": "Whitespace"}), "but for pre_tokenizer"),
        (lambda w: w["model"].update(byte_fallback=True), "but for byte_fallback"),
        (lambda w: w["added_tokens"][0].update(special=1), "special of .* must be true or false, got 1"),
        (lambda w: w["added_tokens"][0].update(id=5), "have the same id 5"),
    ],
)
def test_faulty_files_are_told_what_is_wrong(trained, tmp_path, edit, message):
    trained.save(tmp_path, 64)
    change(tmp_path, edit)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_an_end_of_text_that_is_no_name_is_refused(trained, tmp_path):
    trained.save(tmp_path, 64)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ["x"]}')
    with pytest.raises(ValueError, match=r"tokenizer_config.json: eos_token must be a token, got \['x'\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("ids", [[350], [-1], [1, 70000], [0.5]])
def test_ids_that_are_none_are_refused(trained, ids):
    with pytest.raises((ValueError, TypeError), match="decode: ids must be"):
        trained.decode(ids)


def test_more_tokens_than_16_bits_have(trained, tmp_path):
    """Special tokens are enough to make ids wide, and none may wrap."""
    trained.save(tmp_path, 64)
    more = [{"id": i, "content": f"<{i}>", "special": True} for i in range(350, 70_000)]
    change(tmp_path, lambda whole: whole["added_tokens"].extend(more))
    wide = load_tokenizer(tmp_path)
    assert wide.vocab_size == 70_000 and wide.dtype == np.uint32
    ids = wide.encode("a<69999>b", special_tokens=True)
    assert ids.dtype == np.uint32 and ids[1] == 69_999
    assert wide.decode(ids, skip_special_tokens=False) == "a<69999>b"


def test_what_the_flag_names(trained, tmp_path):
    trained.save(tmp_path, 64)
    assert make_tokenizer("bytes", ()) == ByteTokenizer()
    assert make_tokenizer("bpe:350", iter(DOCUMENTS)) == make_tokenizer(str(tmp_path), ()) == trained


@pytest.mark.parametrize("name", ["bpe:100", "bpe:", "bpe:many", "bpe:-5", "bpe:1e3", "words", "Bytes", ""])
def test_names_of_no_tokenizer_are_refused(name):
    with pytest.raises(ValueError, match=r"(must be .* at least 257|must be bytes, bpe:N or).*, got"):
        make_tokenizer(name, DOCUMENTS)


TEMPLATE = "{% for message in messages %}{{ message['content'] }}\u2581{% endfor %}"
TEMPLATES = {
    "a file": {"chat_template.jinja": TEMPLATE, "tokenizer_config.json": '{"chat_template": "other"}'},
    "a key": {"tokenizer_config.json": json.dumps({"chat_template": TEMPLATE})},
    "several": {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]}
        )
    },
}


@pytest.mark.parametrize("where", TEMPLATES)
def test_a_chat_template_travels_with_the_tokenizer(where, tmp_path):
    BPETokenizer.train([b"um dois um dois"], 260).save(tmp_path, 64)
    for name, text in TEMPLATES[where].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    read = load_tokenizer(tmp_path)
    assert read.vocabulary.chat_template == TEMPLATE
    (tmp_path / "again").mkdir()
    read.save(tmp_path / "again", 64)
    assert load_tokenizer(tmp_path / "again").vocabulary.chat_template == TEMPLATE


def test_a_chat_template_that_is_none_is_refused(tmp_path):
    BPETokenizer.train([b"um dois um dois"], 260).save(tmp_path, 64)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 7}')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template must be .* got 7"):
        load_tokenizer(tmp_path)
