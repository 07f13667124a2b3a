"""`npgpt export` and save_pretrained: the model that is read back writes the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import npgpt
from npgpt.engine.config import Rope
from npgpt.interop.gguf import TYPES, read_gguf
from npgpt.text.load import tokenizer_of
from tests.commands.helpers import nothing_written, refused
from tests.models import LLAMA, model_with_roles, random_model


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_an_exported_model_writes_the_same(command, run, to):
    code, out, _ = command("export", run, "--to", to, "-o", "out.gguf" if to == "gguf" else "out")
    assert code == 0 and out.startswith("out") and out.rstrip().endswith("MB")
    how = ["abc", "--max-new-tokens", 30, "--seed", 1, "--ignore-eos"]
    assert command("generate", out.split(":")[0], *how)[1] == command("generate", run, *how)[1]


def test_export_says_who_reads_a_gguf_file(command, run, tmp_path):
    """Transformers asks for the context; of GPT's and GPT-3's mathematics libnpgpt is the only reader."""
    context = npgpt.load(run).config.block_size
    said = f"from_pretrained(FOLDER, gguf_file='out.gguf', n_positions={context})"
    assert said in command("export", run, "--to", "gguf", "-o", "out.gguf")[2]
    assert "n_positions" not in command("export", run, "--to", "hf", "-o", "out")[2]
    for name, fields in {"1024": {"block_size": 1024}, "gpt": {"post_norm": True}}.items():
        shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16, "vocab_size": 257}
        npgpt.GPT(npgpt.GPTConfig(**shape | fields)).save_pretrained(tmp_path / name)
        error = command("export", tmp_path / name, "--to", "gguf", "-o", f"{name}.gguf")[2]
        assert error == (
            "" if name == "1024" else "gpt.gguf is for libnpgpt alone; --to hf is for Transformers\n"
        )


def test_what_export_refuses(command, run):
    refused(command("export", run, "--to", "onnx", "-o", "out"), "must be gguf or hf or html, got onnx")
    refused(
        command("export", run, "--to", "gguf", "--type", "q3", "-o", "out"),
        "must be f32 or f16 or q8_0 or q4_0 or q4_1 or q6_k or q4_k",
    )
    refused(command("export", run, "--to", "hf", "--type", "f16", "-o", "out"), "--type is for gguf")
    refused(command("export", run, "--to", "gguf", "-o", run), "run: is there already")
    refused(command("export", run, "--to", "gguf", "-o", "none/out"), "none: No such folder")
    refused(
        command("export", "no/such/run", "--to", "gguf", "-o", "out"),
        "no/such/run: No such file or directory",
    )
    assert nothing_written("text.txt", "run")


def test_a_page_is_whole_or_not_there(command, run, monkeypatch):
    """Its content is tests/parity/test_local_page.py's."""
    code, out, error = command("export", run, "--to", "html", "-o", "out.html")
    assert code == 0 and out.startswith("out.html: ") and error == ""
    command("export", run, "--to", "html", "--type", "q4_0", "-o", "small.html")
    assert Path("small.html").stat().st_size < Path("out.html").stat().st_size
    refused(command("export", run, "--to", "html", "-o", "out.html"), "out.html: is there already")
    random_model(vocab_size=31).save_pretrained("mute")
    refused(
        command("export", "mute", "--to", "html", "-o", "x.html"), "a page needs a model with a tokenizer"
    )
    monkeypatch.setattr("npgpt.server.local._write_element", lambda *_: open("no/such/file"))
    refused(command("export", run, "--to", "html", "-o", "x.html"), "no/such/file: No such file or directory")
    assert nothing_written("text.txt", "run", "out.html", "small.html", "mute")


def test_the_page_says_when_a_template_of_others_keeps_it_from_chatting(command, tmp_path):
    model = model_with_roles()
    vocabulary = replace(model.tokenizer.vocabulary, chat_template="{{ messages[0].content }}")
    model.tokenizer = tokenizer_of(vocabulary)
    model.save_pretrained(tmp_path / "other")
    code, _, error = command("export", tmp_path / "other", "--to", "html", "-o", "x.html")
    assert code == 0 and error.startswith("the page cannot chat: ") and error.count("\n") == 1


def test_a_saved_model_comes_back(tmp_path):
    model = npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=257), seed=4)
    model.save_pretrained(tmp_path / "saved")
    again = npgpt.load(tmp_path / "saved")
    assert isinstance(again, npgpt.GPT) and again.config == model.config
    assert again.generate("a", temperature=0) == model.generate("a", temperature=0)


@pytest.mark.parametrize("shape", [{}, LLAMA | {"n_inner": 256}], ids=["gpt-2", "llama"])
@pytest.mark.parametrize("type", TYPES)
def test_every_type_of_either_shape_is_written_and_read(command, type, shape):
    model = random_model(**{"n_embd": 256, "n_layer": 2} | shape)
    model.save_pretrained("model")
    code, out, _ = command("export", "model", "--to", "gguf", "--type", type, "-o", "m.gguf")
    assert code == 0 and out.startswith("m.gguf: ")
    again = npgpt.GPT.of(read_gguf("m.gguf"))
    ids = np.arange(40)[None]
    error = np.abs(again.logits(ids) - model.logits(ids)).mean() / model.logits(ids).std()
    most = {"f32": 1e-6, "f16": 2e-3, "q8_0": 3e-2, "q6_k": 0.15}.get(type, 0.6)
    assert error <= most and (type == "f32" or error > most / 100)
    bits = 8 * Path("m.gguf").stat().st_size / model.num_params
    stated = {"f32": 32, "f16": 16, "q8_0": 8.5, "q6_k": 6.5, "q4_1": 5, "q4_0": 4.5, "q4_k": 4.5}[type]
    assert stated < bits < stated + 2


def test_export_says_what_transformers_does_not_read(command):
    for name, rope in {"plain": Rope(), "long": Rope(type="linear", factor=2.0)}.items():
        random_model(**LLAMA | {"rope": rope}).save_pretrained(name)
        error = command("export", name, "--to", "gguf", "-o", f"{name}.gguf")[2]
        said = "Transformers does not read from long.gguf how positions are scaled; --to hf is for it\n"
        assert error == (said if name == "long" else "")
