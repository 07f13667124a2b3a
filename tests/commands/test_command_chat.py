"""`npgpt chat` with models whose conversations another's chat template writes."""

import json
from pathlib import Path

import pytest

import npgpt
from npgpt import chat
from npgpt.interop.gguf import write_gguf
from npgpt.runtime import libnpgpt
from npgpt.text import chat_template, examples
from tests.chat_templates import KINDS, tokenizer_of
from tests.commands.helpers import refused
from tests.models import random_model, write_speller

pytest.importorskip("jinja2")
QUESTION = [{"role": "user", "content": "oi"}]


@pytest.fixture(params=["folder", "gguf"])
def speller(request):
    """(path of a model, its tokenizer): behind the first question comes "um mar", and the end of a turn."""
    tokenizer = tokenizer_of(KINDS["chatml"])
    end = tokenizer.vocabulary.special["<|im_end|>"]
    ids = [*tokenizer.encode("um mar").tolist(), end, *tokenizer.encode("nunca")]
    write_speller(Path("model"), tokenizer, ids, len(examples.encode_chat(tokenizer, QUESTION)))
    if request.param == "folder":
        return "model", tokenizer
    write_gguf("model.gguf", npgpt.load("model"), tokenizer)
    return "model.gguf", tokenizer


@pytest.fixture
def say(command, monkeypatch):
    """say(("oi", "/quit"), "chat", "model", ...) -> (exit code, stdout, stderr)"""

    def call(lines, *args):
        lines = iter(lines)
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines, "/quit"))
        return command(*args)

    return call


def test_a_reply_ends_where_the_template_ends_a_turn(speller, say):
    path, tokenizer = speller
    assert tokenizer.vocabulary.end_of_text == "<|endoftext|>" and "<|im_end|>" not in tokenizer.end_names
    flags = "--temperature", 0, "--max-new-tokens", 30
    code, out, err = say(["oi", "/save talk.jsonl"], "chat", path, *flags)
    assert (code, out) == (0, "um mar\n"), err
    assert json.loads(Path("talk.jsonl").read_text()) == {
        "messages": [*QUESTION, {"role": "assistant", "content": "um mar"}]
    }


def test_what_was_read_is_not_read_again(speller, say, monkeypatch):
    path, tokenizer = speller
    reads, prompts, usual = [], [], (libnpgpt.Session.feed, chat.Conversation.prompt)
    monkeypatch.setattr(
        libnpgpt.Session, "feed", lambda self, ids: reads.append(len(ids)) or usual[0](self, ids)
    )
    monkeypatch.setattr(
        chat.Conversation, "prompt", lambda self: prompts.append(usual[1](self)) or prompts[-1]
    )
    code, _, err = say(["oi", "e"], "chat", path, "--temperature", 0, "--max-new-tokens", 9)
    assert code == 0, err
    said = tokenizer.encode("um mar").tolist()
    first, second = prompts
    assert second[: len(first) + len(said)] == first + said
    # what is new: the end of the turn and the line end behind it, the next question, the beginning of a reply
    behind = second[len(first) + len(said) :]
    assert (
        tokenizer.decode(behind, False)
        == "<|im_end|>\n<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reads[: len(said) + 2] == [len(first), *[1] * len(said), len(behind)]


def test_an_end_that_is_spelt_is_a_part_of_the_reply(say):
    tokenizer = tokenizer_of(KINDS["chatml"])
    end = tokenizer.vocabulary.special["<|im_end|>"]
    ids = [*tokenizer.encode("<|im_end|> um").tolist(), end]
    write_speller(Path("model"), tokenizer, ids, len(examples.encode_chat(tokenizer, QUESTION)))
    code, out, err = say(["oi"], "chat", "model", "--temperature", 0, "--max-new-tokens", 30)
    assert (code, out) == (0, "<|im_end|> um\n"), err


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_the_same_from_folder_and_file(kind):
    tokenizer = saved(kind)
    write_gguf("model.gguf", npgpt.load("model"), npgpt.load("model").tokenizer)
    talk = [*QUESTION, {"role": "assistant", "content": "ola"}, *QUESTION]
    ids = examples.encode_chat(tokenizer, talk)
    for path in ("model", "model.gguf"):
        read = npgpt.load(path).tokenizer
        assert examples.encode_chat(read, talk) == ids, path
        assert examples.end_token(read) == examples.end_token(tokenizer)


def saved(kind, **more):
    tokenizer = tokenizer_of(KINDS[kind]._replace(**more))
    model = random_model(vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save_pretrained("model")
    return tokenizer


def test_models_that_cannot_chat_are_refused(command, monkeypatch):
    random_model().save_pretrained("plain")
    refused(
        command("chat", "plain"), "plain: has neither roles nor a chat template, so it cannot chat; python"
    )
    saved("chatml", source="{{ messages.pop() }}")
    refused(command("chat", "model"), "model: chat template: line 1: reaches for 'pop' of a list; python -m")
    npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=9)).save_pretrained(
        "ids"
    )
    refused(command("chat", "ids"), "ids: has no tokenizer")
    monkeypatch.setattr(chat_template, "_process", None)
    monkeypatch.setattr(chat_template.importlib.util, "find_spec", lambda name: None)
    saved("chatml", source=KINDS["chatml"].source + "{# new #}")
    refused(command("chat", "model"), "chat template: needs jinja2: pip install 'npgpt[chat]'")


def test_a_template_that_refuses_what_is_said(command, say):
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    saved("inst", source=source + KINDS["inst"].source)
    refused(command("chat", "model", "--system", "seja breve"), "npgpt chat: chat template: no system here")
    code, out, err = say(
        ["/system x", "oi", "/reset", "/system", "oi"], "chat", "model", "--max-new-tokens", 4
    )
    assert code == 0 and err.count("npgpt chat: chat template: no system here\n") == 1
    assert out.count("\n") == 1  # the second question has a reply
