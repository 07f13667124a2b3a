"""`npgpt train`: what it says and leaves, its settings, texts of all kinds, how a run ends."""

import io
import json
import sys
import tomllib
from pathlib import Path

import pytest

import npgpt
from npgpt.engine import kernels
from npgpt.engine.config import engine_of
from tests.commands.helpers import SAMPLE, TINY, python, refused


def test_what_a_run_says_and_leaves(command, run, text):
    names = {path.name for path in run.iterdir()}
    files = {"config.toml", "metrics.csv", "samples.jsonl", "LATEST", "lock", "report.html", "step-000003"}
    names -= {"loss.png"}  # with matplotlib
    assert names == files | (names & {"step-000002"})
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["n_embd"] == 16 and config["steps"] == 3 and config["split"] == [1.0, 0.0, 0.0]
    assert config["text"] == [str(text.resolve())] and config["seed"] == 0
    assert config["about"]["npgpt"] == npgpt.__version__ and config["about"]["memorise"] is True

    code, out, err = command("train", text, *TINY, "--steps", 3, "--json")
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
        json.loads(command("train", text, *TINY, "--steps", 1, "--json")[1].splitlines()[-1])["run"]
        == "runs/text-2"
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


def test_a_run_can_start_from_the_settings_of_another(command, run, text):
    assert command("train", text, "--config", run / "config.toml")[0] == 0
    metrics = [(r / "metrics.csv").read_text().splitlines() for r in (run, Path("runs/text"))]
    losses = [[line.split(",")[3] for line in lines] for lines in metrics]
    assert losses[0] == losses[1]


def test_flag_before_variable_before_config(command, text, monkeypatch):
    Path("c.toml").write_text("n_embd = 8\nsteps = 2\nbatch_size = 3\nlr = 0.001")
    monkeypatch.setenv("NPGPT_N_EMBD", "12")
    monkeypatch.setenv("NPGPT_BATCH_SIZE", "5")
    flags = "--config c.toml --batch-size 2 --n-head 2 --n-layer 1 --out r".split()
    assert command("train", text, *flags)[0] == 0
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert (config["batch_size"], config["n_embd"], config["steps"], config["lr"]) == (2, 12, 2, 0.001)


def test_epochs_replace_steps_of_a_config(command, text):
    Path("c.toml").write_text("steps = 50")
    assert command("train", text, *TINY, "--config", "c.toml", "--epochs", 1, "--out", "r")[0] == 0
    assert tomllib.loads(Path("r/config.toml").read_text())["steps"] == 8  # 481 tokens in batches of 4 x 16


@pytest.mark.parametrize(
    "content, flags, says",
    [
        (b"ab", "", "it will be memorised"),
        (b"x" * 1000, "--split 0.8,0.1,0.1", "801 for training, 100 for validation, 100 for testing"),
        (b"short, but split", "--split 0.8,0.1,0.1", "14 for training, 1 for validation, 2 for testing"),
        (b"shorter than a context", "--block-size 512 --split 0.9,0.1", "21 for training, 2 for validation"),
        (b"more windows in a batch than in the text", "--batch-size 64", "it will be memorised"),
    ],
)
def test_the_smallest_texts_work(command, content, flags, says):
    Path("t").write_bytes(content)
    code, out, err = command("train", "t", *TINY, "--steps", 3, *flags.split(), "--out", "r")
    assert code == 0 and says in out and err == ""
    assert command("evaluate", "r")[0] == 0


@pytest.mark.parametrize("content", ["Não, ação é à toa. ".encode("latin-1") * 4, bytes(range(256))])
def test_any_bytes_train_and_come_back(command, content):
    Path("t").write_bytes(content)
    flags = "--n-layer 1 --n-head 1 --n-embd 64 --block-size 32 --steps 600 --encoding bytes --out r".split()
    assert command("train", "t", *flags)[0] == 0
    model = npgpt.load("r")
    start = 10
    ids = model.generate(content[:start], max_new_tokens=40, temperature=0, return_ids=True)
    assert model.tokenizer.decode_bytes(ids) == content[start : start + 40]


