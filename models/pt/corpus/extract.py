"""From a file's bytes to its paragraphs of plain text, for each format of the table of sources."""

import csv
import html
import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import SourceError

TAG = re.compile(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<[?!][^>]*>|<(/?)([A-Za-zÀ-ÿ][\w:.À-ÿ-]*)([^<>]*)>", re.S)
ENTITY = re.compile(r"&([\w.-]+);")


@dataclass(frozen=True)
class Markup:
    """How a language of tags is read: what is left out with all in it, and what begins a paragraph."""

    left_out: frozenset[str]
    blocks: frozenset[str]


def names(text: str) -> frozenset[str]:
    """Return the set of these names."""
    return frozenset(text.split())


HTML = Markup(
    names("script style head nav header footer pre table form button svg math title figure iframe noscript"),
    names(
        "p div li ul ol dl dt dd h1 h2 h3 h4 h5 h6 br hr section article blockquote td th tr body main aside"
    ),
)
TEI = Markup(
    names("teiheader front back note figure table fw trailer"),
    names("p l lg head div ab sp speaker stage quote pb text body titlepage"),
)
DOCBOOK = Markup(  # and Mallard, the language of GNOME's help
    names("programlisting screen synopsis methodsynopsis constructorsynopsis fieldsynopsis classsynopsis "
          "funcsynopsis cmdsynopsis table informaltable simplelist segmentedlist literallayout indexterm "
          "refnamediv revhistory info authorgroup title code media"),
    names("para simpara listitem formalpara section sect1 sect2 sect3 refsect1 chapter preface note warning "
          "caution tip term entry row example p item page steps list"),
)  # fmt: skip


def tags(text: str, markup: Markup) -> Iterator[str]:
    """Yield the paragraphs of a text with tags. Tags that do not pair do no harm: novels have them."""
    piece: list[str] = []
    inside, at = "", 0  # the element that is left out now
    depth = 0
    for tag in TAG.finditer(text):
        if not inside:
            piece.append(text[at : tag.start()])
        at = tag.end()
        closes, name, rest = tag.group(1), (tag.group(2) or "").lower(), tag.group(3) or ""
        if inside:
            depth += (name == inside) * (-1 if closes else not rest.endswith("/"))
            if depth <= 0:
                inside = ""
        elif name in markup.left_out:
            if not closes and not rest.endswith("/"):
                inside, depth = name, 1
        elif name in markup.blocks:
            yield plain(piece)
            piece = []
    piece.append("" if inside else text[at:])
    yield plain(piece)


def plain(piece: list[str]) -> str:
    """Return the text of one paragraph on one line, its entities written out."""
    text = html.unescape("".join(piece))
    return " ".join(ENTITY.sub(lambda entity: entity[1] if entity[1].isalpha() else "", text).split())


FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1[^\n]*$", re.M | re.S)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.S)
TEMPLATE = re.compile(
    r"\{\{.*?\}\}|\{%.*?%\}|^:::.*$|^import .*$|^\[[^\]]+\]: .*$|\{[#/][^}]*\}|^> ?\[!.*\]", re.M
)
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
MARK = re.compile(r"^ *(?:[#>*+-]+|\d+[.)]) +|\*\*|__|`|(?<!\w)[*_](?=[^\s*_])|(?<=[^\s*_])[*_](?!\w)", re.M)


def markdown(text: str) -> Iterator[str]:
    """Yield the paragraphs of a Markdown text, without its code, tables, pictures and front matter."""
    text = FENCE.sub("\n", FRONT_MATTER.sub("", text.replace("\r\n", "\n")))
    text = LINK.sub(r"\1", IMAGE.sub("", TEMPLATE.sub("", text)))
    for block in re.split(r"\n\s*\n|\n(?= *(?:[#*+-]|\d+[.)]) )", text):
        lines = [line for line in block.split("\n") if not line.lstrip().startswith("|")]
        if not all(line.startswith(("    ", "\t")) for line in lines if line):
            yield from tags(MARK.sub("", "\n".join(lines)), HTML)


STORY_FOOT = re.compile(r"^\* [A-Z][\w ]*: .*$|^##$", re.M)


def storybook(text: str) -> Iterator[str]:
    """Yield the paragraphs of a story, without its page breaks and the list of its makers."""
    yield from markdown(STORY_FOOT.sub("", text))


def po(text: str) -> Iterator[str]:
    """Yield the translations of a gettext catalogue in its order, without its head and fuzzy ones."""
    for entry in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if "#, fuzzy" in entry or re.search(r'^msgid ""\n(?!")', entry, re.M):
            continue
        for found in re.finditer(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', entry, re.M):
            yield rst(
                json.loads('"' + "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', found[1])) + '"', strict=False)
            )


def rst(text: str) -> str:
    """Return reStructuredText without roles, links and marks."""
    text = re.sub(r":[\w:+-]+:`~?!?([^`<]*?)(?: *<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]*?) *<[^`>]*>`_*", r"\1", text)
    return " ".join(re.sub(r"``?|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|\|(\w+)\|", r"\1", text).split())


def mo(data: bytes) -> Iterator[str]:
    """Yield the translations of a compiled gettext catalogue, without its head."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack(order + "3I", data[8:20])
    for row in range(count):
        if not struct.unpack_from(order + "2I", data, originals + 8 * row)[0]:
            continue  # the head
        size, at = struct.unpack_from(order + "2I", data, translations + 8 * row)
        for form in data[at : at + size].decode().split("\0"):
            yield from tags(form.replace("\n\n", "<p>"), HTML)


def conllu(text: str) -> Iterator[str]:
    """Yield the sentences of a treebank."""
    yield from re.findall(r"^# text = (.*)$", text, re.M)


def speeches(text: str) -> Iterator[str]:
    """Yield what was said, from a table with a column `discurso`, each turn once where rows repeat it."""
    csv.field_size_limit(1 << 24)
    for row in csv.DictReader(io.StringIO(text)):
        yield from re.split(r" (?=(?:O SR|A SRA)\. [A-ZÀ-Ý]{2})", row["discurso"])


def squad(text: str) -> Iterator[str]:
    """Yield the passages of a set of questions, without the questions."""
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            yield " ".join(paragraph["context"].split())


def verses(text: str) -> Iterator[str]:
    """Yield the chapters of a Bible whose lines are `[chapter:verse] text`."""
    chapter: list[str] = []
    now = ""
    for line in text.splitlines():
        found = re.match(r"\[(\d+):\d+\] (.*)", line)
        if chapter and (found is None or found[1] != now):
            yield " ".join(" ".join(chapter).split())
            chapter = []
        if found:
            now = found[1]
            chapter.append(found[2])
    yield " ".join(" ".join(chapter).split())


def lines(text: str) -> Iterator[str]:
    """Yield the paragraphs of a plain text, parted by empty lines."""
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        yield " ".join(block.split())


READ_TEXT: dict[str, Callable[[str], Iterator[str]]] = {
    "html": lambda text: tags(text, HTML),
    "tei": lambda text: tags(text, TEI),
    "docbook": lambda text: tags(text, DOCBOOK),
    "markdown": markdown,
    "storybook": storybook,
    "po": po,
    "conllu": conllu,
    "speeches": speeches,
    "squad": squad,
    "verses": verses,
    "lines": lines,
}
READ_BYTES: dict[str, Callable[[bytes], Iterator[str]]] = {"mo": mo}


def paragraphs(data: bytes, format: str, name: str) -> list[str]:
    """Return the paragraphs of the file `name`, without empty ones; SourceError where it does not read."""
    if format not in READ_TEXT and format not in READ_BYTES:
        raise SourceError(f"format {format!r} is none of {', '.join([*READ_TEXT, *READ_BYTES])}")
    try:
        found = (
            READ_BYTES[format](data) if format in READ_BYTES else READ_TEXT[format](data.decode("utf-8-sig"))
        )
        return [text for text in found if text]
    except (ValueError, KeyError, struct.error) as error:
        raise SourceError(f"{name} does not read as {format}: {error}") from None
