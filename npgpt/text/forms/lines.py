"""Texts whose lines say more than the text: subtitles, WhatsApp's exports, Project Gutenberg's books.

Each takes lines and yields what of them is text. What they leave out is counted.
"""

import re
from collections.abc import Iterable, Iterator
from html import unescape
from typing import NamedTuple

from npgpt.text.forms.notes import Notes


class Message(NamedTuple):
    """What one person says at once: a message of a chat, or a subtitle."""

    line: int  # of the file, from 1, at which it begins
    name: str  # of who says it; "" in subtitles
    text: str
    when: str  # as the file says it


# ---------------------------------------------------------------------------- subtitles

TIMES = re.compile(r"\s*(?:\d+:){1,2}\d+(?:[.,:]\d+)?\s*-{1,2}>\s*\d+:")
TAGS = re.compile(r"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}|\{/?[biu]\}")
PARTLY = re.compile(
    r"<\d\d:[\d:.]+>|\A[ \t]+\r?\n?\Z"
)  # in subtitles whose lines stay while the next are said
ENTITY = re.compile(r"&(?:[a-z]+|#\d+);")


def subtitles(lines: Iterable[str], notes: Notes) -> Iterator[Message]:
    """Yield the subtitles of an .srt or .vtt file with their lines, one that is said twice in a row once.

    A blank line ends a subtitle of .vtt. Those of .srt may have some inside, and end where the next begins.
    """
    is_vtt = inside = rolling = numbered = False
    before, cue = list[str](), list[str]()
    place, when = 1, ""
    for number, line in enumerate(lines, 1):
        is_vtt = is_vtt or (number == 1 and line.startswith("WEBVTT"))
        if TIMES.match(line):
            ended = bool(cue) and re.fullmatch(r"\s*\d+\s*", cue[-1]) is not None
            if not inside:
                numbered = ended
            if ended and (numbered or is_vtt):
                cue.pop()
            if inside:
                yield from _said(place, when, cue, before, rolling, notes)
            cue, inside, place, when = [], True, number + 1, line
        elif is_vtt and not line.strip("\r\n"):
            if inside and cue:
                yield from _said(place, when, cue, before, rolling, notes)
            cue, inside = [], False
        elif inside or not is_vtt:
            rolling = rolling or (inside and bool(PARTLY.search(line)))
            cue += [said] if (said := _plain(line)) else []
    if inside:
        yield from _said(place, when, cue, before, rolling, notes)


def _said(
    place: int, when: str, cue: list[str], before: list[str], rolling: bool, notes: Notes
) -> Iterator[Message]:
    """Yield a subtitle, and put it in the place of the one before."""
    if not cue:
        return
    whole = " ".join(cue)
    again = rolling and cue[:1] == before[-1:]
    new = cue[1:] if again else [] if cue == before else cue
    before[:] = cue
    if new:
        yield Message(place + again, "", "\n".join(new), when)
    else:
        notes.drop("repeated subtitles left out", whole)


def _plain(line: str) -> str:
    found = ENTITY.sub(lambda entity: unescape(entity[0]).strip("\u200e\u200f"), TAGS.sub("", line))
    return " ".join(found.split())


# ---------------------------------------------------------------------------- WhatsApp

DATE = r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4},? (?:às |à |at |um )?"
TIME = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[\s\u202f][AaPp]\.?[\s\u00a0]?[Mm]\.?)?"
MESSAGE = re.compile(
    rf"[\u200e\u202a]*(?:\[({DATE}{TIME})\] |({DATE}{TIME}) [-\u2013] )(.*)", re.DOTALL
)  # when, when, and what
FROM = re.compile(r"([^:\n]{1,80}): (.*)", re.DOTALL)
# in Portuguese of Brazil and Portugal, English, Spanish, German, French and Italian
ATTACHED = r"<(?:anexado|anexo|attached|adjunto|Anhang|pièce jointe|allegato)\s?: [^<>]*>"
MEDIA = re.compile(
    r"<(?:Mídia (?:oculta|omitida)|Arquivo de mídia oculto|Ficheiro não revelado|Ficheiro multimédia omitido|"
    r"Media omitted|Multimedia omitido|Archivo omitido|Medien (?:ausgeschlossen|weggelassen)|Médias omis|"
    rf"Media omessi|View once (?:voice )?message omitted)>|{ATTACHED}|null|"  # null: what was seen once
    r"(?:.* • .*)?(?:imagem|vídeo|áudio|figurinha|documento|GIF|Cartão d[oe] contacto?) "
    r"(?:ocultad[oa]|omitid[oa]|não revelad[oa])|"
    r"(?:.* • .*)?(?:image|video|audio|sticker|document|GIF|Contact card) omitted|"
    r"(?:.* • .*)?(?:imagen|video|audio|sticker|tarjeta de contacto) omitid[oa]|"
    r"(?:.* • .*)?(?:Bild|Video|Audio|Sticker|Dokument|GIF|Kontaktkarte) weggelassen|"
    r"(?:.* • .*)?(?:image|vidéo|audio|sticker|document|GIF|fiche contact) absente?|"
    r"(?:.* • .*)?(?:immagine|video|audio|sticker|documento|GIF|scheda contatto) omess[oa]|"
    r".*\((?:arquivo anexado|ficheiro anexado|file attached|archivo adjunto|Datei angehängt|fichier joint|"
    r"file allegato)\)",
    re.IGNORECASE,
)
LONGEST = 500  # characters of a line about media
CAPTION = re.compile(rf"{ATTACHED}\Z")  # of an iPhone's picture: before it
DELETED = re.compile(
    r"(?:Mensagem apagada|Essa mensagem foi apagada|Esta mensagem foi (?:apagada|eliminada)|"
    r"Você apagou esta mensagem|(?:Apagou|Eliminou) esta mensagem|"
    r"This message was deleted|You deleted this message|"
    r"Se eliminó este mensaje|Este mensaje fue eliminado|Eliminaste este mensaje|"
    r"Diese Nachricht wurde gelöscht|Du hast diese Nachricht gelöscht|"
    r"Ce message a été supprimé|Vous avez supprimé ce message|"
    r"Questo messaggio è stato eliminato|Hai eliminato questo messaggio)\.?"
)
EDITED = re.compile(
    r"<(?:Mensagem editada|Esta mensagem foi editada|This message was edited|Se editó este mensaje|"
    r"Diese Nachricht wurde bearbeitet|Ce message a été modifié|Questo messaggio è stato modificato)\.?>\s*\Z"
)
INVISIBLE = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
QUOTES = re.compile('["“”„«»]')
UNKNOWN = "~\u202f\xa0 "  # before the name that a person who is in no address book gave
MENTIONED = re.compile("@\u2068([^\u2068\u2069\n]{1,80})\u2069")


