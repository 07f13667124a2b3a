"""Every command that takes a model takes a GGUF file, and refuses one that the readers refuse."""

import json
from pathlib import Path

import pytest

import npgpt
from npgpt.serve import open_model
from tests.commands.helpers import nothing_written, refused
from tests.conftest import COMPILED
from tests.gguf_files import READ, REFUSED

OPENED = [case for case in READ if case.name in ("a copy of the embedding", "padding", "own, a window")]
LOST = [
    case
    for case in REFUSED
    if case.name in ("not causal", "an untied head", "a norm in f16", "add_bos_token")
]
COMMANDS = {
    "generate": ("abc", "--max-new-tokens", 3),
    "evaluate": ("text.txt",),
    "export": ("--to", "hf", "-o", "out"),
    "finetune": ("examples.jsonl", "-o", "out", "--epochs", 1),
    "chat": (),
}


@pytest.fixture(autouse=True)
def files():
    Path("text.txt").write_text("abc abd abe " * 9)
    pairs = [{"prompt": "a", "completion": str(i)} for i in range(30)]
    Path("examples.jsonl").write_text("\n".join(map(json.dumps, pairs)))


@pytest.mark.parametrize("case", OPENED, ids=lambda case: case.name)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "chat"])
def test_commands_open_it(name, case, command):
    path = case.write(Path.cwd())
    code, _, err = command(name, path.name, *COMMANDS[name])
    assert code == 0, err


@pytest.mark.parametrize("case", LOST, ids=lambda case: case.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_it(name, case, command):
    path = case.write(Path.cwd())
    refused(command(name, path.name, *COMMANDS[name]), case.refused)
    assert nothing_written("text.txt", "examples.jsonl", path.name)


@pytest.mark.parametrize("case", LOST, ids=lambda case: case.name)
def test_so_do_load_and_the_server(case):
    path = case.write(Path.cwd())
    for opens in [npgpt.load, open_model] if COMPILED else [npgpt.load]:
        with pytest.raises(ValueError, match=case.refused):
            opens(path)