def test_folders_and_stdin(command, monkeypatch):
    Path("folder/inner").mkdir(parents=True)
    Path("folder/b.txt").write_bytes(b"b" * 200)
    Path("folder/inner/a.txt").write_bytes(b"\xef\xbb\xbfa\r\n" * 200)
    Path("folder/not.md").write_bytes(b"c")
    code, out, _ = command("train", "folder", *TINY, "--steps", 2)
    assert code == 0 and "text: 1,401 bytes in 3 files" in out
    assert "1 byte-order marks removed, 200 line ends made \\n" in out and "runs/folder" in out
    kept = command("train", "folder", *TINY, "--steps", 2, "--clean", "none")[1]
    assert "text: 1,401 bytes in 3 files; cleaning (none) changed nothing" in kept

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"through a pipe " * 40)))
    assert "saved to runs/stdin" in command("train", "-", *TINY, "--steps", 2)[1]
    assert Path("runs/stdin/stdin.txt").read_bytes() == b"through a pipe " * 40
    assert command("evaluate", "runs/stdin")[0] == 0
    refused(command("evaluate", "runs/stdin", "-"), "-: must hold text, got an empty file")


def test_validation_split_in_words(command, text):
    code, out, _ = command("train", text, *TINY, "--steps", 2, "--split", "0.5,0.3,0.2")
    assert code == 0 and "tokens: 240 for training, 145 for validation, 96 for testing" in out


