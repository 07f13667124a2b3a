"""A package npgpt_NAME with NAME.gguf in it is the model NAME: in Python, for each command, in the server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from npgpt.interop import gguf, installed
from npgpt.text.tokenizer import ByteTokenizer
from tests.commands.helpers import TINY
from tests.conftest import COMPILED


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """An installed model `azul`, and a package without a model in it."""
    site = tmp_path / "site"
    (site / "npgpt_azul").mkdir(parents=True)
    (site / "npgpt_azul/__init__.py").write_text("raise SystemExit('a package of a model is never run')\n")
    (site / "npgpt_vazio").mkdir()
    (site / "npgpt_vazio/__init__.py").write_text("")
    config = npgpt.GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=257)
    model = npgpt.GPT(config, seed=1, tokenizer=ByteTokenizer())
    gguf.write_gguf(site / "npgpt_azul/azul.gguf", model, model.tokenizer, "q8_0", "azul")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    Path("text.txt").write_text("abc abd abe " * 40)
    pairs = [{"prompt": "a", "completion": str(i)} for i in range(30)]
    Path("examples.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return site / "npgpt_azul"


def test_it_is_found_and_listed(package):
    assert installed.installed()["azul"] == package / "azul.gguf"
    assert "vazio" not in installed.installed()
    assert npgpt.load("azul").generate("abc", 20, temperature=0) == npgpt.load(
        package / "azul.gguf"
    ).generate("abc", 20, temperature=0)


@pytest.mark.parametrize("name", ["vazio", "outro", "azul.gguf", "Azul", "npgpt_azul", "../azul", "a/azul"])
def test_no_other_name_is_a_model(name):
    assert installed.located(name) == Path(name)


def test_what_lies_here_comes_first(command):
    assert command("train", "text.txt", *TINY, "--steps", 2, "--out", "azul")[0] == 0
    assert installed.located("azul") == Path("azul")
    assert npgpt.load("azul").config.n_embd != 32


COMMANDS = {
    "generate": ("azul", "abc", "--max-new-tokens", 3),
    "evaluate": ("azul", "text.txt"),
    "explain": ("azul", "abc abd", "--lens"),
    "export": ("azul", "--to", "gguf", "-o", "out.gguf"),
    "train": ("text.txt", "--init-from", "azul", "--steps", 2, "--out", "out"),
    "finetune": ("azul", "examples.jsonl", "-o", "out", "--epochs", 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_open_it(name, command):
    code, _, err = command(name, *COMMANDS[name])
    assert code == 0, err


def test_adapters_over_it_are_opened_with_it(command):
    code, _, err = command("finetune", "azul", "examples.jsonl", "-o", "out", "--epochs", 1, "--lora", 2)
    assert code == 0, err
    assert npgpt.load("out").generate("a", 5, temperature=0) == npgpt.load("azul", "out/adapter").generate(
        "a", 5, temperature=0
    )


def test_a_broken_file_is_named(package, command):
    whole = (package / "azul.gguf").read_bytes()
    (package / "azul.gguf").write_bytes(whole[: len(whole) // 2])
    code, _, err = command("generate", "azul", "abc")
    assert code == 2 and str(package / "azul.gguf") in err and len(err.splitlines()) == 1


def test_a_package_that_was_imported_by_hand_does_no_harm(monkeypatch):
    monkeypatch.setitem(sys.modules, "npgpt_feito", type(sys)("npgpt_feito"))
    assert installed.located("feito") == Path("feito")


@pytest.mark.skipif(not COMPILED, reason="serving needs libnpgpt, and it was not built")
def test_the_server_lists_it_and_opens_it_when_it_is_asked_for(command, run):
    pytest.importorskip("starlette", reason="needs pip install -e '.[server]'")
    from tests.server.process import Process

    with Process("run") as server:
        names = [model["id"] for model in json.loads(server.get("/v1/models"))["data"]]
        assert names[0] == "run" and "azul" in names
        status, answer, _ = server.ask("/v1/completions", {"model": "azul", "prompt": "a", "max_tokens": 3})
        assert status == 200 and answer["model"] == "azul"
        status, answer, _ = server.ask("/v1/models/azul", b"", "DELETE")
        assert status == 403 and "only tuned ones" in answer["error"]["message"]
    with Process("azul") as server:
        names = [model["id"] for model in json.loads(server.get("/v1/models"))["data"]]
        assert server.name == "azul" == names[0] and names.count("azul") == 1


def test_it_is_found_in_a_process_of_its_own():
    code = "import npgpt; print(npgpt.load('azul').config.n_embd)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "32\n"
