"""The doors: what they refuse and how, and a run from the text to the evaluation."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import npgpt
from npgpt.engine import kernels

ROOT = Path(npgpt.__file__).parent.parent
SAMPLE = ROOT / "data" / "textosdetreinamento.txt"
TINY = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --batch-size 4".split()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Every test has a folder of its own beside which nothing may appear, and no settings from outside."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in [name for name in os.environ if name.startswith("NPGPT_")]:
        if name not in ("NPGPT_KERNELS", "NPGPT_DATA", "NPGPT_NO_SKIP", "NPGPT_REQUIRE_KERNELS"):
            monkeypatch.delenv(name)


@pytest.fixture
def door(capsys):
    """door("train", "text", "--steps", 3) -> (exit code, stdout, stderr), run in this process."""

    def open_it(name, *args):
        try:
            code = import_module(f"npgpt.{name}").main([str(arg) for arg in args])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return open_it


@pytest.fixture
def text():
    Path("text.txt").write_bytes(b"abc abd abe " * 40)
    return Path("text.txt")


@pytest.fixture
def run(door, text):
    """A finished run of a few steps."""
    assert door("train", text, *TINY, "--steps", 3, "--out", "run")[0] == 0
    return Path("run")


def refused(result, message):
    """Exit code 2, one line on stderr that holds the message, nothing on stdout."""
    code, out, err = result
    assert code == 2 and out == "", result
    assert err.count("\n") == 1 and err.startswith("npgpt ") and message in err, err
    assert "Traceback" not in err


def nothing_written(*but):
    return {path.name for path in Path(".").iterdir()} == set(but)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "must hold text, got an empty file"),
        (b" \n", "only whitespace"),
        (b"a", "at least 2 tokens, got 1"),
    ],
)
def test_text_with_too_little_in_it(door, content, message):
    Path("t").write_bytes(content)
    refused(door("train", "t"), message)
    assert nothing_written("t")


@pytest.mark.parametrize(
    "path, message",
    [
        ("missing.txt", "missing.txt: No such file or directory"),
        (".", "Is a directory"),
        (
            "/proc/self/mem",
            "/proc/self/mem: Input/output error",
        ),  # opens, but cannot be read, not even by root
    ],
)
def test_text_that_cannot_be_read(door, path, message):
    refused(door("train", path), message)
    assert nothing_written()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--n-embd 130 --n-head 4", "n_embd must be a multiple of n_head (4), got 130"),
        ("--n-embd 0", "--n-embd: must be a whole number, at least 1, got 0"),
        ("--n-layer -1", "--n-layer: must be"),
        ("--n-head 0", "--n-head: must be"),
        ("--block-size 0", "--block-size: must be"),
        ("--batch-size -4", "--batch-size: must be"),
        ("--batch-size 1.5", "got 1.5"),
        ("--steps 0", "--steps: must be"),
        ("--epochs -1", "--epochs: must be"),
        ("--lr 0", "--lr: must be a number above 0, got 0"),
        ("--lr nan", "--lr: must be"),
        ("--lr inf", "--lr: must be"),
        ("--dropout 1", "--dropout: must be"),
        ("--weight-decay -1", "--weight-decay: must be"),
        ("--eval-every 0", "--eval-every: must be"),
        ("--keep 0", "--keep: must be"),
        ("--threads 0", "--threads: must be"),
        ("--seed -1", "--seed: must be"),
        ("--split 0.5,0.6", "split must be"),
        ("--clean hard", "must be none or light or full, got hard"),
        ("--optimizer sgd", "must be adamw or muon, got sgd"),
        ("--tokenizer words", "must be bytes, got words"),
        ("--epochs 1 --steps 1", "cannot both be given"),
        ("--config none.toml", "none.toml: No such file or directory"),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("--n-embd 40000000", "not enough memory"),
        ("--out /proc/run", "/proc/run"),
        ("--out text.txt/run", "Not a directory"),
        ("--out text.txt", "exists already"),
        ("--out .", "exists already"),
    ],
)
def test_bad_flags(door, text, flags, message):
    refused(door("train", text, *flags.split()), message)
    assert nothing_written("text.txt")


@pytest.mark.parametrize(
    "toml, message",
    [
        ("n_embd = 0", "bad.toml: n_embd must be a whole number, at least 1, got 0"),
        ("n_embed = 64", "n_embed is not a setting; did you mean n_embd?"),
        ("n_embd = ", "bad.toml: must be TOML"),
    ],
)
def test_bad_config_files(door, text, toml, message):
    Path("bad.toml").write_text(toml)
    refused(door("train", text, "--config", "bad.toml"), message)
    assert nothing_written("text.txt", "bad.toml")


def test_bad_variables(door, text, monkeypatch):
    monkeypatch.setenv("NPGPT_BATCH_SIZE", "many")
    refused(door("train", text), "NPGPT_BATCH_SIZE must be a whole number, at least 1, got many")


def test_a_run_that_exists_is_not_touched(door, run):
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    refused(door("train", "text.txt", "--out", run), "run: exists already")
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_doors_to_a_model_that_is_not_there(door, text, name):
    refused(door(name, "nothing"), "nothing: No such file or directory")
    refused(door(name, "model.gguf"), "model.gguf: No such file or directory")
    Path("model.gguf").write_bytes(b"GGUF")
    refused(door(name, "model.gguf"), "read_gguf: model.gguf: the file ends at byte 4")
    Path("empty").mkdir()
    refused(door(name, "empty"), "must be a run, a checkpoint or a Hugging Face GPT-2 folder")
    refused(door(name, text), "must be a run")


@pytest.mark.parametrize("flags", ["--temperature -1", "--top-k 0", "--top-p 2", "--max-new-tokens -1"])
def test_bad_flags_for_generate(door, run, flags):
    result = door("generate", run, "a", *flags.split())
    refused(result, " must be ")
    assert flags.split()[0].lstrip("-") in result[2].replace("_", "-")


# ---------------------------------------------------------------------------- a run


def test_what_a_run_says_and_leaves(door, run, text):
    names = {path.name for path in run.iterdir()}
    assert names == {"config.toml", "metrics.csv", "LATEST", "step-000003"} | (names & {"step-000002"})
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["n_embd"] == 16 and config["steps"] == 3 and config["split"] == [1.0, 0.0, 0.0]
    assert config["text"] == [str(text.resolve())] and config["seed"] == 0
    assert config["about"]["npgpt"] == npgpt.__version__ and config["about"]["memorise"] is True

    code, out, err = door("train", text, *TINY, "--steps", 3, "--json")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0] == f"running on {kernels.describe()}"
    assert any("too small to generalise" in line for line in lines)
    assert any("parameters" in line for line in lines)
    assert any("MB of memory" in line and " s" in line for line in lines)
    assert any(line.startswith("step 3/3: loss ") for line in lines)
    result = json.loads(lines[-1])
    assert result["steps"] == 3 and result["run"] == "runs/text" and result["train_loss"] > 0
    assert (
        json.loads(door("train", text, *TINY, "--steps", 1, "--json")[1].splitlines()[-1])["run"]
        == "runs/text-2"
    )


def test_a_run_can_start_from_the_settings_of_another(door, run, text):
    assert door("train", text, "--config", run / "config.toml")[0] == 0
    metrics = [(r / "metrics.csv").read_text().splitlines() for r in (run, Path("runs/text"))]
    losses = [[line.split(",")[3] for line in lines] for lines in metrics]
    assert losses[0] == losses[1]


def test_flag_before_variable_before_config(door, text, monkeypatch):
    Path("c.toml").write_text("n_embd = 8\nsteps = 2\nbatch_size = 3\nlr = 0.001")
    monkeypatch.setenv("NPGPT_N_EMBD", "12")
    monkeypatch.setenv("NPGPT_BATCH_SIZE", "5")
    flags = "--config c.toml --batch-size 2 --n-head 2 --n-layer 1 --out r".split()
    assert door("train", text, *flags)[0] == 0
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert (config["batch_size"], config["n_embd"], config["steps"], config["lr"]) == (2, 12, 2, 0.001)


def test_epochs_replace_steps_of_a_config(door, text):
    Path("c.toml").write_text("steps = 50")
    assert door("train", text, *TINY, "--config", "c.toml", "--epochs", 1, "--out", "r")[0] == 0
    assert tomllib.loads(Path("r/config.toml").read_text())["steps"] == 8  # 481 tokens in batches of 4 x 16


def test_generate(door, run):
    flags = ["--seed", 1, "--max-new-tokens", 20]
    code, out, err = door("generate", run, "abc", *flags)
    assert code == 0 and out.startswith("abc") and err == f"running on {kernels.describe()}\n"
    assert door("generate", run, "abc", *flags, "--stream")[1] == out
    spoken = json.loads(door("generate", run, "abc", *flags, "--json")[1])
    assert "abc" + spoken["text"] + "\n" == out
    assert door("generate", run / "step-000003", "abc", *flags)[1] == out


def test_evaluate(door, run):
    code, out, _ = door("evaluate", run, "--json")
    assert code == 0 and "to be memorised" in out
    result = json.loads(out.splitlines()[-1])
    assert result["tokens"] == 481 and result["loss"] > 0
    assert result["baselines"].keys() == {"uniform", "unigram", "gzip", "xz"}
    assert json.loads((run / "test.json").read_text())["loss"] == result["loss"]
    Path("other.txt").write_text("abd abd")
    assert "the text given: 8 tokens" in door("evaluate", run, "other.txt")[1]
    Path("text.txt").write_bytes(b"changed")
    refused(door("evaluate", run), "has changed since the run was trained on it")
    Path("text.txt").unlink()
    refused(door("evaluate", run), "text.txt: No such file")


def test_evaluate_uses_the_test_part(door, text):
    assert door("train", text, *TINY, "--steps", 2, "--split", "0.5,0.25,0.25", "--out", "r")[0] == 0
    assert "the test part of its text: 120 tokens" in door("evaluate", "r")[1]


def test_load_names_a_broken_checkpoint_and_takes_the_one_before(door, text):
    assert door("train", text, *TINY, "--steps", 4, "--save-every", 2, "--out", "r")[0] == 0
    weights = Path("r/step-000004/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-000004: model.safetensors must have .* passed over"):
        model = npgpt.load("r")
    before = npgpt.load("r/step-000002")
    assert (model.flat_params == before.flat_params).all()
    code, _, err = door("generate", "r", "abc", "--max-new-tokens", 2)
    assert code == 0 and err.startswith("warning: ") and err.count("\n") == 2
    refused(door("generate", "r/step-000004"), "step-000004: model.safetensors must have")


def test_a_saved_model_comes_back(tmp_path):
    model = npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=257), seed=4)
    model.save_pretrained(tmp_path / "saved")
    again = npgpt.load(tmp_path / "saved")
    assert isinstance(again, npgpt.GPT) and again.config == model.config
    assert again.generate("a", temperature=0) == model.generate("a", temperature=0)


@pytest.mark.parametrize("content", ["Não, ação é à toa. ".encode("latin-1") * 4, bytes(range(256))])
def test_any_bytes_train_and_come_back(door, content):
    Path("t").write_bytes(content)
    flags = "--n-layer 1 --n-head 1 --n-embd 64 --block-size 32 --steps 600 --out r".split()
    assert door("train", "t", *flags)[0] == 0
    model = npgpt.load("r")
    start = 10
    ids = model.generate(content[:start], max_new_tokens=40, temperature=0, return_ids=True)
    assert model.tokenizer.decode_bytes(ids) == content[start : start + 40]


# ---------------------------------------------------------------------------- as a process


def python(*args, **more):
    command = [sys.executable, "-m", *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_the_sample_text_is_memorised_by_default():
    process = python("npgpt.train", SAMPLE, "--json")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["ended"] == "memorised", out
    assert "As pessoas se reuniam nas praias para curtir o calor e aproveitar o mar." in out
    model = npgpt.load(result["run"])
    prompt = "A tempestade durou por"
    assert model.generate(prompt, temperature=0, max_new_tokens=27) == " algumas horas e depois pas"


def test_bad_input_has_no_traceback_in_a_process_either():
    process = python("npgpt", "train", "missing.txt")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    assert err.splitlines()[-1] == "npgpt train: missing.txt: No such file or directory"
    assert nothing_written()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


def test_import_is_light():
    code = "import sys, npgpt; sys.exit(int('numpy' in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def test_the_console_script_lists_its_doors(capsys):
    from npgpt.__main__ import DOORS, main

    assert main([]) == main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ["train"]) and set(DOORS) >= {"train", "generate"}
    assert main(["fly"]) == 2 and "got fly" in capsys.readouterr().err


def test_bench_tells_the_cost_of_the_published_sizes(door):
    code, out, _ = door("bench", "--presets", "--json")
    costs = json.loads(out.splitlines()[-1])
    assert code == 0 and costs["gpt2"]["parameters"] == 124_439_808 and "gpt3-175b" in out
    compiled = kernels.name() != "numpy"
    assert all((c["step_seconds"] is not None) == compiled for c in costs.values())


# ---------------------------------------------------------------------------- export, embed


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_an_exported_model_writes_the_same(door, run, to):
    code, out, _ = door("export", run, "--to", to, "-o", "out.gguf" if to == "gguf" else "out")
    assert code == 0 and out.startswith("out") and out.rstrip().endswith("MB")
    how = ["abc", "--max-new-tokens", 30, "--seed", 1, "--ignore-eos"]
    assert door("generate", out.split(":")[0], *how)[1] == door("generate", run, *how)[1]


def test_what_export_refuses(door, run):
    refused(door("export", run, "--to", "onnx", "-o", "out"), "must be gguf or hf, got onnx")
    refused(
        door("export", run, "--to", "gguf", "--type", "q3", "-o", "out"), "must be f32 or f16 or q8_0 or q4_0"
    )
    refused(door("export", run, "--to", "hf", "--type", "f16", "-o", "out"), "--type is for gguf")
    refused(door("export", run, "--to", "gguf", "-o", run), "run: is there already")
    refused(door("export", run, "--to", "gguf", "-o", "none/out"), "none: No such folder")
    refused(door("export", "nothing", "--to", "gguf", "-o", "out"), "nothing: No such file or directory")
    assert nothing_written("text.txt", "run")


def test_embed_prints_flags(door):
    refused(door("embed"), "give --cflags, --libs or both")
    code, out, _ = door("embed", "--cflags", "--libs")
    assert (code, out.count("-I"), "-lnpgpt" in out) == (0, 1, True) or code == 1  # 1: without a compiler
