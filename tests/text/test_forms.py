"""Text as people have it: each form of file, with what it says, and what is refused of it."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest

from npgpt.text.corpus import Corpus
from npgpt.text.dataset import Dataset, encode
from npgpt.text.forms.reading import open_blocks
from npgpt.text.tokenizer import ByteTokenizer
from tests.form_files import pdf_file, word_file

PROSE = (
    "Capitu não respondeu logo. “Você jura?” — perguntou ela; à tarde, os cães ladraram, e eu disse que sim. "
    "Era uma promessa de coração, dessas que não se esquecem às três horas da manhã.\n"
)
RECORDS = ["Um conto\ncom duas linhas.", 'Outro, com ; e , e "aspas".', "É o último: ação!"]
ANDROID = """12/03/2023 14:05 - As mensagens e as ligações são protegidas com a criptografia de ponta a ponta.
12/03/2023 14:05 - João Silva: Oi, tudo bem?
12/03/2023 14:06 - Ana: Tudo! E você:
vai hoje?
12/03/2023 14:07 - João Silva: <Mídia oculta>
12/03/2023 14:08 - Ana: Mensagem apagada
12/03/2023 14:09 - João Silva: Vou. <Mensagem editada>
"""
ANDROID_SAID = "João Silva: Oi, tudo bem?\nAna: Tudo! E você:\nvai hoje?\nJoão Silva: Vou.\n"
IPHONE = (
    "[3/12/23, 2:05:33\u202fPM] Ana: \u200eMessages and calls are end-to-end encrypted.\r\n"
    "[3/12/23, 2:05:40\u202fPM] Ana: Hi: look at this\r\n"
    "\u200e[3/12/23, 2:05:41\u202fPM] Ana: \u200eimage omitted\r\n"
    "[3/12/23, 2:06:02\u202fPM] ~\u202fBob: \u200e<attached: 00001-PHOTO.jpg>\r\n"
    "[3/12/23, 2:06:33\u202fPM] Bob: nice\r\n"
)
BOOK = "First line of the book.\n\nLast line of the book.\n"
GUTENBERG = (
    "The Project Gutenberg EBook of Dom Casmurro\n\nThis eBook is for the use of anyone\n\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK DOM CASMURRO ***\n" + BOOK + "\n"
    "End of the Project Gutenberg EBook of Dom Casmurro\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK DOM CASMURRO ***\n\nSection 1. General Terms of Use\n"
)
SRT = (
    "\ufeff1\r\n00:00:01,000 --> 00:00:03,000\r\n<i>Onde você\r\nestava?</i>\r\n\r\n"
    "2\r\n00:00:03,100 --> 00:00:04,000\r\n{\\an8}- Em casa.\r\n- Às 10?\r\n\r\n"
    "3\r\n00:00:05,000 --> 00:00:06,000\r\n\r\n\r\n4\r\n00:01:05,000 --> 00:01:06,000\r\nFim\r\n"
)
VTT = (
    "WEBVTT - a title\n\nNOTE a comment\nof two lines\n\nSTYLE\n::cue { color: red }\n\n"
    "intro\n00:01.000 --> 00:02.000 align:start\n<v Ana>Where <00:01.500>were you? &amp; why\n\n"
    "00:02.000 --> 00:03.000\nWhere were you? &amp; why\n\n00:03.000 --> 00:04.000\nHome.\n"
)
PAGE = (
    "<!doctype html><html><head><title>No</title><style>p{}</style></head><body>"
    "<script>var x = '<p>no</p>'</script>"
    "<h1>A  title</h1><p>One &amp; two,\n three<br>four</p><ul><li>a</li><li>b</li></ul>"
    "<table><tr><td>1</td><td>2</td></tr></table><pre>  as\n    it is</pre></body></html>"
)
PAGE_SAID = "A title\n\nOne & two, three\nfour\n\na\nb\n\n1\t2\n\n  as\n    it is\n"


def text_of(path, **how):
    return b"".join(chunk for _number, chunk in Corpus(path, **how).chunks()).decode()


def documents_of(path, **how):
    found = {}
    for number, chunk in Corpus(path, **how).chunks():
        found[number] = found.get(number, b"") + chunk
    return [found[number].decode() for number in sorted(found)]


@pytest.mark.parametrize(
    "codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "windows-1252", "cp850", "mac-roman", "utf-8"]
)
def test_an_encoding_that_is_sure_is_converted_and_told(codec, tmp_path):
    text = PROSE if codec != "cp850" else PROSE.translate(str.maketrans({"“": '"', "”": '"', "—": "-"}))
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    corpus = Corpus(tmp_path / "a.txt")
    assert b"".join(chunk for _, chunk in corpus.chunks()).decode() == text
    (document,) = corpus.documents
    assert (document.notes is None) == (codec == "utf-8")
    if document.notes:
        assert document.notes.encoding.replace("-", "") in codec.replace("-", "")


@pytest.mark.parametrize(
    "codec, text, among",
    [
        ("windows-1250", "Zażółć gęślą jaźń. Stół z powyłamywanymi nogami, część świąt.", "windows-1250"),
        ("windows-1251", "Мой дядя самых честных правил, когда не в шутку занемог.", "windows-1251"),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。", "shift_jis"),
        ("gb18030", "道可道非常道。名可名非常名。無名天地之始。有名萬物之母。", "gb18030"),
        ("windows-1252", "só é", "windows-1252"),  # too few letters
        # Hungarian, which would be Portuguese with other letters in Windows-1252
        (
            "windows-1250",
            "Erős vár a mi bátor népünk, és erősek a várnak kapui; árnyék és szél, tíz hídról.",
            "windows-1250",
        ),
        (
            "iso8859-15",
            "Le cœur et la sœur, l'œuvre, les bœufs, un œil, des vœux, un œuf, un nœud, à côté.",
            "iso8859-15",
        ),
        ("iso8859-15", "À côté, l'été, déjà, où, voilà, prêt, été, forêt: 5 €.", "iso8859-15"),
        ("mac-roman", "GWIRIOÙ, OBJEDOÙ, SIFROÙ, EMAÑ, CHEÑCHET, MERKAÑ, TRAOÙ, KADOÙ.", "mac-roman"),
    ],
)
def test_an_encoding_that_is_not_sure_is_a_question_that_names_it(codec, text, among, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    with pytest.raises(ValueError, match="its encoding is not sure; give --encoding") as error:
        Corpus(tmp_path / "a.txt")
    assert among in str(error.value) and str(error.value).endswith("or bytes, which takes it as it is")
    assert text_of(tmp_path / "a.txt", encoding=codec) == text


@pytest.mark.parametrize("codec", ["windows-1252", "cp850", "mac-roman"])
@pytest.mark.parametrize(
    "text",
    [
        "NÃO, A AÇÃO É À TARDE: OS CÃES, O CORAÇÃO, A IRMÃ, VOCÊ, AS OPÇÕES. “JÁ É AMANHÃ”",
        "Der Bär läuft über die Straße. Die Vögel hören schöne Töne; für Mädchen, Äpfel. »Öl«",
        "El niño soñó. ¿Qué pasó? ¡Sí! La canción está aquí, también mañana; Ángel, corazón, año.",
    ],
)
def test_capitals_and_quotes_leave_an_encoding_sure(codec, text, tmp_path):
    if codec == "cp850":
        text = text.translate(str.maketrans("“”", '""'))
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    assert text_of(tmp_path / "a.txt") == text


FILES = {
    "zap.txt": (ANDROID, ANDROID_SAID),
    "zap-iphone.txt": (IPHONE, "Ana: Hi: look at this\nBob: nice\n"),
    "book.txt": (GUTENBERG, BOOK + "\n"),
    "film.srt": (SRT, "Onde você estava?\n- Em casa. - Às 10?\nFim\n"),
    "film.vtt": (VTT, "Where were you? & why\nHome.\n"),
    "page.html": (PAGE, PAGE_SAID),
    "notes.md": ("# A title\n\nText.\n", "# A title\n\nText.\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_form_says_what_a_person_reads_in_it(name, tmp_path):
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content.encode())
    assert text_of(tmp_path / name) == expected
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        packed = tmp_path / f"{name}{ending}"
        packed.write_bytes(pack(content.encode()))
        assert text_of(packed) == expected
    if "film" not in name:  # another encoding, of which the letters are enough
        (tmp_path / name).write_bytes(content.encode("utf-16"))
        assert text_of(tmp_path / name) == expected


WHATSAPP = {  # (export, what is said, how many are left out: media, deleted, notices)
    "Portugal": (
        "27/04/26, 11:31 - As mensagens e as chamadas são encriptadas ponto a ponto.\n"
        "27/04/26, 12:25 - Rita: <Ficheiro não revelado>\n27/04/26, 12:26 - Rita: Eliminou esta mensagem\n"
        "27/04/26, 12:43 - Rita: Já mandei <Esta mensagem foi editada>\n"
        "27/04/26, 12:43 - Rui: IMG-1.jpg (ficheiro anexado)\na legenda\n27/04/26, 12:44 - Rui: null\n",
        "Rita: Já mandei\nRui: a legenda\n",
        (3, 1, 1),
    ),
    "Brasil": (
        '12/03/2023 14:05 - Ana criou o grupo "Viagem: 2023"\n'
        "12/03/2023 14:06 - \u202a+55 11 90000\u20110000\u202c: Oi @\u2068Caio\u2069\n"
        "12/03/2023 14:07 - Bia: IMG-1.jpg (arquivo anexado)\nque praia!\n"
        '12/03/2023 14:10 - Bia mudou o nome do grupo de "Viagem: 2023" para "Praia: 2024"\n',
        "+55 11 90000\u20110000: Oi @Caio\nBia: que praia!\n",
        (1, 0, 2),
    ),
    "iPhone": (
        "[25/03/2025 14:30:25] Ana: Olá\r\n[25/03/2025 14:31:25] Ana: \u200eimagem ocultada\r\n"
        "\u200e[25/03/2025 14:31:27] Ana: veja \u200e<anexado: 1-PHOTO.jpg>\r\n"
        "[25/03/2025 14:33:26] Rui: a.pdf • \u200e3 páginas \u200edocumento omitido\r\n"
        "[25/03/2025 14:33:27] Rui: \u200eMensagem apagada\r\n",
        "Ana: Olá\nAna: veja\n",
        (3, 0, 1),
    ),
    "España": (
        "15/4/16 15:04 - Ana: Hola\n15/4/16, 3:05 p.\u00a0m. - Beto: <Multimedia omitido>\n"
        "15/4/16 15:05 - Beto: Se eliminó este mensaje.\n"
        "15/4/16 15:06 - Ana: bien <Se editó este mensaje.>\n",
        "Ana: Hola\nAna: bien\n",
        (1, 1, 0),
    ),
    "Deutschland": (
        "26.03.25, 19:06 - Udo: oder? <Diese Nachricht wurde bearbeitet.>\n"
        "02.04.25, 15:12 - Udo: <Medien ausgeschlossen>\n4Bit.mod\n"
        "02.04.25, 15:14 - Ole: Du hast diese Nachricht gelöscht.\n"
        "[02.04.25, 15:15:00] Ole: \u200eBild weggelassen\n",
        "Udo: oder?\nUdo: 4Bit.mod\n",
        (2, 1, 0),
    ),
    "France": (
        "15/04/2016 à 15:04 - Anne: Salut\n15/04/2016 à 15:05 - Luc: <Médias omis>\n"
        "15/04/2016 à 15:06 - Luc: Ça va ?\n",
        "Anne: Salut\nLuc: Ça va ?\n",
        (1, 0, 0),
    ),
}


@pytest.mark.parametrize("where", WHATSAPP)
def test_whatsapp_of_other_countries(where, tmp_path):
    export, expected, left_out = WHATSAPP[where]
    (tmp_path / "a.txt").write_bytes(export.encode())
    corpus = Corpus(tmp_path / "a.txt")
    assert b"".join(chunk for _, chunk in corpus.chunks()).decode() == expected
    dropped = corpus.documents[0].notes.dropped
    why = ("media left out", "deleted messages left out", "notices left out")
    assert tuple(dropped[reason] for reason in why) == left_out


SUBTITLES = {
    "a blank line inside.srt": (
        "1\n00:00:01,000 --> 00:00:02,000\nHello\n\nworld\n\n2\n00:00:03,000 --> 00:00:04,000\n42\n\n"
        "3\n00:00:07,000 --> 00:00:08,000\n10\n",
        "Hello world\n42\n10\n",
    ),
    "other times.srt": (
        "1\n00:00:01 --> 00:00:02\nOne &#39;x&#39; &quot;y&quot;\n\n2\n"
        "0:0:3.5-->0:0:4.5 X1:10 X2:20\n{i}Two{/i}\n"
        "3\n00:00:05,000 -> 00:00:06,000\nThree\n",
        "One 'x' \"y\"\nTwo\nThree\n",
    ),
    "no numbers.srt": (
        "00:01,0 --> 00:02,0\nIn\n1984\n\n00:03,0 --> 00:04,0\nand now\n",
        "In 1984\nand now\n",
    ),
    "no change.srt": (
        "1\n00:00:01,0 --> 00:00:02,0\nNo. \n\n2\n00:00:03,0 --> 00:00:04,0\nNo.\nI said no.\n",
        "No.\nNo. I said no.\n",
    ),
    # as YouTube writes what it heard: each line stays while the next one is said
    "rolling.vtt": (
        "WEBVTT\nKind: captions\n\n00:00:00.160 --> 00:00:02.389 align:start\n \n"
        "hello<00:00:00.480><c> and</c><00:00:00.640><c> welcome</c>\n\n"
        "00:00:02.389 --> 00:00:02.399 align:start\nhello and welcome\n \n\n"
        "00:00:02.399 --> 00:00:05.030 align:start\nhello and welcome\n"
        "to<00:00:02.639><c> the</c><c> show</c>\n\n"
        "00:00:05.030 --> 00:00:05.040 align:start\nto the show\n \n\n",
        "hello and welcome\nto the show\n",
    ),
}


@pytest.mark.parametrize("name", SUBTITLES)
def test_subtitles_of_other_programs(name, tmp_path):
    content, expected = SUBTITLES[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert text_of(tmp_path / name) == expected


@pytest.mark.parametrize(
    "begin, end",
    [
        ("***START OF THE PROJECT GUTENBERG EBOOK X***\n", "***END OF THE PROJECT GUTENBERG EBOOK X***\n"),
        (
            "*** START OF THE PROJECT GUTENBERG EBOOK THE LIFE AND\nADVENTURES OF CRUSOE ***\n",
            "End of Project Gutenberg's The Life, by Daniel Defoe\n",
        ),
        ("*** START OF THE PROJECT GUTENBERG ETEXT X ***\n", "End of The Project Gutenberg Etext of X\n"),
        (
            "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
            "End of this Project Gutenberg Etext\n",
        ),
    ],
)
def test_gutenberg_of_all_years(begin, end, tmp_path):
    (tmp_path / "a.txt").write_text(f"The Project Gutenberg Etext of X\n\n{begin}{BOOK}{end}Licence\n")
    assert text_of(tmp_path / "a.txt") == BOOK


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize(
    "text",
    [
        "Мой дядя самых честных правил,\n" * 2,
        "Καλημέρα φίλοι μου, είχε αρχίσει.\n",
        "道可道非常道。名可名非常名。\n無名天地之始。有名萬物之母。\n",
        "吾輩は猫である。名前はまだ無い。\n",
        "कई बार ऐसा हुआ। फिर वह चला गया।\n",
        "나는 학교에 갑니다. 그리고 집에 옵니다.\n",
    ],
)
def test_utf16_without_a_mark_is_known_in_any_writing(text, order, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode(f"utf-16-{order}"))
    assert text_of(tmp_path / "a.txt") == text


def test_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "a.txt").write_text(ANDROID, encoding="utf-8")
    (notes,) = (document.notes for document in Corpus(tmp_path / "a.txt").documents)
    assert notes.form == "WhatsApp"
    assert notes.dropped == {"notices left out": 1, "media left out": 1, "deleted messages left out": 1}


@pytest.mark.parametrize(
    "page, codec, expected",
    [
        (
            "<html><head><title>T</title><meta charset=iso-8859-1><body><p>“Olá” — 5 €",
            "cp1252",
            "“Olá” — 5 €\n",
        ),
        ("<!doctype html><title>T</title><p>a<p>b", "utf-8", "a\n\nb\n"),
        ("<head><script>x</script>text<p hidden>", "utf-8", "text\n"),
        ("<p>a<![<b]>c<![if !IE]>d<![endif]>", "utf-8", "acd\n"),
        ("<pre>" + " " * 200000 + "x</pre>a" + "<!--" * 50000, "utf-8", " " * 200000 + "x\n\na\n"),
        (
            '<?xml version="1.0" encoding="ISO-8859-1"?><html><head/><body>só é</body></html>',
            "latin-1",
            "só é\n",
        ),
    ],
)
def test_pages_are_read_as_browsers_do(page, codec, expected, tmp_path):
    (tmp_path / "a.html").write_bytes(page.encode(codec))
    assert text_of(tmp_path / "a.html") == expected


def test_word(tmp_path):
    word_file(tmp_path / "a.docx", ["Olá, coração.", "Segundo parágrafo."])
    assert text_of(tmp_path / "a.docx") == "Olá, coração.\tx\nSegundo parágrafo.\tx\n\n"
    (tmp_path / "b.docx").write_bytes((tmp_path / "a.docx").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"b\.docx: is no Word document, or a damaged one"):
        Corpus(tmp_path / "b.docx")


def test_word_in_another_way_of_compression_is_refused(tmp_path):
    word_file(tmp_path / "a.docx", ["Olá."])
    at = 8  # of the method in a file's own header; in the table at the end, two bytes later
    data = bytearray((tmp_path / "a.docx").read_bytes())
    for mark, place in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
        begin = -1
        while (begin := data.find(mark, begin + 1)) >= 0:
            data[begin + place : begin + place + 2] = b"\x63\0"
    (tmp_path / "a.docx").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.docx: is no Word document, or a damaged one: .*compression"):
        Corpus(tmp_path / "a.docx")


def test_word_says_each_paragraph_once_and_no_tab_stops(tmp_path):
    spaces = (
        'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
        'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    )
    box = "<w:txbxContent><w:p><w:r><w:t>in a box</w:t></w:r></w:p></w:txbxContent>"
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("word/_rels/document.xml.rels", "<Relationships/>")
        archive.writestr(
            "word/document.xml",
            f"<w:document {spaces}><w:body><w:p><w:pPr><w:tabs><w:tab/><w:tab/></w:tabs></w:pPr>"
            "<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t></w:r><w:moveFrom><w:r><w:t>c</w:t></w:r></w:moveFrom></w:p>"
            f"<w:p><w:r><mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback>"
            "</mc:AlternateContent></w:r></w:p></w:body></w:document>",
        )
    assert text_of(tmp_path / "a.docx") == "a\tb\nin a box\n\n"


def test_word_says_what_was_inserted_and_not_what_is_deleted_or_hidden(tmp_path):
    hidden = "<w:r><w:rPr><w:vanish{}/></w:rPr><w:t>{}</w:t></w:r>"
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr(
            "word/document.xml",
            '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p>'
            "<w:r><w:t>O sol</w:t></w:r><w:ins><w:r><w:t> brilha</w:t></w:r></w:ins>"
            "<w:del><w:r><w:delText> dorme</w:delText></w:r></w:del>"
            + hidden.format("", " oculto")
            + hidden.format(' w:val="true"', " oculto")
            + hidden.format(' w:val="0"', " hoje")
            + "</w:p><w:sdt><w:sdtContent><w:p><w:r><w:t>Em Lisboa.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
            "</w:body></w:document>",
        )
    assert text_of(tmp_path / "a.docx") == "O sol brilha hoje\nEm Lisboa.\n"


def test_a_pdf_has_its_text_layer_or_none(tmp_path, monkeypatch):
    pytest.importorskip("pypdf")
    pdf_file(tmp_path / "a.pdf", "First page.", "", "Third page.")
    corpus = Corpus(tmp_path / "a.pdf")
    assert b"".join(chunk for _, chunk in corpus.chunks()) == b"First page.\n\nThird page.\n\n"
    assert corpus.documents[0].notes.dropped == {"pages without text left out": 1}
    pdf_file(tmp_path / "b.pdf", "")
    with pytest.raises(ValueError, match="has no text layer, only pictures; first: tesseract"):
        Corpus(tmp_path / "b.pdf")
    (tmp_path / "c.pdf").write_bytes((tmp_path / "a.pdf").read_bytes()[:60])
    with pytest.raises(ValueError, match="is no PDF, or a damaged one"):
        Corpus(tmp_path / "c.pdf")
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(ValueError, match="a PDF is read where pypdf is installed"):
        Corpus(tmp_path / "a.pdf")


def test_a_pdf_that_anyone_may_read_is_read(tmp_path, capfd):
    pypdf = pytest.importorskip("pypdf")
    pdf_file(tmp_path / "a.pdf", "First page.")
    for name, password in (("owner.pdf", ""), ("user.pdf", "secret")):
        writer = pypdf.PdfWriter(clone_from=tmp_path / "a.pdf")
        writer.encrypt(user_password=password, owner_password="other", algorithm="RC4-128")
        writer.write(tmp_path / name)
    assert text_of(tmp_path / "owner.pdf") == "First page.\n\n"
    with pytest.raises(ValueError, match=r"user\.pdf: is encrypted; save it without a password first"):
        Corpus(tmp_path / "user.pdf")
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\n" + bytes(range(256)) * 20)
    with pytest.raises(ValueError, match=r"b\.pdf: is no PDF, or a damaged one"):
        Corpus(tmp_path / "b.pdf")
    assert capfd.readouterr() == ("", "")


TABLES = {
    "excel.csv": ("sep=;\ntext;id\nolá;1\n", ["olá"], [3]),
    "names.csv": ('"a, b, c";"text"\n"x";"oi, tudo"\n', ["oi, tudo"], [2]),
    "blank.csv": ("\n\nid;text\n1;olá\n", ["olá"], [4]),
    "lines.csv": ('text,id\n"one\ntwo",1\nthree,2\n', ["one\ntwo", "three"], [2, 4]),
    "quotes.tsv": (
        'id\ttext\n1\t"Não" disse ela\n2\t"aberta sem fim\n3\toi\n',
        ['"Não" disse ela', '"aberta sem fim', "oi"],
        [2, 3, 4],
    ),
    "quoted.tsv": (
        "id\ttext\n" + "".join(f'{i}\t"a ""{i}""\nb"\n' for i in range(99)),
        [f'a "{i}"\nb' for i in range(99)],
        list(range(2, 200, 2)),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_programs(name, tmp_path):
    content, expected, places = TABLES[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert documents_of(tmp_path / name) == expected
    corpus = Corpus(tmp_path / name)
    assert [corpus.places(number, [1])[1] for number in range(len(expected))] == [[n] for n in places]


def write_records(folder):
    objects = [{"id": i, "text": text, "note": "n"} for i, text in enumerate(RECORDS)]
    (folder / "r.jsonl").write_text(
        "".join(json.dumps(o, ensure_ascii=i > 0) + "\n" for i, o in enumerate(objects))
    )
    (folder / "r.json").write_text(json.dumps(objects), encoding="utf-8")
    for name, delimiter in (("r.csv", ","), ("semicolon.csv", ";"), ("r.tsv", "\t")):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, objects[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(objects)
    return ["r.jsonl", "r.json", "r.csv", "semicolon.csv", "r.tsv"]


def test_records_are_documents_with_an_end_of_text_between_them(tmp_path):
    expected = b"".join(text.encode() + b"\0" for text in RECORDS)
    for name in write_records(tmp_path):
        assert documents_of(tmp_path / name) == RECORDS, name
        ids = encode(Corpus(tmp_path / name), ByteTokenizer())
        assert bytes(np.where(ids == 256, 0, ids).astype(np.uint8)) == expected
        assert Dataset.from_text(tmp_path / name, split="1").train.tolist() == ids.tolist()
    with (
        zipfile.ZipFile(tmp_path / "all.zip", "w") as archive,
        tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar,
    ):
        for name in ("r.csv", "r.jsonl"):
            archive.write(tmp_path / name, f"in/{name}")
            tar.add(tmp_path / name, f"in/{name}")
        archive.writestr("picture.png", b"\x89PNG\r\n\x1a\n")
    for name in ("all.zip", "all.tar.gz"):
        corpus = Corpus(tmp_path / name)
        assert documents_of(tmp_path / name) == RECORDS * 2
        assert [document.name for document in corpus.documents] == [
            f"{tmp_path / name}/in/{n}" for n in ("r.csv", "r.jsonl")
        ]
        assert corpus.names(tmp_path) == [str(tmp_path / name)]
        assert corpus.places(4, [1]) == (f"{tmp_path / name}/in/r.jsonl", [2])


def test_a_mark_at_the_beginning_is_no_text_and_damaged_records_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text;id\nolá;1\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "olá"}\n', encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text(ANDROID, encoding="utf-8-sig")
    assert [text_of(tmp_path / f"a.{form}") for form in ("csv", "jsonl", "txt")] == [
        "olá",
        "olá",
        ANDROID_SAID,
    ]
    (tmp_path / "b.jsonl").write_bytes(('{"text": "olá, não é ação"}\n' * 9).encode() + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl: is UTF-8 with faulty bytes; iconv -c -f UTF-8"):
        Corpus(tmp_path / "b.jsonl")


def test_lines_that_say_endoftext_part_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\nstory\n<|endoftext|>\n\n<|endoftext|>\ntwo <|endoftext|> x\n")
    assert documents_of(tmp_path / "a.txt") == ["one\nstory\n", "two <|endoftext|> x\n"]
    assert Corpus(tmp_path / "a.txt").places(1, [1]) == (str(tmp_path / "a.txt"), [6])


def test_a_text_larger_than_memory_is_read_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"record {i} " * 50}) + "\n" for i in range(3000))
    )
    (tmp_path / "b.txt").write_text(PROSE * 20000, encoding="windows-1252")
    small = documents_of(tmp_path / "a.jsonl"), text_of(tmp_path / "b.txt")
    monkeypatch.setattr("npgpt.text.corpus.IN_MEMORY", 1000)
    assert (documents_of(tmp_path / "a.jsonl"), text_of(tmp_path / "b.txt")) == small
    assert small[1] == PROSE * 20000 and len(small[0]) == 3000


def test_a_large_block_is_read_in_time_that_grows_with_it():
    def seconds(size):
        begin = time.process_time()
        with open_blocks([b"x" * size]) as file:
            while file.read1(8192):
                pass
        return time.process_time() - begin

    assert seconds(16 << 20) < 30 * max(0.02, seconds(2 << 20))  # 64 times for copies of the rest


def test_stdin_is_read_as_a_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ANDROID.encode("utf-16"))))
    corpus = Corpus("-")
    assert b"".join(chunk for _, chunk in corpus.chunks()).decode() == ANDROID_SAID
    corpus.keep_stdin(tmp_path)
    assert Corpus(corpus.names(tmp_path)).sha256 == corpus.sha256


@pytest.mark.parametrize(
    "name, content, line",
    [
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": 3}\n',
            "line 2: 'text' must be a string, got int (npgpt.prepare --skip-bad",
        ),
        ("a.jsonl", '{"text": "a"}\nnot\n', "line 2: is not JSON: "),
        ("a.jsonl", '{"a": "x", "b": "y"}\n', "line 1: has no 'text'; give --field, one of: a, b"),
        ("a.jsonl", '{"messages": []}\n', "line 1: is a conversation, which npgpt.finetune learns"),
        ("a.jsonl", "[1]\n", "line 1: must be an object or a string, got list"),
        ("a.json", "{", "is not JSON: "),
        ("a.csv", "a,b\n1,2\n", "has no column 'text'; give --field, one of: a, b"),
        ("a.csv", "id,text\n1\n", "line 2: has 1 columns, and 'text' is none of them"),
        ("a.csv", 'text,id\na,1\n"b" c,2\n', "line 3: is no row of a table: "),
        ("a.csv", 'text,id\na,1\n"b,2\nc,3\n', "line 3: is no row of a table: unexpected end of data"),
        ("a.csv", "text\n\n", "must hold text; as comma-separated values it has none"),
        ("a.html", "<script>x</script>", "must hold text; as HTML it has none"),
    ],
)
def test_bad_records_are_refused_by_file_and_record(name, content, line, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        Corpus(tmp_path / name)
    assert line in str(error.value) and str(error.value).startswith(str(tmp_path / name))
    if "--skip-bad" in str(error.value) and '"a"' in content:
        corpus = Corpus(tmp_path / name, skip_bad=True)
        assert corpus.documents[0].notes.dropped == {"bad records left out": 1}
        assert documents_of(tmp_path / name, skip_bad=True) == ["a"]


def test_a_field_is_chosen(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": "y"}\n')
    assert text_of(tmp_path / "a.jsonl", field="b") == "y"
    (tmp_path / "b.jsonl").write_text('{"id": 3, "body": "z"}\n')
    assert text_of(tmp_path / "b.jsonl") == "z"


def test_an_archive_is_read_in_bounds(tmp_path, monkeypatch):
    def archive(name, member, content=b"x"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(member, content)
        return tmp_path / name

    with pytest.raises(ValueError, match="must not have a file outside its folder"):
        Corpus(archive("out.zip", "../a.txt"))
    packed = archive("packed.zip", "a.txt.gz", gzip.compress(PROSE.encode()))
    assert text_of(packed) == PROSE
    assert Corpus(packed).documents[0].name == f"{packed}/a.txt.gz"
    assert text_of(archive("other.zip", "a.srt.xz", lzma.compress(SRT.encode()))).startswith("Onde")
    with pytest.raises(ValueError, match=r"packed\.zip/a\.txt\.gz: is cut off or damaged"):
        Corpus(archive("packed.zip", "a.txt.gz", gzip.compress(PROSE.encode())[:-20]))
    with pytest.raises(ValueError, match="is an archive inside an archive"):
        Corpus(archive("in.zip", "a.zip"))
    with pytest.raises(ValueError, match=r"must hold \.txt"):
        Corpus(archive("none.zip", "a.png"))
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/hosts")
        file.writestr("a.txt", "text")
    assert text_of(tmp_path / "link.zip") == "text"
    monkeypatch.setattr("npgpt.text.forms.packed.FREE", 1000)
    with pytest.raises(ValueError, match="unpacks to more than 200 times its"):
        Corpus(archive("much.zip", "a.txt", b"a" * 10_000_000))
    (tmp_path / "much.txt.gz").write_bytes(gzip.compress(b"a" * 10_000_000))
    with pytest.raises(ValueError, match="unpacks to more than 200 times its"):
        Corpus(tmp_path / "much.txt.gz")
    with pytest.raises(ValueError, match=r"twice\.zip/a\.txt\.gz: unpacks to more than 200 times its"):
        Corpus(archive("twice.zip", "a.txt.gz", gzip.compress(b"a" * 10_000_000)))
    whole = gzip.compress(PROSE.encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"cut\.txt\.gz: is cut off or damaged"):
        Corpus(tmp_path / "cut.txt.gz")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "in.zip").read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cut\.zip: is cut off or damaged"):
        Corpus(tmp_path / "cut.zip")


def test_a_chat_with_media_is_the_chat(tmp_path):
    for chat, document in (
        ("_chat.txt", "00000004-bill.pdf"),
        ("WhatsApp Chat.txt", "DOC-20230312-WA0001.pdf"),
    ):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(chat, ANDROID)
            archive.writestr(document, b"%PDF-1.4 pictures only")
            archive.writestr("00000002-PHOTO.jpg", b"\xff\xd8\xff")
        assert text_of(tmp_path / "a.zip") == ANDROID_SAID


def test_a_folder_stands_for_the_files_of_known_forms(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "c.srt").write_text(SRT, encoding="utf-8")
    (tmp_path / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for about in ("README.md", "LICENSE.txt", ".hidden.txt"):
        (tmp_path / about).write_text("about the others")
    assert [document.name[-5:] for document in Corpus(tmp_path).documents] == ["a.txt", "/b.md", "c.srt"]
    assert len(Corpus(tmp_path, encoding="utf-8").documents) == 3


def test_a_bad_file_of_several_is_named_or_left_out(tmp_path):
    pytest.importorskip("pypdf")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    pdf_file(folder / "b.pdf", "")
    (folder / "c.pdf").write_bytes(b"%PDF-1.4 damaged")
    (folder / "d.txt").write_bytes(b"")
    (folder / "e.jsonl").write_text('{"text": "two"}\n{"text": 3}\n')
    with zipfile.ZipFile(folder / "f.zip", "w") as archive:
        archive.writestr("a.txt", "three")
        archive.writestr("b.docx", b"PK\x03\x04 no document")
        archive.writestr("c.txt.gz", gzip.compress(b"four" * 99)[:-9])
    (folder / "g.tar").write_bytes(b"no archive")
    (folder / "h.txt").write_text("five")
    way_out = r"in/b\.pdf: has no text layer, .*\(npgpt\.prepare --skip-bad leaves such files out\)$"
    with pytest.raises(ValueError, match=way_out):
        Corpus(folder)
    with pytest.raises(ValueError, match=r"f\.zip/b\.docx: .*--skip-bad leaves such files out\)$"):
        Corpus(folder / "f.zip")
    corpus = Corpus(folder, skip_bad=True)
    assert documents_of(folder, skip_bad=True) == ["one", "two", "three", "five"]
    assert [line.split(": ")[0].removeprefix(f"{folder}/") for line in corpus.skipped] == [
        "b.pdf", "c.pdf", "d.txt", "f.zip/b.docx", "f.zip/c.txt.gz", "g.tar",
    ]  # fmt: skip
    assert corpus.documents[1].notes.dropped == {"bad records left out": 1}
    for lonely in (folder / "b.pdf", [folder / "b.pdf", folder / "d.txt"]):
        with pytest.raises(ValueError, match=r"in/b\.pdf: has no text layer") as error:
            Corpus(lonely, skip_bad=True)
        assert "--skip-bad" not in str(error.value), "which would be no way out"
