"""Which form a file has, and its text in UTF-8, document by document.

The form is told by the ending of the name and the beginning of the file. What needs no change is not copied:
plain text in UTF-8 stays the file's own bytes.
"""

import io
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import IO, NamedTuple, TypeAlias

from npgpt.text import kinds
from npgpt.text.forms import conversations, encodings, lines, markup, tables
from npgpt.text.forms.lines import Message
from npgpt.text.forms.notes import Notes
from npgpt.text.forms.packed import Held, hold, open_blocks

END_OF_TEXT = "<|endoftext|>"
SEPARATOR = b"\xff"  # between the documents of a file: UTF-8 never has it
BLOCK = 1 << 20  # characters
Piece: TypeAlias = tuple[int, str] | None  # (line or page where it begins, text); None ends a document


class How(NamedTuple):
    """How files are read."""

    encoding: str = "auto"  # or one that Python knows
    field: str | None = None  # the field or column that holds the text of records
    skip_bad: bool = False  # bad records are left out instead of refused
    as_chat: bool = False  # the documents are conversations, each the JSON of [[role, text], ...]
    me: str | None = None  # the assistant's name there


class Places:
    """Where lines of a text that was made of a file are in that file."""

    def __init__(self, unit: str) -> None:
        """`unit` is what `of` counts: "line", or another of Notes.unit."""
        self.unit = unit
        self._lines, self._places = array("q", [1]), array("q", [1])
        self._next = 1

    def add(self, place: int, text: str) -> None:
        """Note that the next text was made of what is at this place."""
        self._lines.append(self._next)
        self._places.append(place)
        self._next += text.count("\n")

    def of(self, line: int) -> int:
        """Return the place of a line of the text, both from 1."""
        n = bisect_right(self._lines, line) - 1
        return self._places[n] + (line - self._lines[n] if self.unit == "line" else 0)


class Said(NamedTuple):
    """What a file says, in UTF-8."""

    held: Held  # the documents, with SEPARATOR between them
    starts: "array[int]"  # the line of the file at which each begins, from 1
    inner: bool  # the lines inside a document are those of the file
    notes: Notes
    places: Places | None  # of its lines, where it is one document that was made of the file


class Source(NamedTuple):
    """A file that was read and looked at."""

    name: str
    blocks: Callable[[], Iterator[bytes]]
    is_utf8: bool
    likely: str | None  # its likely encoding, as kinds.py says it


# ---------------------------------------------------------------------------- forms

ENDINGS = {
    ".txt": "text", ".md": "text", ".markdown": "text", ".text": "text",
    ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON",
    ".csv": "comma-separated values", ".tsv": "tab-separated values",
    ".html": "HTML", ".htm": "HTML", ".xhtml": "HTML",
    ".docx": "a Word document", ".pdf": "a PDF", ".srt": "subtitles", ".vtt": "subtitles",
}  # fmt: skip
ABOUT = ("readme", "license", "licence", "copying", ".")
SENT = re.compile(r"000\d{5}-|.*-wa\d{4}\.")  # as WhatsApp calls files that were sent
BINARY = ("a Word document", "a PDF")  # of kinds.KINDS
CHATS = ("WhatsApp", "subtitles")  # the forms that tell who speaks, or in turn
UNITS = {  # what is counted in a file to say where its text is, which is not as it stands there
    "WhatsApp": "line", "subtitles": "line", "HTML": "line", "a Word document": "paragraph", "a PDF": "page",
}  # fmt: skip


def form_of(name: str, head: bytes) -> str:
    """Return the form of a file, one of ENDINGS' values; text where nothing else is known."""
    for kind, pattern, _command in kinds.KINDS:
        if kind in BINARY and re.match(pattern, head, re.DOTALL):
            return kind
    return ENDINGS.get(PurePath(name).suffix.lower(), "text")


def is_known(name: str) -> bool:
    """Return True for a file that is read where its folder or archive was named.

    None about the others, and none that was sent in a chat.
    """
    path = PurePath(name.lower())
    return path.suffix in ENDINGS and not path.name.startswith(ABOUT) and not SENT.match(path.name)


def said(source: Source, how: How, free: int) -> Said | None:
    """Return the text of a file, in memory up to `free` bytes; None where its own bytes are the text.

    ValueError where it is damaged, has no text, or where its encoding is not sure.
    """
    head = next(source.blocks(), b"")[: kinds.HEAD]
    notes = Notes(form_of(source.name, head))
    notes.unit = UNITS.get(notes.form, notes.unit)
    if notes.form in BINARY:
        _check_chat(source, how, notes)
        pieces = _of_binary(source, notes)
    else:
        codec = _codec(source, how, notes, head)
        if codec is None:
            _check_chat(source, how, notes)
            return None
        codec = "utf-8-sig" if codec == "utf-8" else codec
        pieces_of = _reader(source, how, notes, head.decode(codec, "ignore"))
        _check_chat(source, how, notes)
        if pieces_of is None and codec == "utf-8-sig":
            return None
        decoded = io.TextIOWrapper(open_blocks(source.blocks()), encoding=codec, newline="")
        pieces = (pieces_of or _plain)(decoded)
    starts: array[int] = array("q")
    places = Places(notes.unit) if notes.form in UNITS and not how.as_chat else None
    try:
        held = hold(_separated(pieces, starts, places), free)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source.name}: is not {error.encoding}: {error.reason}") from None
    if not held.size:
        raise ValueError(f"{source.name}: must hold text; as {notes.form} it has none")
    notes.documents = len(starts)
    return Said(held, starts, notes.form in ("text", "Project Gutenberg"), notes, places)


