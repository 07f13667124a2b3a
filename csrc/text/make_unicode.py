"""Writes the letters and numbers of Unicode 16, \\p{L} and \\p{N} of GPT-2's split, as C++ and as Python.

    python csrc/text/make_unicode.py

Version 16 because tiktoken 0.14 and tokenizers 0.23 have it, as tests/parity checks at every code point; a
later one would give other ids for the letters that it adds. Runs on Python 3.14, whose unicodedata is
version 16, or with `pip install unicodedataplus==16.0.0.post1`.
"""

import itertools
import textwrap
import unicodedata
from pathlib import Path

VERSION = "16.0.0"
ROOT = Path(__file__).parents[2]
ABOUT = (
    f"Unicode {VERSION}, by csrc/text/make_unicode.py: gaps and lengths of the ranges, in turns, from 0 on."
)


def steps(general: str, category) -> list[int]:
    """Gap, length, gap, length ... of the code points whose general category begins with `general`."""
    edges, inside = [0], False
    for code in range(0x110000):
        if (category(chr(code))[0] == general) != inside:
            edges.append(code)
            inside = not inside
    return [b - a for a, b in itertools.pairwise(edges)]


def main():
    database = unicodedata
    if database.unidata_version != VERSION:
        import unicodedataplus as database
    assert database.unidata_version == VERSION
    tables = {name: steps(name[0], database.category) for name in ("LETTERS", "NUMBERS")}
    body = {
        name: textwrap.fill(", ".join(map(str, t)), 106, initial_indent="    ", subsequent_indent="    ")
        for name, t in tables.items()
    }
    cpp = [f"// {ABOUT}"]
    cpp += [f"static const unsigned short {name}[] = {{\n{text}}};" for name, text in body.items()]
    (ROOT / "csrc/text/unicode.inl").write_text("\n".join(cpp) + "\n")
    python = [f'"""{ABOUT}"""', "", "# fmt: off"]
    python += [f"{name} = (\n{text},\n)" for name, text in body.items()]
    (ROOT / "npgpt/text/unicode.py").write_text("\n".join(python) + "\n")


if __name__ == "__main__":
    main()
