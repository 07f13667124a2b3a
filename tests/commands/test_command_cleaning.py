"""A run cleans what it is given as its text was cleaned: one answer to all spellings, from each command."""

import io
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import npgpt
from tests.commands.helpers import TINY, refused

CLEAN = "A canção é do mar.\nE o coração?\n"
SPELLINGS = [unicodedata.normalize("NFD", CLEAN), CLEAN.replace("\n", "\r\n"), "\ufeff" + CLEAN]
TOLD = "cleaned (light), as the model's own text was: "


@pytest.fixture
def messy():
    """A text with a byte-order mark, CRLF and decomposed characters."""
    text = "\ufeff" + unicodedata.normalize("NFD", CLEAN * 12).replace("\n", "\r\n")
    Path("messy.txt").write_bytes(text.encode())
    return Path("messy.txt")


@pytest.fixture
def light(command, messy):
    assert command("train", messy, *TINY, "--steps", 3, "--out", "light")[0] == 0
    return Path("light")


def test_the_model_gives_one_answer_to_all_spellings(light):
    model = npgpt.load(light)
    assert model.tokenizer.normalizer == "light"
    for text in SPELLINGS:
        assert model.score(text) == model.score(CLEAN) and model.score("A ", text) == model.score("A ", CLEAN)
        assert model.classify(text, ["sim", "não"]) == model.classify(CLEAN, ["sim", "não"])
        np.testing.assert_array_equal(model.embed([text, "b"]), model.embed([CLEAN, "b"]))
        assert model.generate(text, 9, seed=1, return_ids=True) == model.generate(
            CLEAN, 9, seed=1, return_ids=True
        )
    names = [unicodedata.normalize("NFD", "não"), "sim"]
    assert set(model.classify("a", names)) == set(names), "labels come back as they were given"
    assert model.score("a", "\ufeff") == 0, "nothing is left of it"


def test_none_cleans_nothing(command, messy):
    assert command("train", messy, *TINY, "--steps", 3, "--clean", "none", "--out", "r")[0] == 0
    tokenizer = npgpt.load("r").tokenizer
    assert (
        tokenizer.normalizer == "none" and tokenizer.decode(tokenizer.encode("\ufeffa\r\n")) == "\ufeffa\r\n"
    )
    _, out, err = command("generate", "r", "a\r\n", "--max-new-tokens", 0)
    assert out == "a\r\n\n" and "cleaned" not in err


@pytest.mark.parametrize("how", ["none", "light", "full"])
def test_evaluate_of_a_runs_own_file_is_its_own_figure(command, messy, how):
    with messy.open("ab") as file:
        file.write(b"a\x07b \t\r\n\r\n\r\n\r\nc  ")
    assert command("train", messy, *TINY, "--steps", 3, "--clean", how, "--out", "r")[0] == 0
    measured, told = [], []
    for text in ([], [messy]):
        _, out, err = command("evaluate", "r", *text, "--json")
        measured.append(json.loads(out.splitlines()[-1]))
        told.append(err)
    assert measured[0]["loss"] == measured[1]["loss"] and measured[0]["tokens"] == measured[1]["tokens"]
    assert told[0] == "" and told[1].count("\n") == int(how != "none")


def test_generate_tells_once_and_shows_the_prompt_as_it_was_given(command, light):
    _, clean, quiet = command("generate", light, CLEAN, "--seed", 3, "--max-new-tokens", 9)
    given = SPELLINGS[1]
    _, out, err = command("generate", light, given, "--seed", 3, "--max-new-tokens", 9, "--num-samples", 2)
    assert out.startswith(given + clean.removeprefix(CLEAN)) and "cleaned" not in quiet
    assert err.count("\n") == 2 and f"{TOLD}2 line ends made \\n\n" in err


def test_chat_tells_once(command, light, monkeypatch):
    talk = [{"role": "user", "content": "o mar"}, {"role": "assistant", "content": "é"}]
    Path("talk.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    assert command("finetune", light, "talk.jsonl", "-o", "r", "--epochs", 1, "--val-fraction", 0)[0] == 0
    replies = []
    for word in ("ção", unicodedata.normalize("NFD", "ção")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{word}\n{word}\n"))
        _, out, err = command("chat", "r", "--seed", 1, "--max-new-tokens", 3)
        replies.append(out)
        assert err.count(TOLD) == int(len(word) > 3)
    assert replies[0] == replies[1]


def test_examples_are_cleaned_and_a_tuned_run_goes_on_so(command, light):
    words = {"não": "ção", "sim": "mar"}
    lines = [{"text": f"{word} {n}", "label": label} for label, word in words.items() for n in range(6)]
    weights = []
    for name, form in (("nfc", "NFC"), ("nfd", "NFD")):
        rows = [unicodedata.normalize(form, json.dumps(line, ensure_ascii=False)) for line in lines]
        if form == "NFD":  # both spellings of a label in one file are one label
            rows[0] = json.dumps(lines[0])
        Path(f"{name}.jsonl").write_text("\n".join(rows))
        code, out, err = command(
            "finetune", light, f"{name}.jsonl", "-o", name, "--epochs", 2, "--val-fraction", 0.3
        )
        assert code == 0 and "accuracy on the examples held out" in out
        assert err.count(TOLD) == err.count("\n") == int(form == "NFD")
        weights.append(npgpt.load(name))
    np.testing.assert_array_equal(*(model.flat_params for model in weights))
    assert (
        weights[1].tokenizer.normalizer == "light"
        and 'clean = "light"' in Path("nfd/config.toml").read_text()
    )
    for name in ("nfc", "nfd"):
        assert json.loads(
            command(
                "finetune",
                light,
                f"{name}.jsonl",
                "-o",
                name,
                "--resume",
                "--json",
                "--epochs",
                2,
                "--val-fraction",
                0.3,
            )[1].splitlines()[-1]
        )


def test_two_spellings_of_one_label_are_one_label(command, light):
    labels = ["não", unicodedata.normalize("NFD", "não")]
    Path("d.jsonl").write_text(
        "\n".join(json.dumps({"text": str(n), "label": labels[n % 2]}) for n in range(8))
    )
    refused(
        command("finetune", light, "d.jsonl", "-o", "r"),
        "d.jsonl: must have two labels at least, got 'não' alone",
    )


def test_exports_carry_it_and_say_who_does_not_obey(command, light):
    assert command("export", light, "--to", "hf", "-o", "hf")[2] == ""
    told = command("export", light, "--to", "gguf", "-o", "m.gguf")[2]
    assert "the text was cleaned (light)" in told and "llama.cpp" in told
    for path in ("hf", "m.gguf"):
        assert npgpt.load(path).score(SPELLINGS[0]) == pytest.approx(npgpt.load(light).score(CLEAN), rel=1e-5)


def test_another_text_to_begin_from_has_its_own_cleaning(command, messy, light):
    flags = "--init-from", light, "--steps", 2
    assert command("train", messy, *flags, "--clean", "none", "--out", "raw")[0] == 0
    assert npgpt.load("raw").tokenizer.normalizer == "none"
    assert command("train", messy, *flags, "--clean", "full", "--out", "full")[0] == 0
    assert npgpt.load("full").tokenizer.normalizer == "full"