def test_a_vocabulary_learned_from_the_text_goes_all_the_way(command, text):
    flags = [*TINY, "--tokenizer", "bpe:264", "--split", "0.5,0.25,0.25"]
    text.write_bytes(b"um dois abc abd " * 200 + b"zzz zzz " * 400)
    code, out, err = command("train", text, *flags, "--steps", 4, "--save-every", 2, "--out", "r", "--json")
    assert code == 0 and err == "" and "tokenizer: bpe:264, 264 tokens, " in out
    tokenizer = npgpt.load("r").tokenizer
    assert tokenizer.name == "bpe:264" and not any("zz" in token for token in tokenizer.vocabulary.tokens)
    code, out, _ = command("evaluate", "r", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["bytes"] == result["tokens"] - 1  # the test part is all z and blanks
    bits = result["loss"] * result["tokens"] / 0.6931472
    assert result["bits_per_byte"] * result["bytes"] == pytest.approx(bits)
    assert command("generate", "r", "um dois", "--max-new-tokens", 5)[0] == 0
    command("train", text, *flags, "--steps", 4, "--save-every", 2, "--out", "again")
    assert (npgpt.load("again").flat_params == npgpt.load("r").flat_params).all()
    code, out, _ = command("train", "--resume", "--out", "r")
    assert code == 0 and "is finished" in out
    other = ("--tokenizer", "bytes")
    refused(command("train", "--resume", "--out", "r", *other), "tokenizer is bpe:264 in this run, got bytes")
    refused(command("train", text, "--init-from", "r", *other), "its tokenizer is bpe:264, got bytes")
    code, out, _ = command(
        "train", text, *TINY, "--tokenizer", "r/step-000004", "--steps", 1, "--out", "path"
    )
    assert code == 0 and npgpt.load("path").tokenizer == tokenizer


def test_a_run_inside_the_folder_of_its_texts_is_none_of_them(command, text):
    flags = ("--tokenizer", "bpe:258", "--steps", 2, "--out", "runs/x", *TINY)
    assert command("train", ".", *flags)[0] == 0 and list(Path("runs").rglob("merges.txt"))
    assert command("train", ".", "--resume", "--out", "runs/x")[0] == 0


@pytest.mark.parametrize("engine", ["gpt", "gpt-2", "gpt-3", "llama"])
def test_train_every_engine(command, text, engine):
    code, out, err = command("train", text, *TINY, "--engine", engine, "--steps", 4, "--out", "run")
    assert code == 0 and f"model: {engine}, 1 layers" in out, err
    assert engine_of(npgpt.load("run").config) == engine
    assert tomllib.loads(Path("run/config.toml").read_text())["engine"] == engine
    code, out, err = command("train", text, "--init-from", "run", "--steps", 2, "--out", "next")
    assert code == 0 and engine_of(npgpt.load("next").config) == engine
    other = "gpt" if engine == "gpt-2" else "gpt-2"
    refused(
        command("train", text, "--init-from", "run", "--engine", other, "--out", "x"),
        f"engine is {engine} there",
    )


def test_a_window_is_for_gpt3(command, text):
    refused(command("train", text, *TINY, "--window", 4), "window is for engine gpt-3, got gpt-2")
    assert (
        command("train", text, *TINY, "--engine", "gpt-3", "--window", 4, "--steps", 2, "--out", "run")[0]
        == 0
    )
    assert npgpt.load("run").config.window == 4


def test_going_on_from_another_model_on_new_text(command, run):
    Path("new.txt").write_bytes(b"xyz xyw " * 60)
    code, out, err = command("train", "new.txt", "--init-from", run, "--steps", 40, "--out", "new")
    assert code == 0 and err == "" and "1 layers, 2 heads, 16 channels, context 16" in out
    first, new = npgpt.load(run), npgpt.load("new")
    assert new.config.n_embd == 16 and (new.flat_params != first.flat_params).any()
    losses = [float(line.split(",")[3]) for line in Path("new/metrics.csv").read_text().splitlines()[1:]]
    with open("run/metrics.csv") as file:
        assert losses[0] != float(file.read().splitlines()[1].split(",")[3])
    assert losses[-1] < losses[0]
    refused(command("train", "new.txt", "--init-from", run, "--n-embd", 32), "n_embd is 16 there, got 32")
    bare = npgpt.GPT(npgpt.GPTConfig(1, 1, 8, 8, 300))
    bare.save_pretrained("bare")
    refused(command("train", "new.txt", "--init-from", "bare"), "must have a tokenizer")


def test_minutes(command, text):
    code, out, err = command("train", text, *TINY, "--minutes", 0.06, "--target-loss", 0.0001, "--out", "r")
    assert code == 1 and err == "" and "about " in out and "done after" in out
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert config["minutes"] == 0.06 and "steps" not in config
    assert "r is finished" in command("train", "--resume", "--out", "r")[1]


def test_patience_and_target_loss(command, text):
    flags = [*TINY, "--split", "0.5,0.5", "--eval-every", 1, "--optimizer", "adamw"]
    code, out, _ = command("train", text, *flags, "--steps", 60, "--lr", 0.3, "--patience", 2)
    assert code == 0 and "stopped, 2 validations without a better one, after" in out
    code, out, _ = command("train", text, *flags, "--steps", 100, "--target-loss", 5.4)
    assert code == 0 and "target reached after" in out
    code, out, _ = command("train", text, *flags, "--steps", 2, "--target-loss", 0.001)
    assert code == 1 and "done after 2 steps" in out


def test_what_stays_not_finite_ends_with_one_line(command, text):
    code, _, err = command(
        "train", text, *TINY, "--steps", 50, "--lr", "1e30", "--clip", "1e30", "--warmup", 0, "--out", "r"
    )
    assert code == 1
    *skipped, last = err.splitlines()
    assert len(skipped) <= 3 and all(line.startswith("warning: step ") for line in skipped)
    assert (
        "so training stopped; no checkpoint was saved before. Begin again with a lower learning rate" in last
    )


def test_an_end_that_a_text_spells_is_told(command):
    Path("stories.txt").write_text("um dia\n<|endoftext|>\noutro dia <|endoftext|>\n" * 3)
    code, out, err = command("train", "stories.txt", *TINY, "--steps", 2, "--out", "r")
    assert code == 0 and "files read as text, utf-8: 1; documents in them: 4" in out
    assert err.startswith("warning: stories.txt: <|endoftext|> is spelt 3 times, which is learnt")
    assert command("train", "--resume", "--out", "r", "--steps", 3)[0] == 0
    assert command("evaluate", "r")[0] == 0


def test_copies_are_in_one_part_alone(command):
    for name, text in (("a", b"um dia " * 30), ("b", b"outro " * 30), ("c", b"um dia " * 30)):
        Path(f"{name}.txt").write_bytes(text)
    flags = (*TINY, "--steps", 2, "--split", "0.4,0.3,0.3", "--out", "r")
    code, out, _ = command("train", "a.txt", "b.txt", "c.txt", *flags)
    assert code == 0 and "the same text several times: a.txt, c.txt" in out
    # a.txt, b.txt, and what c.txt repeats, with an end of text behind each: a part begins with a document
    assert "tokens: 211 for training, 181 for validation, 0 for testing" in out
    assert "211 tokens are left out, as the part before holds their document too" in out
    assert "the text that it was trained on (there is no test part)" in command("evaluate", "r")[1]
