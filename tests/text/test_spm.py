"""SentencePiece's BPE: compiled and in Python the same ids, on vocabularies and texts of all kinds."""

import pickle
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgpt.engine import kernels
from npgpt.text import spm
from npgpt.text.bpe import NO_ID
from npgpt.text.load import load_tokenizer, tokenizer_of
from npgpt.text.sentencepiece import scores_of_merges
from npgpt.text.spm import BLANK, BYTE_NAMES, Pieces
from npgpt.text.tokenizer import Place
from npgpt.text.tokenizer_json import Vocabulary

LETTERS = f"abc{BLANK}\u00e9"
TOKENS = st.lists(st.text(LETTERS + "\u65e5", min_size=1, max_size=5), max_size=14, unique=True)
TEXTS = st.one_of(st.text(LETTERS + " \u65e5x", max_size=40).map(str.encode), st.binary(max_size=20))


def vocabulary(names, scores=(), merges=(), special=("<unk>", "</s>"), n_bytes=256, **pieces):
    """A vocabulary of special tokens, bytes and names."""
    tokens = [*special, *BYTE_NAMES[:n_bytes], *names]
    ids = {token: i for i, token in enumerate(tokens)}
    more = tuple([0.0] * (len(tokens) - len(scores)) + list(scores)) if scores else ()
    return Vocabulary(
        where="test",
        tokens=ids,
        merges=list(merges),
        special={name: ids[name] for name in special},
        end_of_text=special[-1],
        words=False,
        unknown=special[0] if len(special) > 1 else "",
        pieces=Pieces(**({"scores": more} | pieces)),
    )


@settings(max_examples=300)
@given(TOKENS, st.data())
def test_compiled_as_the_reference_has_it(names, data):
    names = [*dict.fromkeys([BLANK, *names])]
    scores = data.draw(
        st.lists(st.sampled_from([-1.0, -2.0, -3.0, 0.5]), min_size=len(names), max_size=len(names))
    )
    how = {"n_bytes": data.draw(st.sampled_from([0, 256])), "words": data.draw(st.booleans())}
    how |= {"fuse_unknown": data.draw(st.booleans())}
    special = data.draw(st.sampled_from([("<unk>", "</s>"), ("</s>",)]))
    tokenizer = tokenizer_of(vocabulary(names, scores, special=special, **how))
    reference = spm.ReferenceSpm(*tokenizer._tables)
    for text in data.draw(st.lists(TEXTS, max_size=6)):
        for prefix in (False, True):
            assert tokenizer._spm.encode(text, prefix).tolist() == reference.encode(text, prefix).tolist()


def slow(vocabulary, text):
    """The definition: the best pair of neighbours becomes one token, the leftmost of equals, and again."""
    pieces, tokens = list(text), vocabulary.tokens
    scores = vocabulary.pieces.scores
    while True:
        found = [
            (-scores[tokens[a + b]], i)
            for i, (a, b) in enumerate(pairwise(pieces))
            if a + b in tokens and a + b not in vocabulary.special
        ]
        if not found:
            return pieces
        i = min(found)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@settings(max_examples=200)
@given(TOKENS, st.text(LETTERS + "\u65e5", max_size=25), st.randoms())
def test_scores_are_followed_as_they_are_defined(names, text, draw):
    """Also over characters that are no tokens themselves."""
    names = [*dict.fromkeys([BLANK, *names])]
    v = vocabulary(names, [float(draw.randrange(4)) for _ in names], prefix="never")
    expected = []
    for piece in slow(v, text):
        expected += (
            [v.tokens[piece]] if piece in v.tokens else [v.tokens[BYTE_NAMES[b]] for b in piece.encode()]
        )
    assert tokenizer_of(v).encode(text).tolist() == expected


@pytest.fixture(scope="module")
def usual():
    names = [*"abcdeo", BLANK, "\u00e9", f"{BLANK}a", "ab", f"{BLANK}ab", "abc", f"{BLANK}o"]
    return tokenizer_of(vocabulary(names, [-float(i) for i in range(len(names))]))


