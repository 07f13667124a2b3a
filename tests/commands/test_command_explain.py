"""`npgpt explain`: plain tables, shaded tokens on a terminal, JSON in AllenNLP's shape, what is refused."""

import json
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import npgpt
from npgpt.console.explanation import shaded, visible
from npgpt.explaining.anatomy import neighbours
from npgpt.explaining.page import write
from npgpt.training import checkpoint
from tests.commands.helpers import nothing_written, refused


def explained(command, run, *flags):
    code, out, err = command("explain", run, "abc ab", *flags)
    assert code == 0 and err == "", err
    return out


def test_each_token_has_a_line(command, run):
    model = npgpt.load(run)
    found = model.explain("abc ab", "d")
    lines = explained(command, run, "--target", "d").splitlines()
    assert lines[1] == f'next token "d": log probability {found.value:.4f}'
    assert lines[2] == "what speaks for it, by integrated gradients:"
    told = [line.split(maxsplit=1) for line in lines[4:]]
    assert [token for _, token in told] == ['"a"', '"b"', '"c"', '" "', '"a"', '"b"']
    np.testing.assert_allclose([float(score) for score, _ in told], found.scores, atol=6e-5)


def test_one_token_rather_than_another(command, run):
    out = explained(
        command, run, "--target", "d", "--against", "id:101", "--method", "Saliency", "--of", "logit"
    )
    value = npgpt.load(run).explain("abc ab", "d", "e", "gradient", "logit").value
    assert f'next token "d" rather than "e": logit {value:+.4f}\nhow strongly it reacts to each token,' in out
    assert not re.search(r"^[+-]\d", out, re.MULTILINE)  # lengths have no sign


def test_what_a_terminal_shows(command, run, monkeypatch):
    plain = explained(command, run)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    line = explained(command, run, "--attention").splitlines()[3]
    assert "\x1b[48;5;" in line and re.sub(r"\x1b\[[0-9;]*m", "", line) == "abc ab"
    monkeypatch.setenv("NO_COLOR", "1")
    assert explained(command, run) == plain and "\x1b" not in plain


def test_shades_have_a_sign_and_a_strength():
    line = shaded(["a", "b\x1b", "c", "d"], np.array([1.0, -1.0, 0.25, 0.0]))
    strong, against, faint = (
        "\x1b[48;5;27;38;5;231ma\x1b[0m",
        "\x1b[48;5;166;38;5;231mb\\x1b\x1b[0m",
        "48;5;153;",
    )
    assert line.startswith(strong + against) and faint in line and line.endswith("d")


def test_layers_and_parts(command, run):
    model = npgpt.load(run)
    out = explained(command, run, "--lens", "--attention", "--anatomy", "--target", "d")
    lens = model.lens("abc ab")
    share = lens.probabilities(ord("d"))[-1, -1]
    (row,) = re.findall(r"^ +1 +\"(.+)\" +([0-9.]+) +([0-9.]+) +([0-9.]+)$", out, re.MULTILINE)
    assert float(row[2]) == pytest.approx(share, abs=6e-5)
    assert float(row[3]) == pytest.approx(lens.entropy[-1, -1], abs=6e-4)
    mean = model.attention("abc ab")[0, :, -1].mean(axis=0)
    assert f'    1  {mean.max():.3f} "{"abc ab"[mean.argmax()]}"' in out
    parts = re.findall(r"^(\S+\.(?:weight|bias)) +[0-9 x]+? +\d+ +([0-9,]+) +[0-9.]+$", out, re.MULTILINE)
    assert sum(int(n.replace(",", "")) for _, n in parts) == model.num_params
    assert f"{model.num_params:,}" in out.splitlines()[-1]


def test_json_is_what_allennlp_wrote(command, run):
    out = explained(command, run, "--attention", "--lens", "--target", "d", "-o", "data.json")
    size = len(Path("data.json").read_bytes()) / 1000
    assert out.endswith(f"saved to data.json ({size:,.1f} kB)\n")
    data = json.loads(Path("data.json").read_text())
    model = npgpt.load(run)
    found = model.explain("abc ab", "d")
    assert data["instance_1"] == found.allennlp()["instance_1"]
    assert data["tokens"] == list("abc ab") and data["scores"] == found.scores.tolist()
    assert data["target"] == {"id": 100, "text": "d"} and data["against"] is None
    np.testing.assert_array_equal(data["attention"], model.attention("abc ab"))
    np.testing.assert_array_equal(data["lens"]["entropy"], model.lens("abc ab").entropy)
    first = Path("data.json").read_bytes()
    explained(command, run, "--attention", "--lens", "--target", "d", "-o", "data.json", "--threads", 3)
    assert Path("data.json").read_bytes() == first


def test_json_has_the_anatomy(command, run):
    explained(command, run, "--anatomy", "-o", "data.json")
    anatomy, model = json.loads(Path("data.json").read_text())["anatomy"], npgpt.load(run)
    ids, cosines = neighbours(model, np.array(list(b"abc ab")))
    assert [[one["id"] for one in row] for row in anatomy["neighbours"]] == ids.tolist()
    assert [[one["cosine"] for one in row] for row in anatomy["neighbours"]] == cosines.tolist()
    assert sum(part["parameters"] for part in anatomy["parts"]) == model.num_params


