"""`npgpt evaluate`: on the text of a run, on its test part, on another text."""

import json
from pathlib import Path

from npgpt.console import report
from tests.commands.helpers import TINY, refused


def test_evaluate(command, run):
    code, out, _ = command("evaluate", run, "--json")
    assert code == 0 and "to be memorised" in out
    result = json.loads(out.splitlines()[-1])
    assert result["tokens"] == 481 and result["loss"] > 0
    assert result["baselines"].keys() == {"uniform", "unigram", "gzip", "xz"}
    assert json.loads((run / "test.json").read_text())["loss"] == result["loss"]
    assert result["overlap"]["bytes"] >= 1 and "Longest stretch of the training text in 4 samples" in out
    assert "bits per byte" in (run / "report.html").read_text()
    Path("other.txt").write_text("abd abd")
    assert "the text given: 8 tokens" in command("evaluate", run, "other.txt")[1]
    Path("text.txt").write_bytes(b"changed")
    refused(command("evaluate", run), "has changed since the run was trained on it")
    Path("text.txt").unlink()
    refused(command("evaluate", run), "text.txt: No such file")


def test_evaluate_uses_the_test_part(command, text):
    assert command("train", text, *TINY, "--steps", 2, "--split", "0.5,0.25,0.25", "--out", "r")[0] == 0
    out = command("evaluate", "r", "--json")[1]
    assert "the test part of its text: 120 tokens" in out and "kneser-ney" in out and "counted in" in out
    assert json.loads(out.splitlines()[-1])["baselines"]["kneser-ney"].keys() == {"bits_per_byte", "seconds"}
    assert "It has not passed counting (kneser-ney, " in Path("r/report.html").read_text()
    test = json.loads(Path("r/test.json").read_text())
    Path("r/test.json").write_text(json.dumps(test | {"counted_val_loss": 9.0}))
    report.write(Path("r"))
    assert (
        "It passed counting (kneser-ney, 9.000) by step 1, after 0:00 min."
        in Path("r/report.html").read_text()
    )
