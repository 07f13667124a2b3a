"""Where a text is in the file it was made of: the line, or the page, paragraph or record."""

import json

import pytest

from npgpt.text.corpus import Corpus
from tests.form_files import pdf_file, word_file

CHAT = (
    "12/03/2023 14:05 - As mensagens são protegidas.\n12/03/2023 14:05 - João: Oi\n"
    "12/03/2023 14:06 - Ana: Tudo? E você:\nvai hoje?\n12/03/2023 14:07 - João: <Mídia oculta>\n"
    "12/03/2023 14:08 - João: IMG-1.jpg (arquivo anexado)\na legenda\n12/03/2023 14:09 - Ana: Vou.\n"
)
FILES = {  # name: (content, what line of the file each line of the text is on)
    "chat.txt": (CHAT, [2, 3, 4, 7, 8]),
    "film.srt": (
        "1\n00:00:01,000 --> 00:00:03,000\nOnde\nestava?\n\n2\n00:00:03,100 --> 00:00:04,000\nEm casa.\n\n\n"
        "3\n00:00:05,000 --> 00:00:06,000\nFim\n",
        [3, 8, 13],
    ),
    "rolling.vtt": (
        "WEBVTT\n\n00:01.000 --> 00:02.000\nWhere <00:01.500>were\n\n"
        "00:02.000 --> 00:03.000\nWhere were\nyou?\n",
        [4, 8],
    ),
    "page.html": (
        "<!doctype html>\n<head><title>No</title>\n<style>p{}</style></head>\n<h1>A\n title</h1>\n"
        "<p>\n\n  One &amp;\n two<br>three</p>\n<pre>  as\n\n  it is</pre><ul><li>a</li>\n\n<li>b</li></ul>",
        [4, 8, 8, 9, 10, 10, 12, 12, 12, 12, 14],  # a blank line is with the next
    ),
    "mac.html": ("<p>a</p>\r\n<p>b</p>\r\n", [1, 2, 2]),
}


@pytest.mark.parametrize("clean", ["light", "full"])
@pytest.mark.parametrize("name", FILES)
def test_a_line_is_that_of_the_file(name, clean, tmp_path):
    content, places = FILES[name]
    (tmp_path / name).write_bytes(content.encode())
    corpus = Corpus(tmp_path / name, clean)
    text = b"".join(chunk for _number, chunk in corpus.chunks()).decode()
    lines = text.splitlines()
    assert corpus.places(0, range(1, len(lines) + 1)) == (str(tmp_path / name), places)
    assert corpus.unit(str(tmp_path / name)) == "line"
    for line, place in zip(lines, places, strict=True):  # and there it stands
        assert not line or any(word in content.splitlines()[place - 1] for word in line.split()), line


def test_pages_paragraphs_and_records_are_counted_where_there_are_no_lines(tmp_path):
    pytest.importorskip("pypdf")
    pdf_file(tmp_path / "a.pdf", "First page.", "", "Third page.")
    word_file(tmp_path / "a.docx", ["one", "two"])
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a\nb"}, {"text": ""}, {"text": "c"}], indent=2))
    expected = {
        "a.pdf": ("page", 0, [1, 1, 3]),
        "a.docx": ("paragraph", 0, [1, 2]),
        "a.json": ("record", 1, [3]),
    }
    for name, (unit, number, places) in expected.items():
        corpus = Corpus(tmp_path / name)
        assert corpus.places(number, range(1, len(places) + 1))[1] == places, name
        assert corpus.unit(str(tmp_path / name)) == unit