def _check_chat(source: Source, how: How, notes: Notes) -> None:
    if how.as_chat and notes.form not in CHATS:
        raise ValueError(
            f"{source.name}: must be a WhatsApp export or subtitles to become a chat, got {notes.form}"
        )


def _of_binary(source: Source, notes: Notes) -> Iterator[Piece]:
    with open_blocks(source.blocks()) as blocks:
        file = io.BytesIO(blocks.read())  # it is read from its end
    if notes.form == "a PDF":
        return markup.pdf(source.name, file, notes, kinds.PICTURE.format(file="PAGE.png", stem="PAGE"))
    return markup.word(source.name, file)


def _codec(source: Source, how: How, notes: Notes, head: bytes) -> str | None:
    """Return the codec of a text; None where it is damaged UTF-8, which is kept as it is."""
    if how.encoding != "auto":
        notes.encoding = how.encoding
    elif source.is_utf8:
        pass
    elif source.likely and source.likely.startswith(("UTF-16", "UTF-32")):
        notes.encoding = source.likely.lower().replace("le", "-le").replace("be", "-be")
    elif named := markup.charset(head) if notes.form == "HTML" else None:
        notes.encoding = named
    elif source.likely == "UTF-8":
        if notes.form == "text":
            return None
        raise ValueError(f"{source.name}: is {kinds.conversion(source.name, source.likely)}")
    else:
        guess = encodings.guess(source.blocks())
        if not guess.sure:
            choice = "".join(f"{name}, " for name in guess.candidates[:4])
            raise ValueError(
                f"{source.name}: is not UTF-8, and its encoding is not sure; give --encoding {choice}"
                "or bytes, which takes it as it is"
            )
        notes.encoding = guess.sure
    return notes.encoding


def _reader(source: Source, how: How, notes: Notes, head: str) -> Callable[[IO[str]], Iterator[Piece]] | None:
    """Return what makes pieces of a decoded file; None for plain text."""
    field = tables.Field(source.name, how.field, how.skip_bad, notes)
    match notes.form:
        case "JSON lines":
            return lambda file: _records(tables.json_lines(file, field))
        case "JSON":
            return lambda file: _records(tables.json_file(source.name, file, field))
        case "comma-separated values":
            return lambda file: _records(tables.separated(source.name, file, field, None))
        case "tab-separated values":
            return lambda file: _records(tables.separated(source.name, file, field, "\t"))
        case "HTML":
            return lambda file: markup.html(file.read())
        case "subtitles":
            if how.as_chat:
                return lambda file: _conversations(conversations.of_subtitles(lines.subtitles(file, notes)))
            return lambda file: _messages(lines.subtitles(file, notes))
    if lines.is_whatsapp(head[:20000]):
        notes.form = "WhatsApp"
        if how.as_chat:
            return lambda file: _conversations(
                conversations.of_chat(source.name, lines.whatsapp(file, notes), how.me)
            )
        return lambda file: _messages(lines.whatsapp(file, notes))
    if lines.is_gutenberg(head):
        notes.form = "Project Gutenberg"
        return lambda file: _book(file, notes)
    if any(END_OF_TEXT.encode() in block for block in source.blocks()):
        return _parted
    return None


def _messages(messages: Iterable[Message]) -> Iterator[Piece]:
    """Yield each message behind its name, and each subtitle on a line."""
    for message in messages:
        text = f"{message.name}: {message.text}" if message.name else message.text.replace("\n", " ")
        yield message.line, f"{text}\n"


def _conversations(found: Iterable[tuple[int, list[conversations.Turn]]]) -> Iterator[Piece]:
    for line, turns in found:
        yield line, json.dumps(turns, ensure_ascii=False, allow_nan=False)
        yield None


def _plain(file: IO[str]) -> Iterator[Piece]:
    while text := file.read(BLOCK):
        yield 1, text


def _records(records: Iterable[tuple[int, str]]) -> Iterator[Piece]:
    for record in records:
        yield record
        yield None


def _book(file: IO[str], notes: Notes) -> Iterator[Piece]:
    for line in lines.gutenberg(file, notes):
        yield 1 + notes.dropped.total(), line


def _parted(file: IO[str]) -> Iterator[Piece]:
    """Yield the lines of a text whose documents are parted by lines that say <|endoftext|>."""
    for number, line in enumerate(file, 1):
        yield None if line.strip() == END_OF_TEXT else (number, line)


def _separated(
    pieces: Iterable[Piece], starts: "array[int]", places: Places | None = None
) -> Iterator[bytes]:
    """Yield the pieces as bytes, with SEPARATOR between documents; those that are blank are left out.

    `places` is for pieces of one document.
    """
    part, size, begin, blank = list[str](), 0, 0, True  # begin is -1 behind the first part of a document
    for piece in pieces:
        if piece is None:
            if not blank:
                yield _part(part, begin, starts)
            part, size, begin, blank = [], 0, 0, True
            continue
        line, text = piece
        if places:
            places.add(line, text)
        begin, blank = begin or line, blank and not text.strip()
        part.append(text)
        size += len(text)
        if size > BLOCK and not blank:
            yield _part(part, begin, starts)
            part, size, begin = [], 0, -1
    if not blank:
        yield _part(part, begin, starts)


def _part(texts: list[str], begin: int, starts: "array[int]") -> bytes:
    """Return the first part of a document as bytes, or its next one where begin is -1."""
    text = "".join(texts).encode("utf-8", "replace")  # lone surrogates, which JSON can write
    if begin < 0:
        return text
    starts.append(begin)
    return SEPARATOR * (len(starts) > 1) + text
