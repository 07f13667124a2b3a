"""What all commands share: one-line errors, the order of their words, a light import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.helpers import ROOT, nothing_written, python, refused


def test_the_console_script_lists_its_commands(capsys):
    from npgpt.__main__ import COMMANDS, main

    assert main([]) == main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ["train"])
    assert set(COMMANDS) >= {"train", "generate"}
    assert main(["fly"]) == 2 and "got fly" in capsys.readouterr().err


def test_import_is_light():
    code = "import sys, npgpt; sys.exit(int('numpy' in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def test_bad_input_has_no_traceback_in_a_process_either():
    process = python("npgpt", "train", "missing.txt")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert err.splitlines()[-1] == "npgpt train: missing.txt: No such file or directory"
    assert nothing_written()


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_commands_refuse_a_model_that_is_not_there(command, text, name):
    refused(command(name, "no/such/run"), "no/such/run: No such file or directory")
    refused(command(name, "model.gguf"), "model.gguf: No such file or directory")
    Path("model.gguf").write_bytes(b"GGUF")
    refused(command(name, "model.gguf"), "read_gguf: model.gguf: the file ends at byte 4")
    Path("empty").mkdir()
    refused(command(name, "empty"), "must be a run, a checkpoint or a Hugging Face folder")
    refused(command(name, text), "must be a run")


def test_words_may_stand_behind_flags(command, run, text):
    flags = "--seed", 1, "--max-new-tokens", 3
    assert command("generate", run, *flags, "abc")[:2] == command("generate", run, "abc", *flags)[:2]
    assert "the text given" in command("evaluate", run, "--threads", 1, text)[1]


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_a_reader_that_goes_is_no_error(run, name):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"npgpt.{name}", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141 and "rror" not in errors, errors
