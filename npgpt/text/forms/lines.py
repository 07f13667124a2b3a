"""Texts whose lines say more than the text: subtitles, WhatsApp's exports, Project Gutenberg's books.

Each takes lines and yields those of the text. What they leave out is counted.
"""

import re
from collections.abc import Iterable, Iterator

from npgpt.text.forms.notes import Notes

# ---------------------------------------------------------------------------- subtitles

TIMES = re.compile(r"\s*(\d+:)?\d+:\d+[.,]\d+\s*-->")
TAGS = re.compile(r"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": " ", "&lrm;": "", "&rlm;": ""}


def subtitles(lines: Iterable[str], notes: Notes) -> Iterator[str]:
    """Yield a line for each subtitle of an .srt or .vtt file, one that is said twice in a row once."""
    before, cue, inside = "", list[str](), False
    for line in (*lines, "", "00:00.0 -->"):
        if TIMES.match(line):
            if inside and cue and re.fullmatch(r"\s*\d+\s*", cue[-1]):  # no blank line before a number
                cue.pop()
            said = " ".join(" ".join(cue).split())
            if said and said == before:
                notes.drop("repeated subtitles left out", said)
            elif said:
                yield said + "\n"
                before = said
            cue, inside = [], True
        elif not line.strip():
            inside = False
        elif inside:
            cue.append(_plain(line))


def _plain(line: str) -> str:
    line = TAGS.sub("", line)
    return re.sub("&[a-z]+;", lambda found: ENTITIES.get(found[0], found[0]), line)


# ---------------------------------------------------------------------------- WhatsApp

DATE = r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4},? (?:às )?"
TIME = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[\s\u202f][AaPp]\.?[\s\u00a0]?[Mm]\.?)?"
MESSAGE = re.compile(rf"[\u200e\u202a]*(?:\[{DATE}{TIME}\] |{DATE}{TIME} - )(.*)", re.DOTALL)
FROM = re.compile(r"([^:\n]{1,80}): (.*)", re.DOTALL)
MEDIA = re.compile(
    r"<(Mídia oculta|Media omitted|Arquivo de mídia oculto|anexado: .*|attached: .*)>|"
    r"(imagem|vídeo|áudio|figurinha|documento|GIF|Cartão do contato) (ocultad[oa]|omitid[oa])|"
    r"(image|video|audio|sticker|document|GIF|Contact card) omitted|"
    r".*\((arquivo anexado|file attached)\)|.* • \d+ (páginas?|pages?) (documento ocultado|document omitted)"
)
DELETED = re.compile(
    r"(Mensagem apagada|Essa mensagem foi apagada|Esta mensagem foi apagada|Você apagou esta mensagem|"
    r"This message was deleted|You deleted this message)\.?"
)
EDITED = re.compile(r"\s*<(Mensagem editada|This message was edited)>\s*\Z")
INVISIBLE = re.compile("[\u200e\u200f\u202a-\u202e]")


def is_whatsapp(head: str) -> bool:
    """Return True where a text begins as WhatsApp exports chats: half of its first lines are messages."""
    lines = [line for line in INVISIBLE.sub("", head).splitlines() if line.strip()][:50]
    found = [bool(MESSAGE.match(line)) for line in lines]
    return sum(found) >= 2 and found[0] and sum(found) * 2 >= len(found)


def whatsapp(lines: Iterable[str], notes: Notes) -> Iterator[str]:
    """Yield the messages of an export as `Name: message`, without dates; one of several lines as it is."""
    held = ""
    for line in lines:
        if found := MESSAGE.match(line):
            yield from _message(held, notes)
            held = found[1]
        else:
            held += line
    yield from _message(held, notes)


def _message(held: str, notes: Notes) -> Iterator[str]:
    found = FROM.fullmatch(held)
    notice = not found or found[2].startswith("\u200e")  # which an iPhone marks
    held = EDITED.sub("", INVISIBLE.sub("", held))
    found = FROM.fullmatch(held)
    text = found[2].strip() if found else ""
    if not held.strip():
        return
    if MEDIA.fullmatch(text):
        notes.drop("media left out", text)
    elif notice or not found:
        notes.drop("notices left out", held.strip())
    elif DELETED.fullmatch(text):
        notes.drop("deleted messages left out", text)
    elif text:
        yield f"{found[1].strip()}: {text}\n"


# ---------------------------------------------------------------------------- Project Gutenberg

BEGINS = re.compile(
    r"\s*\*\*\* ?START OF (THE|THIS) PROJECT GUTENBERG EBOOK\b.*|\s*\*END\*? ?THE SMALL PRINT!.*"
)
ENDS = re.compile(
    r"\s*\*\*\* ?END OF (THE|THIS) PROJECT GUTENBERG EBOOK\b.*|\s*End of (the )?Project Gutenberg.*"
)


def is_gutenberg(head: str) -> bool:
    """Return True where a text begins with Project Gutenberg's licence."""
    return any(BEGINS.fullmatch(line) for line in head.splitlines())


def gutenberg(lines: Iterable[str], notes: Notes) -> Iterator[str]:
    """Yield the book between Project Gutenberg's licence at both ends."""
    inside = False
    for line in lines:
        if not inside:
            inside = bool(BEGINS.fullmatch(line.rstrip("\r\n")))
            notes.drop("lines of licence left out")
        elif ENDS.fullmatch(line.rstrip("\r\n")):
            inside = False
            notes.drop("lines of licence left out")
        else:
            yield line
