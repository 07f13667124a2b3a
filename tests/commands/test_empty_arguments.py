"""An argument that is empty, as of a shell's variable that was not set, is refused by its name."""

from pathlib import Path

import pytest

import npgpt
from npgpt.text.load import load_tokenizer
from tests.commands.helpers import nothing_written, refused


@pytest.mark.parametrize(
    "line, name",
    [
        ("train text.txt|", "TEXT"),
        ("train |", "TEXT"),
        *((f"train text.txt|--{name}|", f"--{name}") for name in (
            "init-from", "config", "out", "tokenizer", "split", "clean", "engine", "steps", "launch",
        )),
        ("tune |--minutes|1", "TEXT"),
        *((f"tune text.txt|--minutes|1|--{name}|", f"--{name}") for name in ("out", "tokenizer", "split")),
        ("evaluate |text.txt", "RUN"),
        ("evaluate r|", "TEXT"),
        ("generate |a", "RUN"),
        ("generate r|a|--stop|", "--stop"),
        ("export |--to|hf|-o|x", "RUN"),
        ("export r|--to|hf|-o|", "-o/--out"),
        ("export r|--to||-o|x", "--to"),
        ("serve ", "RUN"),
        ("serve r|--host|", "--host"),
        ("serve r|--api-key|", "--api-key"),
        ("chat ", "RUN"),
        ("finetune |d.jsonl", "RUN"),
        ("finetune r|", "DATA.jsonl"),
        ("finetune r|d.jsonl|-o|", "-o/--out"),
    ],
)  # fmt: skip
def test_an_empty_argument_is_refused_by_its_name(command, text, line, name):
    what, _, rest = line.partition(" ")
    refused(command(what, *rest.split("|")), f"argument {name}: must ")
    assert nothing_written("text.txt")


@pytest.mark.parametrize("name", ["OUT", "INIT_FROM", "TOKENIZER", "SPLIT"])
def test_so_is_an_empty_variable_or_key(command, text, monkeypatch, name):
    Path("empty.toml").write_text(f'{name.lower()} = ""')
    message = f"empty.toml: {name.lower()} must not be empty"
    refused(command("train", text, "--config", "empty.toml"), message)
    monkeypatch.setenv(f"NPGPT_{name}", "")
    refused(command("train", text), f"NPGPT_{name} must not be empty")
    assert nothing_written("text.txt", "empty.toml")


def test_an_empty_key_of_the_server_is_no_key(command, monkeypatch):
    monkeypatch.setenv("NPGPT_API_KEY", "")
    refused(command("serve", "r"), "argument --api-key: must not be empty")


def test_an_empty_prompt_is_the_beginning_of_a_document(command, run):
    texts = [command("generate", run, *prompt, "--seed", 1)[1] for prompt in ([], [""])]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "call",
    [
        npgpt.load,
        npgpt.Dataset.from_text,
        lambda path: npgpt.Dataset.from_text(["text.txt", path]),
        npgpt.GPT2LMHeadModel.from_pretrained,
        npgpt.GPT2Tokenizer.from_pretrained,
        load_tokenizer,
        lambda path: npgpt.Train(dataset=path),
        lambda path: npgpt.Train(dataset="text.txt", out=path, steps=1, n_layer=1, n_embd=16, n_head=2),
        lambda path: npgpt.GPT(npgpt.GPTConfig(1, 1, 4, 4, 257)).save_pretrained(path),
    ],
)
def test_the_api_refuses_an_empty_path_too(text, call):
    with pytest.raises(ValueError, match="must not be empty"):
        call("")
    assert nothing_written("text.txt")
