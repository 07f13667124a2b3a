"""From paragraphs to clean Portuguese ones: characters, broken lines, language, private data."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

UNSEEN = re.compile(
    r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffc]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"
)
LETTERS = re.compile(r"[^\W\d_]+")
DASHES = re.compile(r"(?:^|(?<= ))--(?= |[A-ZÀ-Ý«“\"])")
SPEECH = re.compile(r"(?:-{1,2}|[–—]) ?[«“\"]?[A-ZÀ-Ý]")  # a turn of a dialogue may be one short word
DIGIT_OR_AT = re.compile(r"[\d@]")
MOJIBAKE = re.compile(r"Ã[\u0080-\u00bf£©ªµ¡§³º]|â€|\ufffd")
BREAK = re.compile(r"(?<=[a-zà-ÿ])[-¬] (?=[a-zà-ÿ])")

# What may be private: the paragraph that holds it is left out.
PRIVATE = {
    "e-mail": re.compile(r"[\w.+-]+@[\w-]+\.\w"),
    "account": re.compile(r"(?<![\w/@.])@\w{3,}"),
    "CPF or CNPJ": re.compile(
        r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b|\b\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}\b|\bCPF\D{0,6}\d{11}\b"
    ),
    "telephone": re.compile(
        r"(?:\+|\b00)(?:55|351|244|258)[ .-]?\d|\(\d{2,3}\) ?9?\d{4}[ .-]?\d{4}\b"
        r"|(?<![\d.,-])(?!1\d{3}-|20\d\d-)9?\d{4}-\d{4}(?![\d-])"
        r"|(?i:\b(?:tel|telefone|telemóvel|celular|fax|whatsapp)\b)[^\d]{0,12}\d[\d .-]{6,}"
    ),
    "card": re.compile(r"\b\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}\b"),
    "postcode": re.compile(r"\b\d{5}-\d{3}\b|\bC\.?P\.? ?\d{4}-\d{3}\b"),
}

# Frequent words that tell the language; a word of two languages counts for both.
WORDS = {
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu "
    "sua ou quando muito nos já eu também só pelo pela até isso ela entre depois sem mesmo aos seus "
    "quem nas me esse eles você essa num nem suas meu às minha numa pelos qual lhe são é foi há está "
    "isto sobre pode ser ter",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ya "
    "este sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos "
    "durante uno ni contra ese",
    "en": "the of and to in a is that for it as was with be by on not he this are or his from at which but "
    "have an had they you were their one all we can her has there been if more when will would who "
    "so no your use",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont "
    "avec nous ou mais vous cette son ses aux être c'est je elle comme leur même",
    "it": "di e il la che in un a per è una del si non sono con i le al da come nel più della anche ma gli "
    "alla questo lo se dei ha o mi io",
    "la": "et in est non ad cum ut qui quod sed si ex de esse aut quae enim per etiam ab hoc nec sunt quam",
}
KNOWN: dict[str, tuple[str, ...]] = {}
for known_language, known_words in WORDS.items():
    for known_word in set(known_words.split()):
        KNOWN[known_word] = (*KNOWN.get(known_word, ()), known_language)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
LONGEST = 40  # letters of a word: more is no word
ENOUGH = 400  # characters of a paragraph that tell its language
SHORTEST = 4  # words: a shorter paragraph tells no language
CLEAR = 2  # words by which another language must be ahead of Portuguese
WHOLE = 0.9  # of the paragraphs that tell: then a document is Portuguese, and so are those that do not tell


def tidy(text: str) -> str:
    """Return a paragraph in NFC on one line, with one kind of dash, without characters that nobody sees."""
    text = " ".join(UNSEEN.sub("", unicodedata.normalize("NFC", text)).split())
    return DASHES.sub("—", text) if "--" in text else text


def unwrap(paragraphs: Iterable[str]) -> Iterator[str]:
    """Yield paragraphs, joined where one stops in a sentence and the next goes on in small letters."""
    before = ""
    for text in paragraphs:
        if before and text[:1].islower() and (before[-1].isalnum() or before[-1] in ",-¬"):
            before = BREAK.sub("", f"{before} {text}") if before[-1] in "-¬" else f"{before} {text}"
            continue
        if before:
            yield before
        before = text
    if before:
        yield before


def is_prose(text: str) -> bool:
    """Return True for words in sentences: not code, numbers, menus of symbols or broken encodings."""
    runs = [*map(len, LETTERS.findall(text))]
    letters, longest = sum(runs), max(runs, default=0)
    spoken = SPEECH.match(text) is not None and letters > 1
    written = " " in text and letters >= 0.6 * len(text.replace(" ", ""))
    return (spoken or written) and longest <= LONGEST and not MOJIBAKE.search(text)


def private(text: str) -> str:
    """Return the kind of private data that a paragraph seems to hold, or an empty text."""
    if not DIGIT_OR_AT.search(text):
        return ""
    return next((kind for kind, pattern in PRIVATE.items() if pattern.search(text)), "")


def language(text: str) -> str:
    """Return the language whose frequent words fill most of a paragraph; "" where too few words tell."""
    words = WORD.findall(text[:ENOUGH].lower())
    if len(words) < SHORTEST:
        return ""
    counts = dict.fromkeys(WORDS, 0)
    for word in words:
        for name in KNOWN.get(word, ()):
            counts[name] += 1
    best = max(counts, key=lambda name: counts[name])
    if counts[best] < counts["pt"] + CLEAR:
        best = "pt"
    return best if counts[best] >= 0.12 * len(words) else ""


def portuguese(paragraphs: list[str], dropped: Counter[str]) -> list[str]:
    """Return the paragraphs in Portuguese. Those that tell no language go with a document that is whole."""
    told = [language(text) for text in paragraphs]
    wanted = {"pt", ""} if told.count("pt") >= max(1, WHOLE * sum(map(bool, told))) else {"pt"}
    kept = [text for text, name in zip(paragraphs, told, strict=True) if name in wanted]
    dropped["language"] += len(paragraphs) - len(kept)
    return kept


def clean(paragraphs: Iterable[str], dropped: Counter[str]) -> list[str]:
    """Return clean Portuguese paragraphs. `dropped` counts what was left out, by reason."""
    kept = []
    for text in unwrap(filter(None, map(tidy, paragraphs))):
        if not is_prose(text):
            dropped["not prose"] += 1
        elif kind := private(text):
            dropped[f"private: {kind}"] += 1
        else:
            kept.append(text)
    return portuguese(kept, dropped)
