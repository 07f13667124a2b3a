"""Names of a chat's people and numbers that lead to a person, replaced by stand-ins such as [person 1].

The same name or number has the same stand-in everywhere. Two spellings of a name (Joao, JOÃO) are one, and so
are those of a number. What is found:

- the names by which a chat's messages are signed or a person is called with @: whole in any case, and so is
  the first word; further words only where they have a capital. WORDS, which are no names too, need one as
  well. RELATIONS tell no name, and are replaced only where they sign a message.
- numbers by their form: e-mail addresses, links but for bare sites, CPF, CNPJ, telephones as they are written
  in Brazil, Portugal, France and the United States or behind +, and digits in groups of seven or more.

Prices, dates, years, times and numbers with points or commas between thousands or before decimals stay.
Nothing else is found: nicknames, people who are only talked about, addresses, places, birthdays, how someone
writes. So it takes out what shows by its form, and does not make a text anonymous in the sense of the law.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

RELATIONS = set(
    "mae mamae mainha pai papai painho vo vovo avo tia tio primo prima irmao irma filho filha sogra sogro "
    "esposa marido amor amiga amigo chefe professor professora prof doutor doutora dr dra sr sra seu dona "
    "trabalho casa escola faculdade igreja predio grupo de da do das dos e di del van von la le "
    "mom mum mommy dad daddy father mother granny grandma grandpa aunt uncle brother sister cousin son "
    "daughter wife husband love boss teacher doctor mr mrs ms miss work home office school group the of and"
    "".split()
)
WORDS = set(
    "rosa clara linda luz sol lua mel paz vitoria gloria bela flor estrela aurora mar pilar franco justo "
    "leal severo salvador domingos dias santos branca celeste serena margarida violeta iris jasmim cristal "
    "will may mark bill rose hope grace joy art sue pat frank rich drew chase grant guy ivy ruby amber "
    "crystal summer autumn dawn faith april june august dean earl miles rob jack jay ray gene lily ginger"
    "".split()
)
SHORTEST = 3  # letters of a word that is replaced without a capital, or as a part of a name
SHORTEST_NUMBER = 7  # digits; a name with as many is a telephone
MARKS = "[\u0300-\u036f]"  # combining, behind a letter

# ---------------------------------------------------------------------------- numbers

SITES = "com|net|org|br|pt|io|me|gov|edu|app|us|uk|ly|gl|co|be|info|dev|fr|es|de|it|gg|tv|cc"
REST = r"[^\s<>\"]*[^\s<>\"'“”.,;:!?)\]…]"
CURRENCY = r"(?:R\$|US\$|[$€£¥])"
MONEY = (
    r"(?:reais|real|contos?|pilas?|euros?|d[óo]lar(?:es)?|dollars?|bucks|pounds?|libras?|BRL|USD|EUR|€|£|\$)"
)
AMOUNT = r"(?:\d{1,3}(?:[.,]\d{3})+|\d{1,8})(?:[.,]\d{1,2})?(?!\d)"
RANGE = rf"{AMOUNT}(?:[ ]?(?:[-\u2013]|a|to)[ ]?{AMOUNT})?"
DAY = r"(?:0?[1-9]|[12]\d|3[01])"
GAP = r"[ .\-\u2011\u2013\u00a0]"
AREA = r"(?:\(0?[1-9][1-9]\)|0?[1-9][1-9])"
PHONES = (
    r"(?:\(\+[1-9]\d{0,2}\)|(?:\+|\b00)[1-9])(?:[ ().\-\u2011\u2013\u00a0]{0,3}\d){7,14}",
    rf"{AREA}{GAP}{{0,2}}9{GAP}?\d{{4}}{GAP}?\d{{4}}",  # Brazil, a mobile one
    rf"(?:\(0?[1-9][1-9]\){GAP}{{0,2}}|0?[1-9][1-9]{GAP}{{0,2}}(?=\d{{4}}{GAP}))[2-8]\d{{3}}{GAP}?\d{{4}}",
    rf"9{GAP}?\d{{4}}{GAP}\d{{4}}",
    r"(?P<short>[2-9]\d{3}[\-\u2011]\d{4})",
    r"(?:9[1236]\d|2[1-9]\d)[ ]\d{3}[ ]\d{3}",  # Portugal
    r"0\d(?:[ .]\d{2}){4}",  # France
    rf"(?:1{GAP})?(?:\(\d{{3}}\)[ ]?|\d{{3}}[\-\u2011.])\d{{3}}[\-\u2011.]\d{{4}}",  # the United States
    r"0[3589]00[ \-]?\d{3}[ \-]?\d{4}",
)
OTHERS = (
    r"\d{4}(?:[ .\-]\d{4}){2,4}",  # a card
    r"\d{1,2}\.\d{3}\.\d{3}-[\dXx]",  # an identity card of Brazil
    r"\d{2}\.?\d{3}-\d{3}",  # a postal code
    r"\d{5,}-[\dXx](?!\w)",  # an account
)
WORDED = {  # in the order in which they are tried, where no word goes on
    "email": r"(?<![\w.+%\-])[\w.+%\-]+@[\w\-]+(?:\.[\w\-]+)+",
    "link": rf"(?:https?://|www\.){REST}|(?<![@.\-])(?:[\w\-]+\.)+(?:{SITES})/{REST}",
    "CNPJ": r"[0-9A-Z]{2}\.[0-9A-Z]{3}\.[0-9A-Z]{3}/[0-9A-Z]{4}-\d{2}(?!\d)",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?!\w)",
}
FIGURES = {
    "price": rf"{CURRENCY}[ \u00a0]?{RANGE}|(?<!\d)(?<!\d[.,\-]){RANGE}[ ]?{MONEY}(?!\w)",
    "date": rf"(?<!\d)(?:{DAY}[/.\-]{DAY}[/.\-](?:\d{{4}}|\d\d)|\d{{4}}[/.\-]{DAY}[/.\-]{DAY})(?![/.\-]?\d)",
    "CPF": r"(?<!\d)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)|(?<!\d)\d{9}-\d{2}(?!\d)",
    "phone": rf"(?<!\d)(?:{'|'.join(PHONES)})(?!\d)",
    "other": rf"(?<![\w])(?:{'|'.join(OTHERS)})(?!\d)",
    "plain": r"(?<!\d)(?:\d{1,3}(?:[.,]\d{3})+(?:[.,]\d+)?|\d{1,6}[.,]\d+)(?!\d)",
    "number": r"\d{7,}",
}
FORMS = WORDED | FIGURES


def _alternatives(forms: dict[str, str]) -> str:
    return "|".join(f"(?P<{name}>{form})" for name, form in forms.items())


NUMBER = re.compile(  # the first characters are looked at first, as most are of no use
    rf"(?<!\w)(?=[\w.+%\-])(?:{_alternatives(WORDED)})|(?=[\d(+RU$€£¥])(?:{_alternatives(FIGURES)})",
    re.IGNORECASE,
)
MAY_HAVE = re.compile(r"\d\d|[@/]|www\.", re.IGNORECASE)  # what each of these has, and few lines
STAY = ("price", "date", "plain")
KINDS = {  # kind: how it is counted
    "person": "names",
    "phone": "telephones",
    "email": "e-mail addresses",
    "link": "links",
    "CPF": "CPF",
    "CNPJ": "CNPJ",
    "number": "other numbers",
}


class Anonymiser:
    """Replaces names and numbers in texts, and counts them by kind in `replaced`."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are those of the people of chats."""
        self.replaced: Counter[str] = Counter()
        self._given: dict[tuple[str, str], str] = {}  # (kind, what is one) -> stand-in
        self._people: dict[str, str] = {}  # a spelling of a name, folded -> the name that it stands for
        self._signs: set[str] = set()  # spellings that are replaced only before a message, or behind @
        self._capitals: set[str] = set()  # spellings that need a capital
        self._learn(names)
        self._names = _any_of(self._people)

    def _learn(self, names: Iterable[str]) -> None:
        known = filter(None, dict.fromkeys(map(_spelt, names)))
        wholes = [whole for whole in known if sum(map(str.isdigit, whole)) < SHORTEST_NUMBER]
        shared = Counter(word for whole in wholes for word in set(_words(whole)))
        for whole in wholes:
            words = _words(whole)
            self._people[whole] = whole
            if all(word in RELATIONS for word in words):
                self._signs.add(whole)
            elif len(words) == 1 and (len(words[0]) < SHORTEST or words[0] in WORDS):
                self._capitals.add(whole)
        for whole in wholes:
            words = [word for word in _words(whole) if word not in RELATIONS]
            for n, word in enumerate(words):
                if word not in self._people and len(word) >= SHORTEST:
                    self._people[word] = whole if shared[word] == 1 else word
                    if n or word in WORDS:
                        self._capitals.add(word)

    def text(self, text: str) -> str:
        """Return a text with stand-ins."""
        return "\n".join(map(self._line, text.split("\n")))  # nothing that is replaced has a line end

    def _line(self, line: str) -> str:
        parts, end = list[str](), 0
        for found in NUMBER.finditer(line) if MAY_HAVE.search(line) else ():
            if stand_in := self._of_number(found):
                parts += [self._without_names(line[end : found.start()]), stand_in]
                end = found.end()
        return "".join(parts) + self._without_names(line[end:])

    def chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a document, given in parts, with stand-ins; bytes that are not UTF-8 stay."""
        held = b""
        for chunk in chunks:
            lines, end, held = (held + chunk).rpartition(b"\n")
            if end:
                yield self._bytes(lines + end)
        yield self._bytes(held)

    def _bytes(self, part: bytes) -> bytes:
        return self.text(part.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def _of_number(self, found: re.Match[str]) -> str | None:
        """Return the stand-in of a number, None for one that stays."""
        kind, text = next((name, found[name]) for name in FORMS if found[name] is not None)
        digits = re.sub(r"\D", "", text)
        if kind in STAY or (kind == "link" and _is_site(text)) or (found["short"] and _is_range(digits)):
            return None
        key = digits
        if kind in ("email", "link"):
            key = text.lower() if kind == "email" else text
        elif kind in ("phone", "number") and _is_cpf(digits):
            kind = "CPF"
        elif kind == "number" and _is_cnpj(digits):
            kind = "CNPJ"
        elif kind == "number" and _is_phone(digits):
            kind = "phone"
        elif kind in ("other", "uuid", "CNPJ"):
            kind, key = kind if kind == "CNPJ" else "number", re.sub(r"\W", "", text).upper()
        if kind == "phone":
            key = digits.lstrip("0")
            key = key.removeprefix("55") if len(key) > 11 else key
        return self._stand_in(kind, key)

    def _without_names(self, text: str) -> str:
        if not self._people or not text:
            return text
        parts, end = list[str](), 0
        for found in self._names.finditer(_folded(text)):
            begin, stop = found.span()
            spelling, before = _spelt(found[0]), text[begin - 1 : begin]
            is_sign = before == "@" or (before in ("", "\n") and text[stop : stop + 2] == ": ")
            if not is_sign and spelling in self._signs:
                continue
            if not is_sign and spelling in self._capitals and not text[begin].isupper():
                continue
            parts += [text[end:begin], self._stand_in("person", self._people[spelling])]
            end = stop
        return "".join(parts) + text[end:]

    def _stand_in(self, kind: str, key: str) -> str:
        self.replaced[KINDS[kind]] += 1
        if (kind, key) not in self._given:
            n = 1 + sum(given == kind for given, _key in self._given)
            self._given[kind, key] = f"[{kind} {n}]"
        return self._given[kind, key]


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of these, the longest first, as whole words; combining marks may follow letters."""
    written = (
        "".join(
            r"[^\S\n]+" if char == " " else re.escape(char) + f"{MARKS}*" * char.isalpha()
            for char in spelling
        )
        for spelling in sorted(spellings, key=len, reverse=True)
    )
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(written)})(?![^\W_])")


