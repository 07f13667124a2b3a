"""Runs that were moved, begun twice at once, stopped before their first checkpoint or refused half-way."""

import errno
import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import npgpt
from npgpt.engine import locks
from npgpt.training import run as runs
from tests.commands.helpers import FLAGS, TINY, nothing_written, python, refused, stopped, weights

FOUND = "the text of the run is not where it was; found by its sha256: "


@pytest.fixture
def half(command, monkeypatch):
    """a/r, a run that was interrupted after 5 of 9 steps, its text in a/texts."""
    Path("a/texts").mkdir(parents=True)
    Path("a/texts/t.txt").write_bytes(b"abc abd abe " * 40)
    assert command("train", "a/texts/t.txt", *FLAGS, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", "a/texts/t.txt", *FLAGS, "--out", "a/r")[0] == 130
    return Path("a/r")


@pytest.mark.parametrize("to", ["b/texts/t.txt", "b/t.txt", "b/r/t.txt", "t.txt"])
def test_a_moved_run_finds_its_text(command, half, to):
    """Where it lay from the run, beside the run, in it or in the current folder."""
    shutil.move("a", "b")
    shutil.move("b/texts/t.txt", "moved")
    shutil.rmtree("b/texts")
    Path(to).parent.mkdir(exist_ok=True)
    shutil.move("moved", to)
    code, out, err = command("train", "--resume", "--out", "b/r")
    assert (code, err) == (0, "") and FOUND in out and Path(out.split(FOUND)[1].split("\n")[0]).samefile(to)
    assert weights("b/r") == weights("whole")
    assert FOUND in command("evaluate", "b/r")[1]


def test_another_text_in_its_place_is_none(command, half):
    shutil.move("a", "b")
    Path("a/texts").mkdir(parents=True)
    Path("a/texts/t.txt").write_bytes(b"another text " * 40)
    assert FOUND in command("train", "--resume", "--out", "b/r")[1]
    Path("b/texts/t.txt").unlink()
    refused(
        command("evaluate", "b/r"), "a/texts/t.txt: has changed since the run was trained on it; give TEXT"
    )
    Path("a/texts/t.txt").unlink()
    refused(command("evaluate", "b/r"), "a/texts/t.txt: No such file, nor any of this name in or beside b/r")


def test_a_run_from_stdin_is_moved_with_its_text(command, half):
    process = python("npgpt.train", "-", *TINY, "--steps", 2, "--out", "a/s", stdin=subprocess.PIPE)
    assert "abc" in process.communicate("abc abd abe " * 40)[0]
    shutil.move("a", "b")
    assert FOUND in command("evaluate", "b/s")[1]


@pytest.mark.parametrize("parent", ["parent", "somebody/model"])
def test_a_run_killed_before_its_first_checkpoint_starts_again(command, text, monkeypatch, parent):
    """Also one that begins with another model: a folder, or a name on the Hub, which stays a name."""
    from npgpt.interop import hub

    command("train", text, *TINY, "--steps", 3, "--seed", 9, "--out", "parent")
    monkeypatch.setattr(hub, "fetch", lambda name: Path("parent/step-000003"))
    flags = (text, *FLAGS, "--init-from", parent)
    assert command("train", *flags, "--out", "whole")[0] == 0
    assert command("train", *flags, "--out", "r")[0] == 0
    for folder in Path("r").glob("step-*"):
        shutil.rmtree(folder)
    Path("r/LATEST").unlink(), Path("r/BEST").unlink()
    known = npgpt.training.run.read_config("r")["init_from"]
    assert known == (parent if "/" in parent else str(Path(parent).resolve()))
    for again in (("--resume", "--out", "r"), (*flags, "--resume", "--out", "r")):
        assert command("train", *again)[0] == 0
        assert weights("r") == weights("whole")
    other = "text.txt", *TINY, "--steps", 3, "--out"
    assert command("train", *other, "other")[0] == 0
    refused(command("train", "--resume", "--out", "r", "--init-from", "other"), "--resume: init_from is ")
    shutil.rmtree("r"), shutil.rmtree("parent")
    assert command("train", *other, "parent", "--seed", 8)[0] == 0


def test_a_parent_that_changed_is_refused(command, text):
    command("train", text, *TINY, "--steps", 3, "--out", "parent")
    command("train", text, *FLAGS, "--init-from", "parent", "--out", "r")
    for folder in Path("r").glob("step-*"):
        shutil.rmtree(folder)
    Path("r/LATEST").unlink(), Path("r/BEST").unlink()
    shutil.rmtree("parent")
    command("train", text, *TINY, "--steps", 3, "--seed", 8, "--out", "parent")
    refused(
        command("train", "--resume", "--out", "r"), "parent: has changed since the run began from its weights"
    )


@pytest.mark.parametrize("out", [(), ("--out", "new")])
def test_a_refused_start_leaves_no_folder_and_does_not_block_the_next(command, text, monkeypatch, out):
    def fails(code):
        def fail(*args):
            raise OSError(code, errno.errorcode[code])

        return fail

    for where, what, code in ((locks, "_lock", errno.ENOLCK), (runs, "write_config", errno.ENOSPC)):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, fails(code))
            assert command("train", text, *TINY, "--steps", 2, *out)[0] in (1, 2)
        assert nothing_written("text.txt"), what
    Path("new").mkdir()
    Path("new/lock").touch()  # as of a process that was killed before it wrote its settings
    Path("new/.config.toml.tmp").touch()
    assert command("train", text, *TINY, "--steps", 2, *out)[0] == 0


