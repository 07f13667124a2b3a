"""The lesson: its notebooks are its pages, have one code in both languages, run, and show what is said."""

import ast
import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pyplot = pytest.importorskip("matplotlib.pyplot")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import notebooks  # noqa: E402

TAUGHT = {
    "aula": ("Bom dia! Como vai?", "Um pedaço de texto."),
    "lesson": ("Good morning! How are you?", "A piece of text."),
}


@pytest.mark.parametrize("name", notebooks.PAGES)
def test_a_notebook_is_its_page(name):
    book = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    assert [(cell.cell_type, cell.source) for cell in book.cells] == notebooks.cells(notebooks.PAGES[name])


@pytest.mark.parametrize("name", notebooks.PAGES)
def test_links_go_somewhere(name):
    for kind, text in notebooks.cells(notebooks.PAGES[name]):
        for link in re.findall(r"\]\(([^)#]+)", text) if kind == "markdown" else []:
            assert (EXAMPLES / link).exists(), link


def test_both_languages_have_the_same_code():
    def code(page):
        trees = [ast.parse(text) for kind, text in notebooks.cells(page) if kind == "code"]
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        return [ast.dump(tree) for tree in trees]

    one, other = map(code, notebooks.PAGES.values())
    assert one == other


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", notebooks.PAGES)
def test_a_notebook_runs_and_shows_what_it_says(name, monkeypatch):
    monkeypatch.setenv("LC_ALL", "")  # run() sets another
    book = notebooks.run(name)
    outputs = [one for cell in book.cells if cell.cell_type == "code" for one in cell.outputs]
    written = "".join(one.get("text", "") for one in outputs)
    assert ": True\n" in written  # the head by hand is the model's
    slopes = re.search(r"(-?0\.\d{8}), \w+ (-?0\.\d{8})", written)
    assert slopes and abs(float(slopes[1]) - float(slopes[2])) < 2e-8 and float(slopes[1]) != 0
    story = (EXAMPLES.parent / "data" / "textosdetreinamento.txt").read_text(encoding="utf-8")
    assert story in written and "100%" in written
    known, new = map(float, re.findall(r": (\d\.\d\d) nats", written))
    assert known > 2 * new  # a text learnt by heart helps with no other
    assert all(answer in written for answer in TAUGHT[name])
    pictures = [one.data["image/png"] for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 3
    for picture in pictures:
        drawn = pyplot.imread(io.BytesIO(base64.b64decode(picture)))
        assert np.unique(drawn.reshape(-1, drawn.shape[-1]), axis=0).shape[0] > 20
    assert any("rgba" in one.get("data", {}).get("text/html", "") for one in outputs)  # the shaded tokens