class _Fold(dict[int, str]):
    """The small base letter of each character, one for one."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        small = unicodedata.normalize("NFD", char)[0].lower()
        self[code] = small if len(small) == 1 else char
        return self[code]


FOLD = _Fold()


def _folded(text: str) -> str:
    """Return a text of the same length without capitals and accents."""
    return text.translate(FOLD)


def _spelt(name: str) -> str:
    """Return a name folded, composed and with single blanks."""
    return " ".join(re.sub(MARKS, "", _folded(unicodedata.normalize("NFC", name))).split())


def _words(folded: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", folded)


def _is_site(link: str) -> bool:
    """Return True for a link that names a site and no more."""
    host, _slash, rest = re.sub(r"^https?://", "", link, flags=re.IGNORECASE).partition("/")
    return not rest and not set("?#@") & set(host)


def _is_range(digits: str) -> bool:
    """Return True for two years, or two round numbers."""
    pair = digits[:4], digits[4:]
    return all(n[:2] in ("19", "20") for n in pair) or all(n.endswith("00") for n in pair)


def _is_phone(digits: str) -> bool:
    """Return True for a number of Brazil, with its area and perhaps its country."""
    local = digits[2:] if len(digits) > 11 and digits.startswith("55") else digits
    return "0" not in local[:2] and (
        (len(local) == 11 and local[2] == "9") or (len(local) == 10 and local[2] in "2345")
    )


def _is_cpf(digits: str) -> bool:
    return len(digits) == 11 and len(set(digits)) > 1 and _checked(digits, range(2, 12))


def _is_cnpj(digits: str) -> bool:
    weights = [*range(2, 10), *range(2, 10)]
    return len(digits) == 14 and len(set(digits)) > 1 and _checked(digits, weights)


def _checked(digits: str, weights: Iterable[int]) -> bool:
    """Return True where the last two digits check those before by weights from the right, modulo 11."""
    weights = list(weights)
    for end in (len(digits) - 2, len(digits) - 1):
        rest = sum(int(d) * weight for d, weight in zip(reversed(digits[:end]), weights, strict=False)) % 11
        if int(digits[end]) != (0 if rest < 2 else 11 - rest):
            return False
    return True