@given(st.one_of(st.text(), st.binary()))
def test_any_bytes_come_back(usual, text):
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    expected = data.replace(BLANK.encode(), b" ")
    assert usual.decode_bytes(usual.encode(data)) == expected
    stream, ids = usual.stream(), usual.encode(data).tolist()
    joined = "".join(map(stream.push, ids)) + stream.close()
    assert joined.removeprefix(" ") == expected.decode("utf-8", "replace").removeprefix(" ")


def test_the_blank_before_a_text(usual):
    def ids(how, text, place=Place.BEGIN):
        made = tokenizer_of(replace(usual.vocabulary, pieces=replace(usual.vocabulary.pieces, prefix=how)))
        return [b"".join(map(made.token_bytes, made.encode(text, place=place).tolist())).decode()]

    assert ids("prepend", "a") == ids("always", "a") == ids("first", "a") == [" a"]
    assert ids("never", "a") == ["a"] and ids("prepend", " a") == ["  a"]
    assert ids("first", " a") == ids("always", f"{BLANK}a") == [" a"]
    assert ids("first", "a", Place.SEGMENT) == ["a"] and ids("always", "a", Place.SEGMENT) == [" a"]
    assert ids("prepend", "a", Place.INSIDE) == ids("always", "a", Place.INSIDE) == ["a"]
    assert ids("prepend", "") == [""]


def test_parts_are_one_text(usual):
    end = usual.end_of_text
    ids = usual.encode_parts(["a", "b", end, "ab</s>", end, "", end]).tolist()
    assert ids == [*usual.encode("ab"), end, *usual.encode("ab</s>"), end, end]
    assert end not in usual.encode("a</s>").tolist() and end in usual.encode("a</s>", special_tokens=True)


def test_files_hold_it_all(usual, tmp_path):
    """Scores too, which a tokenizer.json has no place for."""
    merges = [(BLANK, "a"), ("a", "b")]
    for n, v in enumerate(
        [usual.vocabulary, replace(usual.vocabulary, merges=merges, pieces=Pieces("first"))]
    ):
        made = tokenizer_of(v)
        folder = tmp_path / str(n)
        folder.mkdir()
        made.save(folder, 8)
        again = load_tokenizer(folder)
        assert (
            again == made and again.vocabulary.pieces == v.pieces and pickle.loads(pickle.dumps(made)) == made
        )
        assert again.encode("ab aab o").tolist() == made.encode("ab aab o").tolist()


def test_scores_of_merges_follow_their_order():
    v = vocabulary([BLANK, "a", "b", "ab", "ba"], merges=[("b", "a"), ("a", "b")])
    scores = dict(zip(v.tokens, scores_of_merges(v), strict=True))
    assert 0 > scores["ba"] > scores["ab"] > scores["a"] == scores[BLANK]


def test_what_is_inconsistent_is_refused():
    with pytest.raises(ValueError, match=r"test: there must be a token .*, which stands for a blank"):
        tokenizer_of(vocabulary(["a"]))
    with pytest.raises(ValueError, match=r"the merge 'a' 'z' needs 'z', which is no token"):
        tokenizer_of(vocabulary([BLANK, "a"], merges=[("a", "z")]))
    with pytest.raises(ValueError, match="must have at most 1024 bytes, got 1025"):
        tokenizer_of(vocabulary([BLANK, "a" * 1025], [0.0, 0.0]))
    if made := kernels.compiled("Spm"):
        ids, none = np.full(256, NO_ID, np.uint32), np.zeros((0, 4), np.uint32)
        for wrong in ({"unknown": 7}, {"merges": np.array([[0, 0, 5, 0]], np.uint32)}, {"n_tokens": 9}):
            with pytest.raises(ValueError, match=r"^Spm: "):
                made(**({"symbols": [b"a"], "n_tokens": 1, "merges": none, "byte_ids": ids} | wrong))


def test_a_text_without_blanks_takes_no_square_of_time(usual):
    if not kernels.compiled("Spm"):
        pytest.skip("the reference is slow")
    times = []
    for n in (100_000, 800_000):
        text, start = b"ab" * n, time.perf_counter()
        usual.encode(text)
        times.append(time.perf_counter() - start)
    assert times[1] < 40 * times[0] + 1


def test_threads_share_a_tokenizer(usual):
    text = b"ab abc a o ab " * 2000
    expected, found = usual.encode(text).tolist(), []
    threads = [threading.Thread(target=lambda: found.append(usual.encode(text).tolist())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
