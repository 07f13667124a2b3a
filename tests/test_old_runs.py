"""Runs of npgpt 0.1.0 load, resume, export and evaluate, and its commands still train the same weights.

tests/data/make_runs.py made them with 0.1.0 itself. What it recorded of instruction sets, texts and losses is
compared with what this version makes of the same files.
"""

import hashlib
import json
import platform
import re
import shlex
import shutil
import tarfile
from importlib import import_module
from pathlib import Path

import pytest

import npgpt
from npgpt.engine import kernels

DATA = Path(__file__).parent / "data"
TEXT = Path(__file__).parent.parent / "data" / "textosdetreinamento.txt"
KNOWN = json.loads((DATA / "runs-0.1.0.json").read_text(encoding="utf-8"))
HASHES = KNOWN["sha256"]
RECORDED = sorted(HASHES["whole"])
ENDED = ("done", "memorised", "target", "patience")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """The folder that holds the runs of 0.1.0 and their text, which is not where 0.1.0 read it."""
    with tarfile.open(DATA / "runs-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(TEXT, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=RECORDED)
def recorded(request):
    """Run the test once on each instruction set that 0.1.0 was recorded on and this machine has."""
    if platform.machine() != "x86_64" or request.param not in kernels.available():
        pytest.skip(f"this machine has no {request.param} kernels for x86-64")
    with kernels.use(request.param):
        yield request.param


@pytest.fixture
def npgpt_command(capsys):
    """npgpt_command("train text.txt --steps 3") -> what it prints; its exit code must be 0."""

    def run(line):
        name, *args = shlex.split(line)
        try:
            code = import_module(f"npgpt.{name}").main(args)
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def last(run):
    return Path(run) / (Path(run) / "LATEST").read_text().strip()


def weights(run):
    return hashlib.sha256((last(run) / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("run", sorted(HASHES["resumed"][RECORDED[0]]))
def test_an_interrupted_run_resumes_to_the_same_weights(npgpt_command, recorded, run):
    npgpt_command(KNOWN["resume"][run])
    assert weights(run) == HASHES["resumed"][recorded][run]
    assert (Path(run) / "report.html").exists()
    assert (Path(run) / "adapter").exists() == (run == "lora")


@pytest.mark.parametrize("run", sorted(HASHES["whole"][RECORDED[0]]))
def test_the_same_seed_trains_the_same_weights(npgpt_command, recorded, run):
    shutil.rmtree(run, ignore_errors=True)
    npgpt_command(KNOWN["commands"][run])
    assert weights(run) == HASHES["whole"][recorded][run]


def test_a_config_trains_the_same_weights_again(npgpt_command, recorded):
    npgpt_command("train textosdetreinamento.txt --config muon/config.toml --out again")
    assert weights("again") == HASHES["whole"][recorded]["muon"]


def test_a_run_with_minutes_resumes_and_ends_in_time(npgpt_command):
    before = json.loads((last("minutes") / "trainer.json").read_text())
    result = json.loads(npgpt_command(KNOWN["resume"]["minutes"] + " --json").splitlines()[-1])
    planned = json.loads(Path("minutes/schedule.json").read_text())[-1][2]
    assert before["step"] < result["steps"] == planned
    assert before["seconds"] < result["seconds"] < 60 * 0.08 + 5


def test_a_run_that_ended_is_told_and_drawn_but_not_changed(npgpt_command):
    before = {run: weights(run) for run in ENDED}
    results = {}
    for run in ENDED:
        line = f"train textosdetreinamento.txt --out {run} --resume --json"
        results[run] = json.loads(npgpt_command(line).splitlines()[-1])
        assert (Path(run) / "report.html").exists()
    assert before == {run: weights(run) for run in ENDED}
    ends = [result["ended"] for result in results.values()]
    assert len(set(ends)) == len(ENDED) and "interrupted" not in ends


@pytest.mark.parametrize("run", sorted(KNOWN["greedy"]))
def test_a_run_loads_measures_writes_and_exports_as_before(npgpt_command, run):
    greedy = "generate {} O --temperature 0 --max-new-tokens 20"
    npgpt_command(f"export {run} --to gguf -o {run}.gguf")
    npgpt_command(f"export {run} --to hf -o {run}-hf")
    for model in (run, f"{run}.gguf", f"{run}-hf"):
        assert npgpt_command(greedy.format(model)) == KNOWN["greedy"][run]
        measured = npgpt_command(f"evaluate {model} textosdetreinamento.txt --json").splitlines()[-1]
        assert json.loads(measured)["loss"] == pytest.approx(KNOWN["losses"][run], rel=1e-5)


def test_a_checkpoint_alone_loads(runs):
    for folder in (*runs.glob("*/step-*"), runs / "patience"):
        model = npgpt.load(folder)
        assert model.tokenizer and model.generate("O", max_new_tokens=3, seed=1)
    best = npgpt.load(runs / "patience" / (runs / "patience" / "BEST").read_text().strip())
    assert (best.flat_params == npgpt.load(runs / "patience").flat_params).all()


def test_a_run_cleans_prompts_as_its_config_says(runs):
    """0.1.0 wrote it there alone."""
    adamw = runs / "adamw"
    how = {}
    for clean in ("light", "full", "none"):
        config = (adamw / "config.toml").read_text()
        (adamw / "config.toml").write_text(re.sub('clean = ".*"', f'clean = "{clean}"', config))
        model, folder = npgpt.load(adamw), last(adamw)
        assert (
            npgpt.load(folder).tokenizer
            == npgpt.GPT2Tokenizer.from_pretrained(adamw)._tokenizer
            == model.tokenizer
        )
        how[clean] = model.tokenizer.normalizer
    assert how == {clean: clean for clean in how}
    shutil.copytree(folder, "apart")  # beside no config.toml
    assert npgpt.load("apart").tokenizer.normalizer == "none"
    (adamw / "config.toml").write_text("clean = 'hard'")
    with pytest.raises(ValueError, match=r"config\.toml: clean must be one of none, light, full, got 'hard'"):
        npgpt.load(adamw)


def test_the_test_part_of_its_text_is_the_same(npgpt_command, runs):
    config = runs / "adamw" / "config.toml"  # which names the text by its full path: where it lies now
    config.write_text(config.read_text().replace("/tmp/npgpt-0.1.0/", f"{runs}/"))
    found = json.loads(npgpt_command("evaluate adamw --json").splitlines()[-1])
    del found["baselines"]["kneser-ney"]  # which 0.1.0 did not have
    assert found["part"] == KNOWN["tested"]["part"] and found["baselines"] == KNOWN["tested"]["baselines"]
    assert found["loss"] == pytest.approx(KNOWN["tested"]["loss"], rel=1e-5)
