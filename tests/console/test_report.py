"""report.html: one page that needs nothing else, made from the run's files alone."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from npgpt.console import charts, report
from npgpt.training.recorder import METRICS

CONFIG = """text = ["/somewhere/<b>.txt"]
split = [0.8, 0.1, 0.1]
clean = "light"
n_layer = 4
lr = 0.02
[about]
npgpt = "0.1.0"
kernels = "avx2 kernels, 2 threads"
python = "3"
numpy = "2"
"""
TEST = {
    "bits_per_byte": 2.5,
    "loss": 1.7,
    "accuracy@1": 0.5,
    "accuracy@5": 0.8,
    "tokens": 9,
    "part": "the test part",
}
BASELINES = {
    "xz": {"bits_per_byte": 3.0},
    "uniform": {"bits_per_byte": 8.0, "accuracy@1": 0.01, "accuracy@5": 0.02},
}


@pytest.fixture
def run(tmp_path):
    rows = [METRICS]
    for step in range(1, 1001):
        val = 5 - 4 * step / 1000 + (6 * (step - 600) / 1000 if step > 600 else 0) if step % 100 == 0 else ""
        loss, norm = 5.5 - 5 * step / 1000, {7: "nan", 8: "inf"}.get(step, 1)  # of steps that were skipped
        rows.append(f"{step},{step / 500},{step * 512},{loss},{val},0.02,{norm},9,{step / 9},0")
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data


def test_a_page_that_needs_nothing_else(run):
    (run / "test.json").write_text(
        json.dumps(TEST | {"baselines": BASELINES, "overlap": {"in_words": "none & none"}})
    )
    (run / "samples.jsonl").write_text(
        '{"step": 100, "text": "<script>alert(1)</script>\u2028on"}\n', "utf-8"
    )
    text = report.write(run).read_text()
    page = Page(text)
    assert not page.links and "http" not in text and "url(" not in text and "@import" not in text
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.words
    assert "prefers-color-scheme: dark" in text
    for words in (
        "2.500",
        "50.0%",
        "uniform",
        "none & none",
        "training 0.5",
        "validation 3.4",
        "best 2.600",
        "<b>.txt",
    ):
        assert words in page.words, words
    assert "It is overfitting: from step 600 to 1000" in page.words
    found = [ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", text, re.DOTALL)]
    curves = [svg for svg in found if svg.find("polyline") is not None]
    assert len(curves) == 3
    for svg in curves:
        width, height = map(float, svg.attrib["viewBox"].split()[2:])
        for line in svg.iter("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
            assert points and all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_text_of_charts_has_its_size_on_every_screen(run):
    """What is scaled to the width, by a viewBox, holds no text."""
    text = report.write(run).read_text()
    for svg in re.findall("<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(svg)
        assert ("viewBox" in root.attrib) == (root.find("text") is None)
        places = [node.attrib["x"] for node in root.iter("text")]
        assert all(x == "-8" or 0 <= float(x.removesuffix("%")) <= 100 for x in places)
    sizes = re.findall(r"svg (?:text|\.tick) \{[^}]*font-size: (\d+)px", text)
    assert len(sizes) == 2 and min(map(int, sizes)) >= 11


def test_what_samples_repeat_is_a_sentence_of_the_page(run):
    overlap = {"n_samples": 4, "bytes": 7, "text": "a & {b}", "held_out_bytes": 5}
    (run / "test.json").write_text(json.dumps(TEST | {"baselines": BASELINES, "overlap": overlap}))
    words = (
        "Longest stretch of the training text in 4 samples: 7 bytes, 'a & {b}'; "
        "in as much text that it never saw: 5 bytes"
    )
    assert words in Page(report.write(run).read_text()).words


def test_a_run_that_has_only_begun(run):
    (run / "metrics.csv").write_text(METRICS + "\n1,0,")
    assert "0 steps" in report.write(run).read_text()
    (run / "metrics.csv").unlink()
    report.write(run)


def test_loss_png_with_matplotlib(run):
    pytest.importorskip("matplotlib")
    report.write(run)
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.47, 5.55, [1, 2, 3, 4, 5, 6]), (3, 3, [3, 4]), (0, 0, [0, 0.2])],
)
def test_ticks_are_round_and_hold_all(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)
