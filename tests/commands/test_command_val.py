"""`npgpt train --val`: a text of its own for validation, instead of a part of the text."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.commands.helpers import TINY, nothing_written, refused, stopped, weights

STEPS = (*TINY, "--steps", 9, "--dropout", 0.1, "--save-every", 2, "--seed", 3)


@pytest.fixture
def other():
    Path("other.txt").write_bytes(b"bcd bce abc " * 30)
    return Path("other.txt")


def test_validation_is_the_other_text_whole(command, text, other):
    code, out, err = command("train", text, *STEPS, "--val", other, "--json", "--out", "r")
    assert code == 0 and err == ""
    assert "tokens: 481 for training, 361 for validation, 0 for testing" in out
    result = json.loads(out.splitlines()[-1])
    measured = command("evaluate", "r", other, "--json")[1].splitlines()[-1]
    assert result["val_loss"] == pytest.approx(json.loads(measured)["loss"], abs=1e-5)
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert config["val"] == str(other.resolve()) and config["split"] == [1, 0, 0]
    assert len(config["about"]["val_sha256"]) == 64 and not config["about"]["memorise"]
    report = Path("r/report.html").read_text()
    assert "other.txt" in report and str(other.resolve()) not in report
    # without a test part the model is measured on the text that it never saw
    code, out, _ = command("evaluate", "r", "--json")
    assert code == 0 and "measured on its validation text (there is no test part): 361 tokens" in out
    assert json.loads(out.splitlines()[-1])["loss"] == json.loads(measured)["loss"]


def test_a_part_for_testing_can_be_held_out_beside_it(command, text, other):
    _, out, _ = command("train", text, *STEPS, "--val", other, "--split", "0.75,0,0.25", "--out", "r")
    assert "tokens: 361 for training, 361 for validation, 120 for testing" in out
    assert "measured on the test part of its text: 120 tokens" in command("evaluate", "r")[1]


def test_the_text_for_validation_changes_no_weight_and_is_resumed(command, text, other, monkeypatch):
    assert command("train", text, *STEPS, "--val", other, "--out", "whole")[0] == 0
    assert command("train", text, *STEPS, "--split", 1, "--out", "without")[0] == 0
    assert weights("whole") == weights("without")
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", text, *STEPS, "--val", other, "--out", "r")[0] == 130
    moved = other.rename("moved.txt")
    refused(command("train", "--resume", "--out", "r"), "other.txt")
    assert command("train", "--resume", "--out", "r", "--val", moved)[0] == 0
    assert weights("r") == weights("whole")
    assert "is finished" in command("train", "--resume", "--out", "r", "--val", moved)[1]
    moved.write_bytes(b"abd")
    refused(
        command("train", "--resume", "--out", "r", "--val", moved), "moved.txt: is not the validation text"
    )
    refused(command("train", "--resume", "--out", "without", "--val", moved), "val is None in this run")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--val", "none.txt"], "none.txt: No such file or directory"),
        (["--val", ""], "must not be empty"),
        (["--val", "-"], "--val must be a file or a folder, got -"),
        (["--val", "other.txt", "--split", "0.8,0.2"], "split must hold out no validation part beside val"),
    ],
)
def test_bad_flags(command, text, other, flags, message):
    refused(command("train", text, *STEPS, *flags), message)
    assert nothing_written(text.name, other.name)


def test_lines_that_were_trained_on_are_counted(command):
    lines = [f"linha {n:03} de um texto que ninguém escreveu\n" for n in range(60)]
    Path("text.txt").write_text("".join(lines[:50]), encoding="utf-8")
    Path("val.txt").write_text("".join(lines[45:]), encoding="utf-8")
    code, _, err = command("train", "text.txt", *STEPS, "--val", "val.txt")
    assert code == 0 and err.splitlines()[0] == (
        "warning: val.txt: 5 of 15 lines of 40 bytes or more are in the training text too; "
        "validation is too easy"
    )
    Path("val.txt").write_text("".join(lines[50:]), encoding="utf-8")
    assert "too easy" not in command("train", "text.txt", *STEPS, "--val", "val.txt")[2]
