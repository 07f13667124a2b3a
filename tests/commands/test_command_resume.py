"""`npgpt train --resume`: a run that was interrupted or killed goes on to the same bits."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import npgpt
from npgpt.training import checkpoint
from tests.commands.helpers import FLAGS, ROOT, TINY, python, refused, stopped, weights


def test_a_run_is_resumed(command, text, monkeypatch):
    assert command("train", text, *FLAGS, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        code, out, err = command("train", text, *FLAGS, "--out", "r")
        assert code == 130 and err == "" and "interrupted after 5 steps" in out
        assert out.splitlines()[-1] == "go on: python -m npgpt.train --resume --out r"
    for flags, message in (
        ("--lr 0.5", "--resume: lr is 0.02 in this run, got 0.5; a run goes on as it began"),
        ("--steps 10", "--resume: steps is 9 in this run, got 10"),
        ("--epochs 9", "--resume: steps is 9 in this run, got 54"),
        ("--minutes 1", "--resume: minutes is None in this run, got 1.0"),
        ("--seed 4", "seed is 3 in this run, got 4"),
        ("--clean full", "clean is light in this run, got full"),
        ("--split 1", "split is (0.7, 0.2, 0.1) in this run, got (1.0, 0.0, 0.0)"),
    ):
        refused(command("train", text, "--resume", "--out", "r", *flags.split()), message)
    Path("other.txt").write_bytes(b"abc abd abf " * 40)
    refused(command("train", "other.txt", "--resume", "--out", "r"), "has changed since the run began")
    for args in (["--resume", "--out", "r"], [text, *FLAGS, "--out", "r", "--resume"]):
        Path("again").exists() or shutil.copytree("r", "again")
        code, out, err = command("train", *["again" if arg == "r" else arg for arg in args])
        assert code == 0 and err == "" and "going on after step 5" in out
        assert weights("again") == weights("whole")
        shutil.rmtree("again")
    assert command("train", "--resume", "--out", "r", "--threads", 1, "--keep", 5)[0] == 0
    code, out, err = command("train", "--resume", "--out", "r")
    assert code == 0 and err == "" and "r is finished: done after 9 steps" in out


def test_resume_without_a_checkpoint_starts(command, text, monkeypatch):
    assert command("train", text, *FLAGS, "--out", "r", "--resume")[0] == 0
    expected = weights("r")
    for folder in [*Path("r").glob("step-*")]:
        shutil.rmtree(folder)
    Path("r/LATEST").unlink(), Path("r/BEST").unlink()
    assert command("train", "--out", "r", "--resume")[0] == 0 and weights("r") == expected
    assert len(Path("r/metrics.csv").read_text().splitlines()) == 10
    Path("empty").mkdir()
    refused(command("train", "--out", "empty", "--resume"), "holds no run to resume, so TEXT must be given")
    assert command("train", text, *FLAGS, "--out", "empty", "--resume")[0] == 0
    Path("other").mkdir()
    Path("other/file").touch()
    refused(command("train", text, "--out", "other", "--resume"), "other: is no run")
    refused(command("train", "--resume"), "TEXT must be given (or --resume --out RUN, or --config FILE")


def test_resume_finds_the_last_run_of_a_text(command, text, monkeypatch):
    assert command("train", text, *FLAGS)[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 4)
        assert command("train", text, *FLAGS)[0] == 130
    assert "saved to runs/text-2" in command("train", text, "--resume")[1]
    assert "runs/text-2 is finished" in command("train", text, "--resume")[1]


def test_resume_names_a_broken_checkpoint_and_takes_the_one_before(command, text, monkeypatch):
    assert command("train", text, *FLAGS, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", text, *FLAGS, "--out", "r")[0] == 130
    path = Path("r/step-000005/optimizer.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = command("train", "--resume", "--out", "r")
    assert code == 0 and "step-000005: optimizer.safetensors must have" in err and err.count("\n") == 1
    assert "going on after step 4" in out and weights("r") == weights("whole")


def test_a_second_process_on_a_run_is_refused(command, text, monkeypatch):
    with monkeypatch.context() as patch:
        stopped(patch, 3)
        assert command("train", text, *FLAGS, "--out", "r")[0] == 130
    with open("r/lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(command("train", "--resume", "--out", "r"), "r: another process is training this run")
    assert command("train", "--resume", "--out", "r")[0] == 0


@pytest.mark.parametrize("engine", ["gpt", "gpt-2", "gpt-3", "llama"])
def test_each_architecture_is_trained_resumed_and_used(command, text, monkeypatch, engine):
    flags = [*FLAGS, "--engine", engine]
    assert command("train", text, *flags, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", text, *flags, "--out", "r")[0] == 130
    assert command("train", "--resume", "--out", "r")[0] == 0
    assert weights("r") == weights("whole")
    config = npgpt.load("r").config
    half = config.block_size // 2  # of so short a context is the window
    expected = {"gpt": (True, None), "gpt-3": (False, half)}
    assert (config.post_norm, config.window) == expected.get(engine, (False, None))
    assert command("evaluate", "r")[0] == 0


def test_a_run_that_missed_its_target_says_so_again(command, text):
    flags = ("--target-loss", 0.001, "--steps", 5, "--json", *TINY)
    code, out, _ = command("train", text, "--out", "r", *flags)
    (Path("r") / "report.html").unlink()  # as if killed before it was drawn
    again, told, _ = command("train", "--resume", "--out", "r", "--json")
    assert (code, again) == (1, 1) and (Path("r") / "report.html").exists()
    assert json.loads(told.splitlines()[-1])["steps"] == json.loads(out.splitlines()[-1])["steps"] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_run_saves_and_says_130(text, number):
    process = python("npgpt.train", text, *TINY, "--steps", 10**6, "--target-loss", "1e-9", "--out", "r")
    while not Path("r/metrics.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "interrupted after" in out and (Path("r") / Path("r/LATEST").read_text().strip()).is_dir()
    assert npgpt.load("r").config.n_embd == 16


def test_a_second_signal_stops_at_once(text):
    """In the midst of a checkpoint: the one before is whole, and what was half done is cleared away."""
    slow = (
        "import sys, time; from npgpt.training import checkpoint; from npgpt import train\n"
        "save = checkpoint.huggingface.write_pretrained\n"
        "def crawl(folder, *rest):\n"
        "    save(folder, *rest)\n"
        "    if 'step-000003' in str(folder): print('saving', flush=True); time.sleep(60)\n"
        "checkpoint.huggingface.write_pretrained = crawl\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", slow, str(text), *FLAGS, "--save-every", "1", "--out", "r"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "saving" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "npgpt train: stopped at once\n", err
    assert checkpoint.choose(Path("r"), ())[0].name == "step-000002" and list(Path("r").glob(".step*"))
    process = python("npgpt.train", "--resume", "--out", "r")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == "" and "going on after step 2" in out
    assert not list(Path("r").glob(".step*"))
