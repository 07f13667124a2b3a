"""Files and folders whose names are not UTF-8, which Linux allows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.helpers import FLAGS, ROOT, stopped, weights

TEXT = os.fsdecode(b"d\xff/it's \xe9.txt")
RUN = os.fsdecode(b"runs/it's \xe9")


@pytest.fixture
def odd(command):
    try:
        Path(TEXT).parent.mkdir()
    except OSError:
        pytest.skip("this file system allows UTF-8 alone")
    Path(TEXT).write_bytes(b"abc abd abe " * 40)
    code, out, err = command("train", TEXT, *FLAGS, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["run"] == RUN
    return out


def test_next_commands_name_it_as_bash_does(odd):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    commands = [line[6:] for line in odd.splitlines() if line[6:].startswith("python -m npgpt.")]
    assert len(commands) == 2
    for line in commands:
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_a_run_goes_on_and_is_measured_and_moved(command, odd, monkeypatch):
    with monkeypatch.context() as patch:
        stopped(patch, 5)
        assert command("train", TEXT, *FLAGS)[0] == 130
    assert command("train", "--resume", "--out", RUN + "-2")[0] == 0
    assert weights(RUN) == weights(RUN + "-2")
    code, out, err = command("evaluate", RUN)
    assert code == 0 and "found by its sha256" not in out and err == ""
    assert "it&#x27;s ?" in Path(RUN, "report.html").read_text(encoding="utf-8")
    Path("elsewhere").mkdir()
    shutil.move("runs", "elsewhere"), shutil.move(Path(TEXT).parent, "elsewhere")
    code, out, err = command("evaluate", f"elsewhere/{RUN}")
    assert code == 0 and "found by its sha256" in out and err == ""


def test_a_model_of_such_a_name_is_taught_and_exported(command, odd):
    data = Path(os.fsdecode(b"\xe9.jsonl"))
    data.write_text("".join(json.dumps({"prompt": f"{i}", "completion": "b"}) + "\n" for i in range(8)))
    new = os.fsdecode(b"new \xe9")
    code, out, err = command("finetune", RUN, data, "--epochs", 1, "--lora", 2, "-o", new, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out.splitlines()[-1])
    assert result["run"] == new and result["base"] == str(Path(RUN).resolve())
    base = json.loads(Path(new, "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base).parent == Path(RUN).resolve()  # the checkpoint, which Transformers can open
    for to in ("gguf", "hf"):
        assert command("export", new, "--to", to, "-o", f"{new}.{to}")[0] == 0
        assert command("generate", f"{new}.{to}", "a", "--json")[0] == 0


def test_finetune_of_a_finished_run_prints_its_result(command, run):
    Path("data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    flags = ("finetune", run, "data.jsonl", "--epochs", 1, "-o", "new", "--json")
    first, again = (command(*flags, *more) for more in ([], ["--resume"]))
    assert first[0] == again[0] == 0
    results = [json.loads(out.splitlines()[-1]) for _, out, _ in (first, again)]
    assert results[0]["steps"] == results[1]["steps"] and results[1]["ended"] == "done"
