"""What objects show of themselves in notebooks: whole, escaped, readable on dark and light pages."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.text.tokenizer import ByteTokenizer
from npgpt.train import main as train
from npgpt.training.evaluation import evaluate

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 257}


class Cells(HTMLParser):
    """The rows of a table, and whether each element that is opened is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.opened, self.tags = [], [], set()
        self.feed(text)
        assert not self.opened

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.rows[-1][-1] += data


def table_of(shown):
    html = shown._repr_html_()
    assert not re.search(r"color|background|#[0-9a-f]{3}", html), "it has the page's colours, dark or light"
    cells = Cells(html)
    assert cells.tags == {"table", "tr", "th", "td"}
    (title,), *rows = cells.rows
    return title, dict(rows)


def test_a_model():
    model = npgpt.GPT(npgpt.GPTConfig(**SIZES))
    title, rows = table_of(model)
    assert title == "GPT gpt-2"
    assert rows["n_embd"] == "16" and rows["tokenizer"] == "bytes" and rows["vocab_size"] == "257"
    assert rows["parameters"] == f"{model.num_params:,}"
    assert rows["bytes of weights"] == f"{4 * model.num_params:,}"
    assert table_of(npgpt.GPT(npgpt.GPTConfig(**SIZES | {"vocab_size": 9})))[1]["tokenizer"] == "none"


def test_a_config_shows_what_is_not_as_usual():
    assert table_of(npgpt.GPTConfig(**SIZES)) == ("GPTConfig", {k: str(v) for k, v in SIZES.items()})
    other = table_of(npgpt.GPTConfig(**SIZES, dropout=0.25, bias=False, window=4))[1]
    assert other == {k: str(v) for k, v in SIZES.items()} | {
        "dropout": "0.25",
        "bias": "False",
        "window": "4",
    }


@pytest.mark.parametrize("text", ["<script>alert('&')</script>\n\"fim\"", "céu\te mar"])
def test_a_dataset_is_escaped(text, tmp_path):
    (tmp_path / "t.txt").write_text(text * 40, encoding="utf-8")
    dataset = npgpt.Dataset.from_text(tmp_path / "t.txt")
    title, rows = table_of(dataset)
    assert title == f"Dataset of {len(dataset):,} tokens"
    assert rows["train"] == f"{len(dataset.train):,}" and rows["test"] == f"{len(dataset.test):,}"
    assert rows["begins"] == ByteTokenizer().decode(dataset.train[:60])
    assert "<script>" not in dataset._repr_html_()


def test_a_dataset_of_a_part_alone():
    dataset = npgpt.Dataset.from_ids(np.array([97, 98, 256], np.uint16), "1", ByteTokenizer())
    assert table_of(dataset)[1]["validation"] == "0"


def test_a_run_and_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("o sol e o mar, a lua e o céu; " * 60, encoding="utf-8")
    sizes = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "8"]
    assert train(["t.txt", *sizes, "--split", "0.8,0.1,0.1", "--steps", "4", "--out", "r"]) == 0
    (run,) = npgpt.compare("r").runs
    title, rows = table_of(run)
    assert title == "r" and rows["steps done"] == "4" and rows["n_embd"] == "16"
    assert rows["val loss"] == f"{run.val_loss:.4f}" and "None" not in rows.values()
    dataset = npgpt.Dataset.from_text("t.txt")
    measured = evaluate(npgpt.load("r"), dataset.test, dataset.tokenizer)
    title, rows = table_of(measured)
    assert title == "Evaluation" and rows["tokens"] == str(measured["tokens"]) == str(len(dataset.test))
    assert rows["loss"] == f"{measured['loss']:.4f}" and rows["accuracy@5"] == f"{measured['accuracy@5']:.4f}"
