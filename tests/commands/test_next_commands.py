"""A command that another prints as the next one works as printed, for odd names and small models too."""

import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.commands.helpers import stopped

SMALL = "--n-layer 1 --n-head 2 --n-embd 16 --batch-size 4 --steps 3".split()
TALK = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]})
    + "\n"
    for i in range(12)
)
NAMES = ["run", "it's my $HOME", "-r", "a b/-c d", "é/ção", "run\ttab;ls"]


def printed(out):
    """The commands that an output names, as a shell reads them."""
    lines = out.splitlines()
    found = [line.removeprefix("go on: ") for line in lines if line.startswith("go on: python")]
    for n, line in enumerate(lines):
        if line.startswith("next: "):
            found += [line.removeprefix("next: ").strip() for line in lines[n:]]
    commands = [shlex.split(line) for line in found]
    assert commands and all(words[:2] == ["python", "-m"] for words in commands), out
    return [[words[2].removeprefix("npgpt."), *words[3:]] for words in commands]


def run_all(command, out, monkeypatch, stdin="h\n"):
    """Run what an output names and return the outputs."""
    outs = []
    for line in printed(out):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code, out, err = command(*line)
        assert code == 0 and "npgpt" not in err, (line, err)
        outs.append(out)
    return outs


@pytest.mark.parametrize("name", NAMES)
def test_what_train_prints(command, monkeypatch, name):
    """Its text, too, has the odd name."""
    text = Path(name + ".txt")
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_bytes(b"abc abd abe " * 40)
    text = f"./{text}"
    with monkeypatch.context() as patch:
        stopped(patch, 2)
        code, out, _ = command("train", text, *SMALL, f"--out={name}")
    assert code == 130
    (resumed,) = run_all(command, out, monkeypatch)
    generated, measured = run_all(command, resumed, monkeypatch)
    assert generated.startswith("abc abd") and "bits per byte" in measured


@pytest.mark.parametrize(
    "text", [b"-abc -abd ", b"it's $HOME `ls` ", b"\x00\x1b[2J a ", b"\xff\xfe ", b"-- a ", b"-1 "]
)
@pytest.mark.parametrize("context", [1, 3])
def test_what_train_prints_for_odd_texts_and_small_contexts(command, monkeypatch, text, context):
    Path("t.txt").write_bytes(text * 40)
    code, out, _ = command("train", "t.txt", *SMALL, "--block-size", context)
    assert code == 0
    run_all(command, out, monkeypatch)


@pytest.mark.parametrize("name", ["run", "it's my $HOME"])
@pytest.mark.parametrize("context", [8, 100])
def test_what_finetune_prints(command, run, text, monkeypatch, context, name):
    assert command("train", text, *SMALL, "--block-size", context, "--out", name + " parent")[0] == 0
    data = Path(f"{name}.jsonl")
    data.write_text("not JSON\n" + TALK)
    flags = ("--skip-bad", "--epochs", 2, "-o", f"{name} new")
    with monkeypatch.context() as patch:
        stopped(patch, 1)
        code, out, err = command("finetune", name + " parent", data, *flags)
    assert code == 130, err
    (resumed,) = run_all(command, out, monkeypatch)
    (reply,) = run_all(command, resumed, monkeypatch)
    assert reply.count("\n") >= 1


@pytest.mark.parametrize("text", ["it's my.txt", "-"])
def test_what_tune_prints(command, monkeypatch, text):
    content = b"the cat sat on the mat, the rat ate the hat, " * 30
    Path("it's my.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, err = command("tune", text, "--minutes", 0.02)
    assert code == 0, err
    (trained,) = run_all(command, out, monkeypatch)
    assert "saved to runs/" in trained


def test_the_way_out_of_a_model_without_roles(command, run):
    run.rename("it's")
    err = command("chat", "it's")[2]
    words = shlex.split(err.split("; ")[1].split(" gives")[0])
    assert words[2:4] == ["npgpt.finetune", "it's"]
    Path("DIALOGUES.jsonl").write_text(TALK)
    assert command("finetune", *words[3:], "--epochs", 1)[0] == 0
