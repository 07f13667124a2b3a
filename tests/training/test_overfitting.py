"""When a run is overfitting, and what a sample repeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.console.messages import overfitting_message
from npgpt.training.overfitting import History, longest_overlap, overlap


def history(train, val):
    """A validation after each two steps."""
    found = History()
    for i, (t, v) in enumerate(zip(train, val, strict=True)):
        found.add(2 * i + 1, t, None)
        found.add(2 * i + 2, t, v)
    return found


@pytest.mark.parametrize(
    "train, val",
    [
        ([3, 2, 1], [3, 2, 1]),  # it learns
        ([3, 2, 1], [3, 2, 2.1]),  # one rise is noise
        ([3, 2, 1, 0.9], [3, 2, 2.1, 2.05]),  # and it turned
        ([3, 2, 2.5, 2.6], [3, 2, 2.5, 3]),  # training rises too: it diverges
        ([3, 2, 1.9, 1.8], [3, 2, 2.004, 2.009]),  # not worth a word
        ([], []),
    ],
)
def test_no_alarm(train, val):
    assert history(train, val).verdict() is None


def test_alarm():
    verdict = history([3, 2, 1, 0.5], [3, 2, 2.2, 2.4]).verdict()
    assert verdict == (4, 8, (2, 0.5), (2, 2.4))
    repeated = longest_overlap(b"...the rat ate...", b"the cat and the rat ate")
    line = overfitting_message(verdict, repeated)
    assert "from step 4 to 8 the training loss fell from 2.000 to 0.500" in line
    assert "validation loss rose from 2.000 to 2.400; step 4 is kept as the best" in line
    assert "repeats 11 bytes of the text: 'the rat ate'" in line


def test_a_resumed_run_knows_what_it_was_told():
    rows = ["1,0,9,3.0,,0,0,0,0,0", "2,0,9,nan,,0,0,0,0,1", "3,0,9,2.0,4.5,0,0,0,0,1"]
    assert History(rows).points == [(3, 2.5, 4.5)]


@given(st.text("ab", max_size=20), st.text("ab", max_size=30))
def test_longest_overlap_is_the_longest(sample, text):
    sample, text = sample.encode(), text.encode()
    found = longest_overlap(sample, text)
    assert found in sample and found in text
    n = len(found) + 1
    assert not any(sample[i : i + n] in text for i in range(len(sample) - n + 1))


def test_overlap_finds_what_a_search_finds(data_dir):
    """In a text of accents, whose longest stretches end inside a character."""
    text = (data_dir / "machado" / "romance_helena.txt").read_bytes()
    english = (data_dir / "tinyshakespeare" / "input.txt").read_bytes()[:300]
    samples = [english, text[5000:5200] + english[:50], text[70_000:70_300].replace(b"e", b"a"), b""]
    samples = [sample.decode("utf-8", "ignore") for sample in samples]
    held_out, text = text[:2000].replace(b"o", b"e"), text[2000:]
    found = overlap(samples, held_out, text)
    longest = max((longest_overlap(sample.encode(), text) for sample in samples), key=len)
    assert (found["bytes"], found["text"]) == (len(longest), longest.decode("utf-8", "ignore"))
    ends = [sum(len(s.encode()) for s in samples[: n + 1]) for n in range(len(samples))]
    chunks = [held_out[e - len(s.encode()) : e] for s, e in zip(samples, ends, strict=True)]
    assert found["held_out_bytes"] == max(len(longest_overlap(chunk, text)) for chunk in chunks)


def test_overlap_beside_what_is_usual():
    found = overlap(["xxabcx", "zzzz"], b"bcd", b"abcdef")
    assert (found["bytes"], found["text"], found["held_out_bytes"]) == (3, "abc", 3)
    # as many bytes, not characters, one piece behind the other
    assert overlap(["ção", "x"], b"--abcde", b"abcd")["held_out_bytes"] == 3
    assert overlap(["abc"], b"", b"abc")["held_out_bytes"] is None
