"""`--resume --steps`: a run that has ended is trained for longer, to the same bits however often it stops."""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from npgpt.training import checkpoint
from tests.commands.helpers import FLAGS, TINY, refused, stopped, weights


def config(run):
    return tomllib.loads((Path(run) / "config.toml").read_text())


def rates(run):
    rows = [row.split(",") for row in (Path(run) / "metrics.csv").read_text().splitlines()[1:]]
    return [float(row[5]) for row in rows]


@pytest.fixture
def done(command, text):
    """A finished run of 9 steps."""
    assert command("train", text, *FLAGS, "--warmup", 1, "--out", "r")[0] == 0
    return Path("r")


def test_a_finished_run_goes_on_with_the_rate_of_a_longer_one(command, text, done):
    command("evaluate", done)
    before = rates(done)
    code, out, err = command("train", "--resume", "--out", done, "--steps", 20)
    assert code == 0 and err == "" and "done after 20 steps" in out
    said = re.search(r"the learning rate is now that of a run of 20 steps: from (\S+) to (\S+), linear", out)
    assert command("train", text, *FLAGS, "--warmup", 1, "--steps", 20, "--out", "planned")[0] == 0
    assert rates(done)[:9] == before and rates(done)[9:] == pytest.approx(rates("planned")[9:])
    assert [float(rate) for rate in said.groups()] == pytest.approx(
        [rates(done)[9], rates(done)[19]], rel=0.05
    )
    assert config(done)["steps"] == 20 and (done / "report.html").exists()
    assert not (done / "test.json").exists()  # it was of the shorter run
    assert "r is finished: done after 20 steps" in command("train", "--resume", "--out", done)[1]
    assert command("train", "--resume", "--out", done, "--epochs", 4)[0] == 0  # of 6 steps, as a length too
    assert config(done)["steps"] == 24


@pytest.mark.parametrize("at", [9, 10, 15])  # before its first step, before its first checkpoint, after that
def test_killed_on_the_way_it_ends_in_the_same_bits(command, done, monkeypatch, at):
    shutil.copytree(done, "whole")
    assert command("train", "--resume", "--out", "whole", "--steps", 20)[0] == 0

    class Killed(BaseException):
        pass

    from npgpt.training.trainer import Trainer

    step = Trainer._one_step

    def until(self, context):
        if self.step == at:
            raise Killed
        return step(self, context)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_step", until)
        with pytest.raises(Killed):
            command("train", "--resume", "--out", done, "--steps", 20)
    if at == 15:  # the newest checkpoint is broken: one before the former end will do
        for folder in checkpoint.checkpoints(done)[:1]:
            (folder / "optimizer.safetensors").write_bytes(b"")
    assert command("train", "--resume", "--out", done)[0] == 0
    assert weights(done) == weights("whole") and rates(done) == rates("whole")


def test_a_checkpoint_before_the_former_end_is_enough(command, done):
    shutil.copytree(done, "whole")
    assert command("train", "--resume", "--out", "whole", "--steps", 20)[0] == 0
    path = done / "config.toml"  # as if killed at once, and the last checkpoint broke
    path.write_text(path.read_text().replace("steps = 9", "steps = 20"))
    (checkpoint.checkpoints(done)[0] / "optimizer.safetensors").write_bytes(b"")
    assert command("train", "--resume", "--out", done)[0] == 0
    assert weights(done) == weights("whole") and rates(done) == rates("whole")


def test_what_cannot_be_longer_is_refused(command, text, done, monkeypatch):
    before = (done / "config.toml").read_bytes()
    for flags, message in (
        (["--steps", 5], "--resume: steps must be above the 9 that are done, got 5"),
        (["--epochs", 1], "--resume: steps must be above the 9 that are done, got 6"),
        (["--minutes", "0.00001"], "--resume: minutes must be above the 0.0"),
        (["--steps", 20, "--lr", 0.5], "--resume: lr is 0.02 in this run, got 0.5"),
        (["--steps", 20, "--epochs", 5], "cannot both be given"),
    ):
        refused(command("train", "--resume", "--out", done, *flags), message)
    assert (done / "config.toml").read_bytes() == before and (done / "report.html").exists()
    assert "is finished" in command("train", "--resume", "--out", done, "--steps", 9)[1]
    assert command("train", text, *FLAGS, "--target-loss", 9, "--out", "reached")[0] == 0
    refused(
        command("train", "--resume", "--out", "reached", "--steps", 20), "reached its target after 1 steps"
    )
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", text, *FLAGS, "--out", "half")[0] == 130
    refused(command("train", "--resume", "--out", "half", "--steps", 20), "steps is 9 in this run, got 20")


def test_patience_begins_again(command, text):
    flags = (*TINY, "--split", "0.5,0.5", "--eval-every", 1, "--lr", 1, "--warmup", 0, "--patience", 2)
    _, out, _ = command("train", text, *flags, "--steps", 50, "--json", "--out", "r")
    first = json.loads(out.splitlines()[-1])
    assert first["ended"] == "patience"
    _, out, _ = command("train", "--resume", "--out", "r", "--steps", 60, "--json")
    assert json.loads(out.splitlines()[-1])["steps"] >= first["steps"] + 2


@pytest.mark.parametrize("first", [("--minutes", 0.02), ("--steps", 9)])
@pytest.mark.parametrize("then", ["--minutes", "--steps"])
def test_minutes_and_steps_follow_each_other(command, text, first, then):
    _, out, _ = command("train", text, *TINY, *first, "--out", "r", "--json")
    before = json.loads(out.splitlines()[-1])
    more = before["steps"] + 12 if then == "--steps" else before["seconds"] / 60 + 0.04
    code, out, _ = command("train", "--resume", "--out", "r", then, more, "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["ended"] == "done" and result["steps"] > before["steps"]
    name, other = ("steps", "minutes") if then == "--steps" else ("minutes", "steps")
    assert config("r")[name] == pytest.approx(more) and other not in config("r")
    assert result["steps"] == more or then == "--minutes"
    assert "is finished" in command("train", "--resume", "--out", "r")[1]


def test_the_end_of_a_run_that_still_got_better_gives_the_command(command, text):
    flags = (*TINY, "--split", "0.5,0.5", "--eval-every", 2, "--steps", 20)
    code, out, _ = command("train", text, *flags, "--out", "my run", "--json")
    before, now = json.loads(out.splitlines()[-1])["falling"]
    assert (
        f"it still got better: the validation loss fell from {before:.4f} to {now:.4f} in the last fifth"
        in out
    )
    (line,) = [line for line in out.splitlines() if line.startswith("for longer: ")]
    assert line == "for longer: python -m npgpt.train --resume --out 'my run' --steps 40"
    words = shlex.split(line.removeprefix("for longer: python -m npgpt."))
    code, out, _ = command(*words)
    assert code == 0 and "done after 40 steps" in out


def test_a_run_that_is_not_memorised_gives_the_command(command, text):
    _, out, _ = command("train", text, *TINY, "--steps", 5, "--out", "r")
    assert "not memorised yet: the training loss should be 0.04" in out
    assert "for longer: python -m npgpt.train --resume --out r --steps 10\n" in out
    assert command("train", "--resume", "--out", "r", "--steps", 10)[0] == 0


def test_a_run_that_got_no_better_says_nothing(command, text):
    flags = (*TINY, "--split", "0.5,0.5", "--eval-every", 1, "--lr", 1e-9, "--steps", 10)
    _, out, _ = command("train", text, *flags, "--json")
    assert json.loads(out.splitlines()[-1])["falling"] is None and "for longer" not in out