def test_a_folder_that_is_just_being_begun_is_another_ones(command, text):
    Path("new").mkdir()
    with open("new/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(command("train", text, *TINY, "--out", "new"), "new: another process is training this run")
        assert Path("new/lock").exists()


@pytest.mark.parametrize("name", ["train", "tune", "train --restarts 1"])
def test_of_two_starts_at_once_the_second_takes_the_next_name(text, name):
    """Both have looked for a free name before either has made its folder."""
    name, *more = name.split()
    meet = (
        "import sys, time, pathlib; from importlib import import_module; from npgpt.training import run\n"
        "find, me = run.find_folder, pathlib.Path(sys.argv[1])\n"
        "def together(*args, **more):\n"
        "    found = find(*args, **more); me.touch()\n"
        "    while len(list(pathlib.Path().glob('met-*'))) < 2: time.sleep(0.01)\n"
        "    return found\n"
        "run.find_folder = together\n"
        "sys.exit(import_module(f'npgpt.{sys.argv[2]}').main(sys.argv[3:]))"
    )
    flags = ["--minutes", "0.02"] if name == "tune" else [*TINY, "--steps", "3"]
    text.write_bytes(b"the cat sat on the mat, the rat ate the hat, " * 30)
    command = [sys.executable, "-c", meet]
    both = [
        subprocess.Popen([*command, f"met-{n}", name, "text.txt", *flags, *more], stdout=subprocess.PIPE)
        for n in range(2)
    ]
    outs = [process.communicate(timeout=120)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    suffix = "-tune" if name == "tune" else ""
    names = {f"runs/text{suffix}", f"runs/text{suffix}-2"}
    assert {str(path) for path in Path("runs").iterdir()} == names
    assert {next(name for name in sorted(names)[::-1] if f"saved to {name}," in out) for out in outs} == names


def test_an_export_that_failed_half_way_does_not_block_the_next(command, run, monkeypatch):
    from npgpt.interop import huggingface

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "_write_json", full)
        code, _, err = command("export", run, "--to", "hf", "-o", "hf")
        assert code == 2 and "No space left on device" in err and nothing_written("text.txt", "run")
    Path(".hf.tmp").mkdir()  # as of a process that was killed
    Path(".hf.tmp/half").touch()
    assert command("export", run, "--to", "hf", "-o", "hf")[0] == 0
    assert nothing_written("text.txt", "run", "hf") and not Path("hf/half").exists()
    assert json.loads(Path("hf/config.json").read_text())["model_type"] == "gpt2"