def test_what_it_needs_and_what_overturns_it(command, run):
    out = explained(command, run, "--reduce", "--flip", "-o", "data.json", "--method", "gradient")
    data, model = json.loads(Path("data.json").read_text()), npgpt.load(run)
    reduced, flipped = model.reduce("abc ab"), model.flip("abc ab")
    assert data["input_reduction"] == reduced.allennlp() and data["hotflip"] == flipped.allennlp()
    left = "  ".join(f'"{reduced.tokens[place]}"' for place in reduced.kept)
    assert f"({len(reduced.kept)} of 6 tokens):\n{left}\nbehind that log probability" in out
    assert f"{reduced.value_left:.4f}" in out and f"{flipped.flips[-1].value:.4f}" in out
    other = "d" if reduced.target.text != "d" else "e"
    code, _, err = command("explain", run, "abc ab", "--flip", "--target", other)
    refused((code, "", err), "target must be the most probable token")


def test_values_against_another_token_are_called_differences(command, run):
    lens = npgpt.load(run).lens("abc ab")
    best, other = lens.top[-1, -1, :2].tolist()
    out = explained(command, run, "--reduce", "--flip", "--against", f"id:{other}")
    reduced = npgpt.load(run).reduce("abc ab", best, other)
    assert reduced.against
    less = f'log probability less that of "{visible(reduced.against.text)}"'
    assert f"behind that {less} {reduced.value_left:.4f}\n" in out
    assert re.search(rf"^position +token +instead +{re.escape(less)}$", out, re.MULTILINE)


def test_a_label(command, run):
    labels = ("--label", "de", "--label", "fg", "--target", "fg", "--against", "de")
    out = explained(command, run, *labels, "--of", "prob", "--attention", "-o", "data.json")
    shares, data = npgpt.load(run).classify("abc ab", ["de", "fg"]), json.loads(Path("data.json").read_text())
    assert f'label "fg" rather than "de": probability {shares["fg"] - shares["de"]:+.4f}\n' in out
    assert data["labels"] == ["de", "fg"] and data["target"] == {"id": 1, "text": "fg"}
    assert data["tokens"] == list("abc ab\n") and np.shape(data["attention"])[-1] == 7
    assert f'label "{next(iter(shares))}": log probability ' in explained(command, run, *labels[:4])
    for flags, message in (
        (labels[:2], "labels must be two at least, got ['de']"),
        ((*labels[:4], "--lens", "--flip"), "--lens and --flip cannot be given"),
        ((*labels[:4], "--target", "x"), "target must be one of the labels de, fg, got 'x'"),
    ):
        code, _, err = command("explain", run, "abc ab", *flags)
        refused((code, "", err), message)


def test_a_gguf_file(command, run):
    """Its weights, of a block type, are read as floats; what is computed is of them."""
    assert command("export", run, "--to", "gguf", "--type", "q8_0", "-o", "model.gguf")[0] == 0
    out = explained(command, "model.gguf", "--lens", "--attention", "--target", "d")
    model = npgpt.load("model.gguf")
    assert f"log probability {model.explain('abc ab', 'd').value:.4f}" in out
    assert f"{model.lens('abc ab').entropy[-1, -1]:.3f}" in out
    assert f'{model.attention("abc ab")[0, :, -1].mean(axis=0).max():.3f} "' in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([""], "must not be empty"),
        (["abcdefgh" * 3], "text must have 1 to 16 tokens, the model's context, got 24"),
        (["abc", "--target", "xyz"], "target must be one token of the vocabulary, got 'xyz', which is 3"),
        (["abc", "--target", "id:257"], "target must be in 0..256, got 257"),
        (["abc", "--against", "ab"], "against must be one token of the vocabulary"),
        (["abc", "--method", "lime"], "method must be one of gradient, grad_x_input, integrated, smooth"),
        (["abc", "--of", "loss"], "of must be one of logprob, logit, prob, got 'loss'"),
        (["abc", "-o", "page.txt"], "-o: must be a file that ends in .json or .html, got page.txt"),
        (["abc", "--where", "-o", "page.html"], "-o: must be a file that ends in .json, got page.html"),
        (["abc", "--where", "--method", "smooth", "--of", "prob"], "--method and --of cannot be given"),
        (["abc", "--label", "a", "-o", "page.html"], "-o: a page shows next tokens, and no answer: --label"),
        (
            ["abc", "-o", "nowhere/page.html"],
            "-o: must be a file in a folder that can be written to, got now",
        ),
        (
            ["abc", "-o", "text.txt/data.json"],
            "-o: must be a file in a folder that can be written to, got te",
        ),
    ],
)
def test_bad_input(command, run, arguments, message):
    result = command("explain", run, *arguments, *(["-o", "x.json"] if "-o" not in arguments else []))
    refused((result[0], "", result[2]), message)
    assert nothing_written("run", "text.txt")


def test_a_model_without_a_tokenizer(command):
    npgpt.GPT(npgpt.GPTConfig(1, 2, 16, 16, 99)).save_pretrained("model")
    refused(command("explain", "model", "abc"), "model: must have a tokenizer to explain a text")


def test_a_file_that_cannot_be_written(command, run, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_atomically", mock.Mock(side_effect=OSError(28, "no space", "x")))
    code, _, err = command("explain", run, "abc", "-o", "data.json")
    assert code == 1 and err.count("\n") == 1 and "no space" in err


def test_a_page(command, run):
    out = explained(command, run, "--target", "d", "-o", "page.html")
    page = Path("page.html").read_bytes()
    assert out.endswith(f"saved to page.html ({len(page) / 1000:,.1f} kB)\n")
    model = npgpt.load(run)
    assert page.decode() == write(model, model.tokenizer, model.explain("abc ab", "d"), "run")
    explained(command, run, "--target", "d", "-o", "page.html", "--threads", 3)
    assert Path("page.html").read_bytes() == page
