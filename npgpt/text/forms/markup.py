"""What a person reads in HTML, a Word document or a PDF."""

import logging
import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import IO
from xml.etree import ElementTree

from npgpt.text.forms.encodings import text_codec
from npgpt.text.forms.notes import Notes
from npgpt.text.forms.packed import DAMAGED

HIDDEN = {
    "head",
    "title",
    "script",
    "style",
    "template",
    "noscript",
    "svg",
    "math",
    "select",
    "textarea",
    "iframe",
}
IN_HEAD = {"title", "meta", "link", "base", "script", "style", "template", "noscript"}
PARAGRAPHS = set(
    "p h1 h2 h3 h4 h5 h6 blockquote pre table ul ol dl figure article section header footer hr".split()
)
LINES = set("br div li tr dt dd caption figcaption option main nav aside form address".split())
CHARSET = re.compile(
    rb"(?:<meta[^>]+charset|<\?xml[^>]+encoding)\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE
)
MEANT = {  # as browsers read what pages name (the WHATWG's Encoding Standard)
    "iso8859-1": "windows-1252", "ascii": "windows-1252", "iso8859-9": "windows-1254", "gb2312": "gb18030",
    "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "utf-16": "", "utf-16-le": "", "utf-16-be": "",
    "utf-32": "", "utf-7": "",
}  # fmt: skip
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
STRICT = "{http://purl.oclc.org/ooxml/wordprocessingml/main}"
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
DOCUMENT = "word/document.xml"
UNCLOSED = 100  # comments, for the first of which HTMLParser would read the page, and for the next, again
SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "\u2011"}
LARGEST = 1 << 28  # bytes of the XML of a Word document


class _Page(HTMLParser):
    """Gathers the text of a page, with a line for a block and a blank one between paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[int, str]] = []  # with the line of the page
        self.hidden: list[str] = []
        self.verbatim = 0
        self.last = "\n"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if self.hidden[:1] == ["head"] and tag not in IN_HEAD:  # whose end need not be said
            self.hidden.clear()
        if tag in HIDDEN:
            self.hidden.append(tag)
        self.verbatim += tag == "pre"
        self._break(tag)
        if tag in ("td", "th") and not self.last.isspace():
            self._add("\t")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:  # and what was never closed inside it
            del self.hidden[self.hidden.index(tag) :]
        self.verbatim -= tag == "pre" and self.verbatim > 0
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self._break(tag)

    def parse_html_declaration(self, i: int) -> int:
        try:
            return super().parse_html_declaration(i)
        except AssertionError:  # as Python calls what browsers leave out
            return self.parse_bogus_comment(i)

    def handle_data(self, data: str) -> None:
        if self.hidden == ["head"] and data.strip():
            self.hidden.clear()
        if not self.hidden:
            if self.verbatim:
                self._add(data)
                return
            text = re.sub(r"[ \t\r\n\f]+", " ", data)
            before = data[: len(data) - len(data.lstrip(" \t\r\n\f"))].count("\n")
            self._add(text.removeprefix(" ") if self.last.isspace() else text, before)

    def _add(self, text: str, before: int = 0) -> None:
        """Add a text, which begins so many lines behind where the parser is."""
        self.parts.append((self.getpos()[0] + before, text))
        self.last = text[-1:] or self.last

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines of the text, each with the line of the page at which it begins."""
        said, place = list[str](), 0
        for begin, text in self.parts:
            for n, piece in enumerate(text.split("\n")):
                if n:
                    yield place or begin, "".join(said)
                    said, place = [], 0
                said.append(piece)
                place = place or (begin + n if piece.strip() else 0)
        yield place, "".join(said)

    def _break(self, tag: str) -> None:
        if not self.hidden:
            ends = 2 if tag in PARAGRAPHS else 1 if tag == "br" or (tag in LINES and self.last != "\n") else 0
            self._add("\n" * ends)


def html(text: str) -> Iterator[tuple[int, str]]:
    """Yield what a page says, with the line of the page for each: no scripts, styles or head."""
    page = _Page()
    end = text.rfind("-->")
    if text.count("<!--", max(0, end)) > UNCLOSED:
        text = text[: text.find("<!--", max(0, end))]
    page.feed(text)
    page.close()
    begun = blank = False
    for place, line in page.lines():
        if said := line.rstrip(" \t"):
            if blank:
                yield place, "\n"
            yield place, f"{said}\n"
            begun, blank = True, False
        else:
            blank = begun


def charset(head: bytes) -> str | None:
    """Return the encoding that the head of a page means, None where it names none."""
    found = CHARSET.search(head[:4096])
    named = text_codec(found[1].decode("ascii")) if found else None
    return MEANT.get(named, named) or None if named else None


def word(path: str, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the paragraphs of a Word document (.docx); ValueError where it is none."""
    number = 0
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(DOCUMENT).file_size > LARGEST:
                raise ValueError(f"{path}: has more than {LARGEST >> 20} MB of XML")
            with archive.open(DOCUMENT) as inner:
                again = 0  # inside what stands there for older programs, too
                for event, element in ElementTree.iterparse(inner, ("start", "end")):
                    if element.tag == FALLBACK:
                        again += 1 if event == "start" else -1
                    if event == "end" and element.tag in (f"{WORD}p", f"{STRICT}p"):
                        if not again:
                            number += 1
                            yield number, _paragraph(element) + "\n"
                        element.clear()
    except (*DAMAGED, KeyError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: is no Word document, or a damaged one: {error}") from None


def _paragraph(element: ElementTree.Element) -> str:
    text = []
    for inner in element:
        name = inner.tag.rpartition("}")[2]
        if name == "t":
            text.append(inner.text or "")
        elif name in SIGNS:
            text.append(SIGNS[name])
        # how it looks, as its tab stops; what moved elsewhere; what is not shown
        elif name not in ("pPr", "rPr", "moveFrom") and not _is_hidden(inner):
            text.append(_paragraph(inner))
    return "".join(text)


def _is_hidden(run: ElementTree.Element) -> bool:
    """Return whether a run is formatted as hidden text."""
    for space in (WORD, STRICT):
        found = run.find(f"{space}rPr/{space}vanish")
        if found is not None:
            return found.get(f"{space}val", "true") not in ("0", "false", "off")
    return False


def pdf(path: str, file: IO[bytes], notes: Notes, otherwise: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text layer) of the pages of a PDF; ValueError where there is none, or no pypdf.

    `otherwise` is the command that reads what is printed there.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ImportError:
        raise ValueError(
            f'{path}: a PDF is read where pypdf is installed: pip install "npgpt[files]"'
        ) from None
    logger, said = logging.getLogger("pypdf"), False
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # what it repairs is no error
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):  # with none, it is only protected from changes
            raise ValueError(f"{path}: is encrypted; save it without a password first")
        for number, page in enumerate(reader.pages, 1):
            text = page.extract_text()
            if text.strip():
                said = True
                yield number, text.rstrip() + "\n\n"
            else:
                notes.drop("pages without text left out", f"page {number}")
    except ValueError:
        raise
    except DependencyError as error:
        raise ValueError(f"{path}: is encrypted, or in need of another library: {error}") from None
    except Exception as error:  # pypdf raises whatever happens in a damaged file
        raise ValueError(f"{path}: is no PDF, or a damaged one: {error}") from None
    finally:
        logger.setLevel(level)
    if not said:
        raise ValueError(f"{path}: has no text layer, only pictures; first: {otherwise}")
