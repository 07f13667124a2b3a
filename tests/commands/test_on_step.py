"""on_step=: a function that sees every step of a training, from Python."""

import csv
import json
from pathlib import Path

import pytest

import npgpt
from npgpt.finetune import main as finetune
from npgpt.train import main as train
from npgpt.training import checkpoint
from npgpt.training.listener import Step
from tests.commands.helpers import FLAGS, TINY, weights


def rows_of(run):
    with open(Path(run) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_it_sees_what_the_metrics_have_and_changes_no_bit(command, text):
    seen = []
    assert train([str(text), *FLAGS, "--eval-every", "3", "--out", "r"], on_step=seen.append) == 0
    assert command("train", text, *FLAGS, "--eval-every", 3, "--out", "s")[0] == 0
    assert weights("r") == weights("s")
    rows = rows_of("r")
    assert [type(step) for step in seen] == [Step] * 9
    for step, row in zip(seen, rows, strict=True):
        assert (step.step, step.steps, step.loss) == (int(row["step"]), 9, float(row["train_loss"]))
        assert step.val_loss == (float(row["val_loss"]) if row["val_loss"] else None)
        assert step.rate == float(row["lr"]) and f"{step.seconds:.3f}" == row["seconds"]
        assert f"{step.tokens_per_second:.0f}" == row["tokens_per_second"]
    assert len({step.rate for step in seen}) > 3


def failing(at, error):
    def fail(step):
        if step.step == at:
            raise error

    return fail


@pytest.mark.parametrize("at", [4, 9])
@pytest.mark.parametrize("error", [ValueError("enough"), ZeroDivisionError("a slip")])
def test_what_it_raises_comes_out_and_the_run_goes_on(command, text, at, error):
    assert command("train", text, *FLAGS, "--out", "whole")[0] == 0
    with pytest.raises(type(error), match=str(error)):
        train([str(text), *FLAGS, "--out", "r"], on_step=failing(at, error))
    newest = checkpoint.checkpoints(Path("r"))[0]
    checkpoint.verify(newest)
    assert checkpoint.step_of(newest) == at == int(rows_of("r")[-1]["step"])
    assert command("train", "--resume", "--out", "r")[0] == 0
    assert weights("r") == weights("whole")


def test_finetuning_calls_it_too(command, run):
    lines = [{"prompt": f"{n}\n", "completion": "abc"} for n in range(40)]
    Path("e.jsonl").write_text("\n".join(map(json.dumps, lines)))
    seen = []
    flags = ["run", "e.jsonl", "--epochs", "2", "--batch-size", "4"]
    assert finetune([*flags, "-o", "f"], on_step=seen.append) == 0
    assert [step.loss for step in seen] == [float(row["train_loss"]) for row in rows_of("f")]
    with pytest.raises(RuntimeError, match="enough"):
        finetune([*flags, "-o", "g"], on_step=failing(2, RuntimeError("enough")))
    assert checkpoint.step_of(checkpoint.checkpoints(Path("g"))[0]) == 2
    assert command("finetune", *flags, "-o", "g", "--resume")[0] == 0
    assert weights("f") == weights("g")


def test_train_of_the_article_calls_it(text):
    seen = []
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
    npgpt.Train(dataset=text, out="r", steps=3, on_step=seen.append, **sizes)
    assert [step.step for step in seen] == [1, 2, 3]


def test_it_cannot_be_called_in_other_processes(text, capsys):
    with pytest.raises(SystemExit) as refused:
        train([str(text), *TINY, "--restarts", "1", "--out", "r"], on_step=print)
    assert refused.value.code == 2 and not Path("r").exists()
    assert "on_step cannot be called by processes that --restarts begins" in capsys.readouterr().err
