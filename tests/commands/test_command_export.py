"""`npgpt export` and save_pretrained: the model that is read back writes the same."""

import pytest

import npgpt
from tests.commands.helpers import nothing_written, refused


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
    refused(command("export", run, "--to", "onnx", "-o", "out"), "must be gguf or hf, got onnx")
    refused(
        command("export", run, "--to", "gguf", "--type", "q3", "-o", "out"),
        "must be f32 or f16 or q8_0 or q4_0",
    )
    refused(command("export", run, "--to", "hf", "--type", "f16", "-o", "out"), "--type is for gguf")
    refused(command("export", run, "--to", "gguf", "-o", run), "run: is there already")
    refused(command("export", run, "--to", "gguf", "-o", "none/out"), "none: No such folder")
    refused(
        command("export", "no/such/run", "--to", "gguf", "-o", "out"),
        "no/such/run: No such file or directory",
    )
    assert nothing_written("text.txt", "run")


def test_a_saved_model_comes_back(tmp_path):
    model = npgpt.GPT(npgpt.GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=257), seed=4)
    model.save_pretrained(tmp_path / "saved")
    again = npgpt.load(tmp_path / "saved")
    assert isinstance(again, npgpt.GPT) and again.config == model.config
    assert again.generate("a", temperature=0) == model.generate("a", temperature=0)
