"""Regular expressions as automata: what Python's re accepts, and nothing that takes long."""

import random
import re

import pytest

from npgpt.text import regex

ATOMS = [
    "a",
    "b",
    "1",
    " ",
    r"\d",
    r"\w",
    r"\s",
    r"\D",
    r"\W",
    r"\S",
    "[ab]",
    "[^a]",
    "[a-c1]",
    ".",
    r"\.",
    "é",
    r"[^\w]",
]
ATOMS += [r"[\d_-]", "[]a]", "[^]a]", r"[\]a-]", r"\x61", r"\u00e9", r"[\W\d]", r"[^\s\d]"]
TIMES = ["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "+?"]


def pattern_of(rng, depth):
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        return rng.choice(ATOMS)
    if kind < 0.6:
        return pattern_of(rng, depth - 1) + pattern_of(rng, depth - 1)
    if kind < 0.75:
        return f"(?:{pattern_of(rng, depth - 1)}|{pattern_of(rng, depth - 1)})"
    if kind < 0.82:
        return rng.choice("^$") + pattern_of(rng, depth - 1)
    return f"({pattern_of(rng, depth - 1)}){rng.choice(TIMES)}"


@pytest.mark.parametrize("search", [False, True])
def test_as_python_has_it(search):
    rng, accepted = random.Random(1 + search), 0
    for _ in range(100):
        pattern = pattern_of(rng, 4)
        dfa = regex.compiled(pattern, search)
        theirs = [re.compile(pattern, flags) for flags in (re.ASCII, 0)]
        for _ in range(12):
            text = "".join(rng.choice("ab1 _.-") for _ in range(rng.randrange(7)))
            one, _ = found = [bool((p.search if search else p.fullmatch)(text)) for p in theirs]
            assert dfa.matches(text) == one, (pattern, text, found)
            accepted += one
            wide = "".join(rng.choice("ab1 é日\n\u0661\u2028\u00a0") for _ in range(rng.randrange(5)))
            if dfa.matches(wide):  # in every dialect
                assert all((p.search if search else p.fullmatch)(wide) for p in theirs), (pattern, wide)
    assert accepted > 80


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a", r"a \) is missing"),
        ("a)", r"a \) too many"),
        ("[a", "ends too early"),
        ("a\\", "ends too early"),
        ("*a", "repeats nothing"),
        ("a**", "two quantifiers"),
        ("a*+", "possessive"),
        ("a{3,2}", "is no range"),
        ("[b-a]", "a range in"),
        (r"[a-\d]", "a range in"),
        ("(?=a)", r"\(\?= is not supported"),
        ("(?<!a)", r"\(\?< is not supported"),
        ("(?i)a", r"\(\?i is not supported"),
        (r"(a)\1", r"\\1 is not supported"),
        (r"\ba", r"\\b is not supported"),
        (r"\p{L}", r"\\p is not supported"),
        ("\ud800", "surrogate"),
        ("(" * 60 + ")" * 60, "nested deeper"),
        ("a{9999}", "more than 5000 states"),
        ("((a{99}){99}){99}", "more than 5000 states"),
        ("[ab]*a[ab]{14}", "more than 5000 states"),
        ("(a{0,70}){0,70}", "states|steps"),
    ],
)
def test_what_cannot_be_is_refused_by_name(pattern, why):
    with pytest.raises(ValueError, match=why):
        regex.compiled(pattern)


def test_what_takes_others_for_ever_does_not_here():
    assert regex.compiled("(a|a)*b").matches("a" * 30 + "b")
    assert not regex.compiled("(a+)+$").matches("a" * 30 + "b")
    assert regex.compiled("(x+x+)+y", search=True).matches("x" * 40 + "y")


def test_lengths_and_alphabets_leave_no_dead_end():
    pairs = regex.compiled("^(aa)*$", search=True)
    assert not pairs.of_length(3, 3)
    odd = regex.compiled("a(aa)*|b").of_length(2, 4)
    assert [odd.matches("a" * n) for n in range(6)] == [False, False, False, True, False, False]
    assert not regex.compiled("é+").within(((0, 0x7F),))
    some = regex.compiled("a(é|b)c").within(((0, 0x7F),))
    assert some.matches("abc") and not some.matches("aéc")


def test_bytes_of_characters():
    rng = random.Random(2)
    for low, high in [(0, 0x10FFFF), (5, 0x800), (0x7FF, 0x10001), (0xE000, 0x10FFFF), (0x20AC, 0x20AC)]:
        spelt = regex.utf8(regex.without(((low, high),), ((0xD800, 0xDFFF),)))
        edges = [
            0x7F,
            0x80,
            0x7FF,
            0x800,
            0xFFFF,
            0x10000,
            low,
            high,
            max(0, low - 1),
            min(0x10FFFF, high + 1),
        ]
        for c in [*edges, *(rng.randrange(0x110000) for _ in range(150))]:
            if not 0xD800 <= c <= 0xDFFF:
                data = chr(c).encode()
                fits = [
                    len(s) == len(data) and all(a <= b <= z for b, (a, z) in zip(data, s, strict=True))
                    for s in spelt
                ]
                assert sum(fits) == (low <= c <= high)
