"""Experiments as files: --config alone trains and teaches, and a run repeats itself from its config.toml."""

import json
import tomllib
from pathlib import Path

import pytest

from npgpt.training.run import to_toml
from tests.commands.helpers import TINY, nothing_written, refused, stopped, weights

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4}


def experiment(name, **table):
    Path(name).write_text(to_toml(table), encoding="utf-8")
    return name


def config_of(run):
    return tomllib.loads(Path(run, "config.toml").read_text(encoding="utf-8"))


@pytest.fixture
def records():
    """Records of which two are equal, and some of two documents."""
    lines = [{"body": f"o sol {n % 7} e o mar", "n": n} for n in range(60)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    Path("v.txt").write_text("o mar e o sol\n" * 20)
    return "a.jsonl"


@pytest.fixture
def examples():
    lines = [{"text": f"dia {n}", "label": "ab"[n % 5 == 0]} for n in range(20)] + [{"text": ""}]
    Path("e.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return "e.jsonl"


def test_a_file_alone_trains(command, records):
    whole = {"text": [records], "field": "body", "dedupe": "none", "documents": "joined", "val": "v.txt"}
    whole |= {"clean": "none", "encoding": "utf-8", "out": "r", "steps": 3, "seed": 5, "tokenizer": "bytes"}
    code, out, err = command("train", "--config", experiment("e.toml", **whole, **SIZES), "--json")
    assert (code, err) == (0, "") and json.loads(out.splitlines()[-1])["run"] == "r"
    config = config_of("r")
    paths = {"text": [str(Path(records).resolve())], "val": str(Path("v.txt").resolve()), "out": None}
    assert {name: config.get(name) for name in whole} == whole | paths
    # and the run repeats itself, in any folder
    Path("else").mkdir()
    again = command("train", "--config", "r/config.toml", "--out", "else/s")
    assert again[0] == 0 and weights("r") == weights("else/s")
    assert {k: v for k, v in config_of("else/s").items() if k != "about"} == {
        k: v for k, v in config.items() if k != "about"
    }


def test_the_command_line_comes_first(command, records, text):
    file = experiment("e.toml", text=records, field="body", steps=2, **SIZES)
    assert command("train", text, "--config", file, "--field", "text", "--out", "r")[0] == 0
    config = config_of("r")
    assert config["text"] == [str(text.resolve())] and config["field"] == "text" and config["steps"] == 2


def test_an_experiment_is_resumed_by_the_same_command(command, text, monkeypatch):
    file = experiment("e.toml", text=str(text), steps=6, out="r", **SIZES)
    with monkeypatch.context() as patch:
        stopped(patch, 2)
        assert command("train", "--config", file, "--resume")[0] == 130  # which begins it
    code, out, err = command("train", "--config", file, "--resume")
    assert (code, err) == (0, "") and "going on after step 2" in out
    assert command("train", "--config", file, "--out", "whole")[0] == 0
    assert weights("r") == weights("whole")


def test_a_moved_text_is_found_by_a_resume_with_the_file(command, text, monkeypatch):
    file = experiment("e.toml", text=str(text), steps=4, out="r", **SIZES)
    with monkeypatch.context() as patch:
        stopped(patch, 2)
        assert command("train", "--config", file)[0] == 130
    text.rename("r/text.txt")
    refused(command("train", "--config", file), "r: exists already")
    assert command("train", "--config", file, "--resume")[0] == 0


def test_the_folder_of_a_file_is_where_restarts_look(command, text):
    file = experiment("e.toml", text=str(text), steps=2, out="r", **SIZES)
    assert command("train", "--config", file, "--restarts", 1)[0] == 0
    assert config_of("r")["steps"] == 2
    experiment("e.toml", text="-", steps=2, **SIZES)
    refused(command("train", "--config", file, "--restarts", 1), "-: stdin can be read only once")


def test_a_file_alone_teaches(command, run, examples):
    whole = {"init_from": "run", "text": examples, "skip_bad": True, "balance": True, "lora": 2, "epochs": 2}
    whole |= {"val_fraction": 0.3, "seed": 4, "out": "f", "lr": 0.01}
    code, out, err = command("finetune", "--config", experiment("e.toml", **whole))
    assert code == 0, (out, err)
    config = config_of("f")
    kept = {name: value for name, value in whole.items() if name not in ("init_from", "text", "out")}
    assert {name: config[name] for name in kept} == kept
    assert config["about"]["skip_bad"] is config["about"]["balance"] is True
    again = command("finetune", "--config", "f/config.toml", "-o", "g")
    assert again[0] == 0, again
    read = [(Path(run_) / "metrics.csv").read_text().splitlines() for run_ in "fg"]
    losses = [[line.split(",")[3:5] for line in rows] for rows in read]
    assert losses[0] == losses[1] and len(losses[0]) > 2
    # flags come first, and it is resumed by its file
    assert command("finetune", "run", examples, "--config", "e.toml", "--lora", 3, "-o", "h")[0] == 0
    assert config_of("h")["lora"] == 3
    assert "is finished" in command("finetune", "--config", "e.toml", "--resume")[1]


def test_an_adapter_belongs_to_the_model_of_its_file(command, run, examples):
    flags = ["--skip-bad", "--lora", 2, "--epochs", 1]
    assert command("finetune", "run", examples, *flags, "-o", "f")[0] == 0
    whole = {"init_from": "run", "adapter": "f/adapter", "text": examples, "skip_bad": True, "epochs": 1}
    file = experiment("e.toml", **whole)
    assert command("finetune", "--config", file, "-o", "g")[0] == 0
    assert config_of("g")["adapter"] == str(Path("f/adapter").resolve())
    assert command("finetune", "run", "--config", file, "-o", "h")[0] == 0
    assert "adapter" not in config_of("h")
    again = command("finetune", "--config", "g/config.toml", "-o", "i")
    assert again[0] == 0 and weights("g") == weights("i")


def test_arguments_may_stand_between_flags_as_before(command, run, examples):
    assert command("finetune", "run", "-o", "f", examples, "--skip-bad", "--epochs", 1)[0] == 0


@pytest.mark.parametrize(
    "toml, message",
    [
        ("n_embed = 64\nfoo = 1", "e.toml: n_embed (n_embd?) and foo are not settings"),
        ("a = 1\nb = 2\n[model]\nn_embd = 3", "e.toml: a, b and [model] are not settings"),
        ("[model]\nn_embd = 3", "e.toml: [model] is not a setting"),
        ("resume = true", "e.toml: resume is not a setting"),
        ("lora = 2\ntext = 'text.txt'", "e.toml: lora is not a setting"),
        ("text = 3", "e.toml: text must be a path or a list of paths, got 3"),
        ("text = []", "e.toml: text must be a path or a list of paths, got []"),
        ("text = ['']", "e.toml: text must be a path or a list of paths, got ['']"),
        ("text = 'none.txt'", "none.txt: No such file or directory"),
        ("steps = 3", "TEXT must be given (or --resume --out RUN, or --config FILE with text)"),
        ("text = 'text.txt'\nfield = ''", "e.toml: field must not be empty"),
        ("text = 'text.txt'\nepochs = 1\nsteps = 1", "--epochs and --steps cannot both be given"),
    ],
)
def test_what_a_file_for_train_cannot_say(command, text, toml, message):
    Path("e.toml").write_text(toml)
    refused(command("train", "--config", "e.toml"), message)
    assert nothing_written("text.txt", "e.toml")


@pytest.mark.parametrize(
    "toml, message",
    [
        ("", "RUN and DATA.jsonl must be given (or --config FILE with init_from and text)"),
        ("init_from = 'run'", "finetune: DATA.jsonl must be given"),
        (
            "init_from = 'run'\ntext = ['e.jsonl', 'f.jsonl']",
            "e.toml: text must be one file of examples, got 2",
        ),
        (
            "init_from = 'run'\ntext = 'e.jsonl'\nskip_bad = 1",
            "e.toml: skip_bad must be true or false, got 1",
        ),
        ("init_from = 'run'\ntext = 'e.jsonl'\nsteps = 9", "e.toml: steps is not a setting"),
        ("init_from = 'run'\ntext = 'e.jsonl'", "e.jsonl: line 21: "),
    ],
)
def test_what_a_file_for_finetune_cannot_say(command, run, examples, toml, message):
    Path("e.toml").write_text(toml)
    refused(command("finetune", "--config", "e.toml"), message)
    assert nothing_written("run", "text.txt", "e.jsonl", "e.toml")


def test_the_files_of_a_text_whose_name_is_not_utf_8(command):
    name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    Path(name).write_bytes(b"abc abd abe " * 40)
    assert command("train", name, *TINY, "--steps", 2, "--out", "r")[0] == 0
    assert command("train", "--config", "r/config.toml", "--out", "s")[0] == 0
    assert weights("r") == weights("s")
