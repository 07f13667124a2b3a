"""`npgpt train --dry-run` tells the plan that the run then has, and writes nothing."""

import json
import re
from pathlib import Path

import pytest

from npgpt.training.run import read_config
from tests.commands.helpers import TINY, nothing_written, refused


def expected(out):
    """The lines of a training before its first step, without measured numbers."""
    lines = out[: out.index("expected: ")].splitlines()
    return lines, re.search(r"expected: (\d+) MB of memory, about (\d+) s", out)


def test_it_tells_the_plan_that_the_run_then_has(command, text):
    flags = (text, *TINY, "--steps", 3, "--split", "0.8,0.1,0.1")
    code, out, err = command("train", *flags, "--dry-run", "--json")
    assert (code, err) == (0, "") and nothing_written("text.txt")
    assert "\nnothing was written; without --dry-run the run begins\n" in out
    told = json.loads(out.splitlines()[-1])
    code, real, _ = command("train", *flags)
    assert code == 0
    lines, found = expected(out)
    assert found and lines == expected(real)[0] and len(lines) > 4
    config = read_config("runs/text")
    shared = set(told) & set(config)
    assert {"n_layer", "block_size", "split", "lr", "engine", "tokenizer", "steps"} <= shared
    assert {name: told[name] for name in shared} == {name: config[name] for name in shared}
    assert told["dry_run"] and told["parameters"] > 1000 and told["megabytes"] > 10 and told["seconds"] > 0


def test_no_run_begins_where_one_is_named_or_bad(command, text):
    assert command("train", text, *TINY, "--minutes", 5, "--dry-run", "--out", "there/run")[0] == 0
    refused(command("train", "none.txt", "--dry-run"), "none.txt: No such file")
    for flags in (("--resume",), ("--restarts", "2"), ("--launch", "mpiexec -n 2")):
        refused(
            command("train", text, "--out", "r", "--dry-run", *flags),
            f"--dry-run plans a new run, so {flags[0]} cannot be given",
        )
    Path("taken").mkdir()
    Path("taken/file").write_text("x")
    refused(command("train", text, *TINY, "--dry-run", "--out", "taken"), "taken")
    assert nothing_written("text.txt", "taken") and len(list(Path("taken").iterdir())) == 1


@pytest.mark.parametrize("minutes", [1, 90])
def test_minutes_are_the_time(command, text, minutes):
    out = command("train", text, *TINY, "--minutes", minutes, "--split", "1", "--dry-run", "--json")[1]
    assert 60 * minutes - 30 < json.loads(out.splitlines()[-1])["seconds"] <= 60 * minutes
