"""`npgpt compare`: the table, its files and its JSON, and what it refuses; the same from Python."""

import csv
import json
import math
import re
import statistics
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest

import npgpt
from npgpt.training import checkpoint
from tests.commands.helpers import TINY, nothing_written, refused, text_path

SPLIT = "--split 0.6,0.2,0.2 --eval-every 2".split()
SEEDS = "abc abd abe " * 40


@pytest.fixture
def runs(command, trained):
    """Three runs of one text: two that differ by their seed alone, and one of another size."""
    trained("--split", "0.6,0.2,0.2", a=SEEDS)
    for name, *flags in (("s1", "--seed", 1), ("s2", "--seed", 2), ("wide", "--n-embd", 32)):
        result = command("train", text_path("a"), *TINY, *SPLIT, "--steps", 4, *flags, "--out", name)
        assert result[0] == 0, result
    return "s1", "s2", "wide"


def losses(run, column="val_loss"):
    with open(Path(run) / "metrics.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_the_table_has_what_differs_and_the_spread_of_seeds(command, runs):
    code, out, err = command("compare", *runs, "--json")
    assert code == 0 and err == ""
    head, first, second, mean, wide, last = out.splitlines()
    assert re.split(r"  +", head) == [
        *(
            "run",
            "n_embd",
            "seed",
            "train loss",
            "val loss",
            "val bits/byte",
            "minutes",
            "steps done",
            "tokens",
        )
    ]
    assert [line.split()[:3] for line in (first, second)] == [["s1", "16", "1"], ["s2", "16", "2"]]
    assert wide.split()[:3] == ["wide", "32", "0"]
    best = [min(losses(run)) for run in runs]
    spread = statistics.mean(best[:2]), statistics.stdev(best[:2])
    assert mean.startswith("mean of 2 seeds ") and "{:.4f} ± {:.4f}".format(*spread) in mean
    assert f"{best[2]:.4f}" in wide
    told = json.loads(last)
    assert told["settings"] == ["n_embd", "seed"] and told["warnings"] == []
    assert [run["val_loss"] for run in told["runs"]] == best
    (group,) = told["seeds"]
    assert group["runs"] == ["s1", "s2"]
    assert (group["val_loss"]["mean"], group["val_loss"]["deviation"]) == pytest.approx(spread)
    for run, row in zip(runs, told["runs"], strict=True):
        assert row["settings"]["n_embd"] == (32 if run == "wide" else 16) and row["ended"] is True
        assert row["train_steps"] == 4 and row["train_tokens"] == losses(run, "tokens")[-1]
        assert (
            row["train_minutes"] == pytest.approx(losses(run, "seconds")[-1] / 60) and row["train_loss"] > 0
        )
        # the text is of bytes, so that a token but the end of text is a byte
        assert row["val_bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2), rel=0.02)


def test_what_evaluate_measured_is_in_the_table(command, runs):
    assert command("evaluate", "s1")[0] == 0
    told = npgpt.compare(["s1", "s2"])
    test = json.loads(Path("s1/test.json").read_text())
    assert told.runs[0].test_loss == test["loss"] and told.runs[1].test_loss is None
    assert told.runs[0].test_bits_per_byte == test["bits_per_byte"]
    assert told.spread(told.groups[0], "test_loss") is None, "one of two is no spread"
    assert "test loss" in str(told) and "test bits/byte" in str(told)


def test_the_csv_has_all_digits(command, runs, monkeypatch):
    assert command("compare", *runs, "--csv", "t.csv")[0] == 0
    text = Path("t.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["run"] for row in rows] == list(runs)
    assert [float(row["val_loss"]) for row in rows] == [min(losses(run)) for run in runs]
    assert [row["seeds"] for row in rows] == ["2", "2", "1"]
    assert rows[0]["val_loss_mean"] == rows[1]["val_loss_mean"] != "" == rows[2]["val_loss_mean"]
    monkeypatch.setenv("LC_ALL", "pt_BR.UTF-8")
    _code, out, _err = command("compare", *runs, "--csv", "pt.csv")
    assert "média de 2 sementes" in out and re.search(r"\d,\d{4} ± \d,\d{4}", out)
    assert Path("pt.csv").read_text() == text
    monkeypatch.setenv("LC_ALL", "C")
    assert command("compare", *runs)[0] == 0  # English again, for the tests that follow


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.curves, self.links, self.words = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.curves += [dict(attributes)["points"]] if tag == "polyline" else []
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data


def test_the_page_has_the_curves_of_all_runs(command, runs):
    Path("<b>").symlink_to("wide")
    assert command("compare", "s1", "s2", "<b>", "--html", "t.html")[0] == 0
    page = Page(Path("t.html").read_text(encoding="utf-8"))
    assert page.links == [], "it asks nothing of the network"
    assert len(page.curves) == 3 * 3  # validation by steps and by time, training
    assert [len(curve.split()) for curve in page.curves] == [len(losses("s1"))] * 6 + [4] * 3
    assert "3 runs" in page.words and "mean of 2 seeds" in page.words and "<b>" in page.words


def test_other_tokenizers_compare_by_bits_per_byte(command, runs):
    flags = [*TINY, *SPLIT, "--steps", 4, "--seed", 1, "--tokenizer", "bpe:260", "--out", "bpe"]
    assert command("train", text_path("a"), *flags)[0] == 0
    code, out, err = command("compare", "s1", "bpe", "--json")
    assert code == 0
    said = "s1 and bpe have different tokenizers: compare bits per byte, not their losses"
    assert err == f"warning: {said}\n"
    told = json.loads(out.splitlines()[-1])
    assert told["settings"] == ["tokenizer"] and told["warnings"] == [said] and told["seeds"] == []
    assert all(run["val_bits_per_byte"] > 0 for run in told["runs"])
    # a token of bpe:260 is more than a byte
    ratio = [run["val_loss"] / run["val_bits_per_byte"] for run in told["runs"]]
    assert ratio[1] > 1.2 * ratio[0]


def test_other_texts_do_not_compare(command, runs):
    Path(text_path("b")).write_text("o sol e o mar " * 40)
    flags = [*TINY, *SPLIT, "--steps", 4, "--seed", 1, "--out", "other"]
    assert command("train", text_path("b"), *flags)[0] == 0
    err = command("compare", "s1", "other")[2]
    assert err.startswith("warning: s1 and other are validated on different texts") and err.count("\n") == 1
    assert npgpt.compare(["s1", "other"]).settings == ["text"]


def test_a_text_that_was_moved_is_no_other_text(command, runs):
    Path("moved").mkdir()
    Path(text_path("a")).rename("moved/c.txt")
    flags = [*TINY, *SPLIT, "--steps", 4, "--seed", 3, "--out", "s3"]
    assert command("train", "moved/c.txt", *flags)[0] == 0
    told = npgpt.compare(["s1", "s2", "s3"])
    assert told.settings == ["seed"] and [len(group) for group in told.groups] == [3]


def test_runs_that_were_taught_have_their_own_settings(command, runs):
    examples = Path("e.jsonl")
    lines = [{"prompt": f"{n}\n", "completion": "a"} for n in range(10)]
    examples.write_text("\n".join(map(json.dumps, lines)))
    for name, *flags in (("f1",), ("f2", "--lora", 2)):
        assert command("finetune", "s1", examples, "--epochs", 1, *flags, "-o", name)[0] == 0
    told = npgpt.compare(["f1", "f2"])
    assert "lora" in told.settings and "skip_bad" not in told.settings and told.warnings == []
    assert all(run.val_loss and run.val_bits_per_byte is None for run in told.runs)
    assert "validated on different texts" in npgpt.compare(["s1", "f1"]).warnings[0]


def test_a_run_before_its_first_checkpoint_is_compared_and_told(command, runs):
    for path in checkpoint.checkpoints(Path("s2")):
        checkpoint.shutil.rmtree(path)
    code, out, err = command("compare", "s1", "s2")
    assert code == 0 and "mean of 2 seeds" in out
    assert err == "warning: s2 has not ended, so its figures are those of its last row\n"


def test_python_has_the_same_whichever_is_imported_first(runs):
    told = npgpt.compare(runs)
    module = import_module("npgpt.compare")
    assert npgpt.compare is module or npgpt.compare(runs) == told
    assert module(runs) == told and str(module("s1")).count("\n") == 1
    shown = told._repr_html_()
    assert shown.startswith("<table>") and "mean of 2 seeds" in shown


def test_what_it_refuses(command, runs):
    refused(command("compare"), "the following arguments are required: RUN")
    refused(command("compare", "s1", "none"), "none: No such file or directory")
    refused(
        command("compare", "s1", "texts"), "texts: must be the folder of a run, with config.toml and metr"
    )
    refused(command("compare", "s1", text_path("a")), "a.txt: must be the folder of a run")
    refused(command("compare", "s1", "./s1"), "./s1: is given twice")
    refused(command("compare", "s1", "--csv", "no/t.csv"), "--csv: must be a file in a folder that is there")
    refused(command("compare", "s1", "--html", "s2"), "--html: must be a file in a folder that is there")
    (Path("s2") / "metrics.csv").write_text("step\n")
    refused(command("compare", "s1", "s2", "--csv", "t.csv"), "s2/metrics.csv: line 1 must be step,epoch")
    with pytest.raises(ValueError, match="compare: runs must be folders of runs, got none"):
        npgpt.compare([])
    assert nothing_written("run", "s1", "s2", "wide", "texts")