def is_whatsapp(head: str) -> bool:
    """Return True where a text begins as WhatsApp exports chats: half of its first lines are messages."""
    lines = [line for line in INVISIBLE.sub("", head).splitlines() if line.strip()][:50]
    found = [bool(MESSAGE.match(line)) for line in lines]
    return sum(found) >= 2 and found[0] and sum(found) * 2 >= len(found)


def whatsapp(lines: Iterable[str], notes: Notes) -> Iterator[Message]:
    """Yield the messages of an export; one of several lines as it is. The names are noted."""
    held, place, when = "", 1, ""
    for number, line in enumerate(lines, 1):
        if found := MESSAGE.match(line):
            yield from _message(place, held, when, notes)
            held, place, when = found[3], number, found[1] or found[2]
        else:
            held += line
    yield from _message(place, held, when, notes)


def _message(place: int, held: str, when: str, notes: Notes) -> Iterator[Message]:
    notes.names.update(dict.fromkeys(MENTIONED.findall(held)))
    found = FROM.fullmatch(held)
    notice = not found or found[2].startswith("\u200e")  # which an iPhone marks
    held = EDITED.sub("", INVISIBLE.sub("", held))
    found = FROM.fullmatch(held)
    if found and len(QUOTES.findall(found[1])) % 2:  # the name of a group, with a colon in it
        found = None
    text = found[2].strip() if found else ""
    first, _end, caption = text.partition("\n")
    if not held.strip():
        return
    if len(first) < LONGEST and MEDIA.fullmatch(first.strip()):
        notes.drop("media left out", first.strip())
        text, place = caption.strip(), place + 1
    elif notice or not found:
        notes.drop("notices left out", held.strip())
        return
    elif DELETED.fullmatch(text):
        notes.drop("deleted messages left out", text)
        return
    elif attached := CAPTION.search(text):
        notes.drop("media left out", attached[0])
        text = text[: attached.start()].rstrip()
    if text and found:
        name = found[1].strip(UNKNOWN) or found[1]
        notes.names[name] = None
        yield Message(place, name, text, when)


# ---------------------------------------------------------------------------- Project Gutenberg

BOOK = r"PROJECT GUTENBERG E(?:BOOK|TEXT)\b.*"
BEGINS = re.compile(rf"\s*\*\*\* ?START OF (?:THE|THIS) {BOOK}|\s*\*END\*? ?THE SMALL PRINT!.*")
ENDS = re.compile(rf"\s*\*\*\* ?END OF (?:THE|THIS) {BOOK}|\s*End of (?i:the |this )?Project Gutenberg.*")


def is_gutenberg(head: str) -> bool:
    """Return True where a text begins with Project Gutenberg's licence."""
    return any(BEGINS.fullmatch(line) for line in head.splitlines())


def gutenberg(lines: Iterable[str], notes: Notes) -> Iterator[str]:
    """Yield the book between Project Gutenberg's licence at both ends."""
    inside = title = False  # title: one of several lines, which ends with stars
    for line in lines:
        content = line.strip()
        if title or not inside:
            begins = BEGINS.fullmatch(content)
            title = bool(content) and (title or bool(begins)) and not content.endswith("*")
            inside = inside or bool(begins)
            notes.drop("lines of licence left out")
        elif ENDS.fullmatch(content):
            inside = False
            notes.drop("lines of licence left out")
        else:
            yield line
