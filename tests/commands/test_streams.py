"""stdout and stderr that are full or closed: the work is done, and the exit code is the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from tests.commands.helpers import ROOT, TINY

TRAIN = f"train text.txt {' '.join(TINY)} --steps 3 --out new"
TAUGHT = "new/adapter/adapter_model.safetensors"
DATA = "".join(json.dumps({"prompt": f"{i}", "completion": "b"}) + "\n" for i in range(8))
FILES = {  # command -> what it leaves, whatever its streams are
    TRAIN: "new/report.html",
    "finetune run data.jsonl --epochs 1 --lora 2 -o new": TAUGHT,
    "export run --to gguf -o new.gguf": "new.gguf",
    "export run --to hf -o new": "new/model.safetensors",
}
PRINTED = [
    "generate run a --seed 1",
    "evaluate run",
    "embed --cflags",
    "train --help",
    "--help",
    "bench --help",
]


def process(line, stdout="", stderr=""):
    """`python -m npgpt LINE` with its stdout and stderr full or closed -> exit code, stdout, stderr."""
    streams = dict(zip((1, 2), (stdout, stderr), strict=True))

    def close():
        for number, how in streams.items():
            if how == "closed":
                os.close(number)
            elif how == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), number)

    command = [sys.executable, "-m", "npgpt", *line.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, preexec_fn=close, timeout=120)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


@pytest.fixture(autouse=True)
def data(run):
    Path("data.jsonl").write_text(DATA)


@pytest.mark.parametrize("stdout", ["full", "closed"])
@pytest.mark.parametrize("line", FILES)
def test_work_is_done_to_its_end_and_says_what_stdout_lacks(line, stdout):
    code, _, err = process(line, stdout)
    reason = {"full": "No space left on device", "closed": "Bad file descriptor"}[stdout]
    assert code == 1
    assert err == f"npgpt {line.split()[0]}: stdout: {reason}; not all was printed\n"
    assert Path(FILES[line]).stat().st_size
    if line == TRAIN:
        assert npgpt.load("new").config.n_embd == 16


@pytest.mark.parametrize("stderr", ["full", "closed"])
@pytest.mark.parametrize("line", [TRAIN, "generate run a --seed 1", "evaluate run --json"])
def test_what_stderr_does_not_take_is_lost_and_no_result_is(line, stderr):
    code, out, _ = process(line, "", stderr)
    again = process(line.replace("--out new", "--out again"))[1]
    assert code == 0
    if not line.startswith("train"):  # which prints seconds
        assert out == again
    assert "warning" not in out


@pytest.mark.parametrize("stdout", ["full", "closed"])
@pytest.mark.parametrize("line", PRINTED)
def test_a_result_that_cannot_be_printed_is_a_failure(line, stdout):
    code, _, err = process(line, stdout)
    assert code == 1 and err.endswith("not all was printed\n") and "Traceback" not in err


def test_bad_input_is_told_where_stdout_takes_nothing():
    code, _, err = process("train missing.txt --json", "full")
    assert code == 2 and "npgpt train: missing.txt: No such file or directory\n" in err


def test_stdin_that_is_closed_is_bad_input():
    command = [sys.executable, "-m", "npgpt", "train", "-", "--out", "new"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, preexec_fn=lambda: os.close(0))
    assert done.returncode == 2 and done.stderr == b"npgpt train: -: Bad file descriptor\n"
    assert not Path("new").exists()


def test_a_training_outlives_the_reader_of_its_output():
    line = f"{TRAIN.replace('--steps 3', '--steps 60')} --eval-every 1"
    command = [sys.executable, "-u", "-m", "npgpt", *line.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as running:
        running.stdout.readline()
        running.stdout.close()
        err = running.stderr.read()
    assert running.returncode == 141 and err == b""
    assert Path("new/report.html").exists() and Path("new/step-000060").is_dir()


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("minutes", "1e308", "must be a number above 0, at most a million, got 1e308"),
        ("lr", "5e-324", "must be a number above 0, in 1e-30..1e+30, got 5e-324"),
        ("weight-decay", "1e308", "must be a number, at least 0, in 1e-30..1e+30, got 1e308"),
        ("window", "10" * 9, "must be a whole number in 1..2147483647, got 101010101010101010"),
    ],
)
def test_numbers_that_no_training_can_use_are_refused(command, flag, value, message):
    code, out, err = command("train", "text.txt", f"--{flag}", value, "--engine", "gpt-3")
    assert code == 2 and out == "" and f"--{flag}: {message}" in err


@pytest.mark.parametrize("flag", ["lr", "min-lr", "weight-decay", "clip", "target-loss"])
def test_the_smallest_numbers_that_are_accepted_train(command, flag):
    code, _, err = command("train", "text.txt", *TINY, "--steps", 3, f"--{flag}", "1e-30")
    assert code == (1 if flag == "target-loss" else 0), err
