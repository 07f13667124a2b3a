"""Hugging Face folders written and read back, and every way in which one can be wrong."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npgpt.engine.model import GPT, GPTConfig
from npgpt.interop.huggingface import read_pretrained, write_pretrained
from npgpt.text.tokenizer import ByteTokenizer

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 257}


@pytest.fixture
def folder(tmp_path):
    write_pretrained(tmp_path / "m", GPT(GPTConfig(**SMALL), seed=1), ByteTokenizer())
    return tmp_path / "m"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("bias", [True, False])
def test_what_was_written_comes_back(tmp_path, bias):
    model = GPT(GPTConfig(**SMALL, bias=bias, dropout=0.1, layer_norm_epsilon=1e-6), seed=3)
    write_pretrained(tmp_path, model, ByteTokenizer())
    again, tokenizer = read_pretrained(tmp_path)
    assert again.config == model.config
    assert isinstance(tokenizer, ByteTokenizer)
    assert again.params.keys() == model.params.keys()
    np.testing.assert_array_equal(again.flat_params, model.flat_params)
    assert "transformer.h.1.attn.c_attn.bias" in load_file(tmp_path / "model.safetensors")


def test_config_is_what_others_need(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["n_ctx"] == config["n_positions"] == 6
    assert config["bos_token_id"] == config["eos_token_id"] == 256 < config["vocab_size"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 256
    header = (folder / "model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"] == {
        "format": "pt"
    }


def test_old_names_are_read(folder):
    def as_gpt2_once_was(tensors):
        bare = {name.removeprefix("transformer."): a for name, a in tensors.items()}
        bare |= {"h.0.attn.bias": np.ones((1, 1, 6, 6), np.float32)}
        return bare | {"h.0.attn.masked_bias": np.float32([-1e4]), "lm_head.weight": bare["wte.weight"]}

    before, _ = read_pretrained(folder)
    edit_tensors(folder, as_gpt2_once_was)
    after, _ = read_pretrained(folder)
    np.testing.assert_array_equal(after.flat_params, before.flat_params)


def test_half_precision_is_read(folder):
    edit_tensors(folder, lambda tensors: {name: a.astype(np.float16) for name, a in tensors.items()})
    assert read_pretrained(folder)[0].flat_params.dtype == np.float32


def test_all_faults_of_tensors_are_told_at_once(folder):
    def spoil(tensors):
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.extra"] = np.zeros(1, np.float32)
        tensors["transformer.wpe.weight"] = np.zeros((7, 8), np.float32)
        tensors["transformer.h.0.ln_1.bias"] = np.zeros(8, np.int32)

    edit_tensors(folder, spoil)
    with pytest.raises(ValueError) as error:
        read_pretrained(folder)
    for fault in (
        "ln_f.bias is missing",
        "extra does not belong",
        "wpe.weight must have shape (6, 8), got (7, 8)",
        "h.0.ln_1.bias must be one of F16, F32, F64, got I32",
    ):
        assert fault in str(error.value)


def test_an_untied_head_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors | {"lm_head.weight": np.zeros((257, 8), np.float32)})
    with pytest.raises(ValueError, match=r"lm_head.weight must equal wte.weight"):
        read_pretrained(folder)


def test_biases_that_should_not_be_are_refused(folder):
    def add(tensors):
        tensors["transformer.ln_f.bias"] += 1

    edit_tensors(folder, add)
    edit_config(folder, npgpt={"bias": False})
    with pytest.raises(ValueError, match=r"ln_f.bias must be zero"):
        read_pretrained(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "llama"}, "model_type must be 'gpt2', got 'llama'"),
        ({"activation_function": "relu"}, "activation_function must be 'gelu_new'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        ({"n_inner": 5}, r"n_inner must be 4 \* n_embd, got 5"),
        ({"n_layer": "two"}, "n_layer must be a number, got 'two'"),
        ({"n_layer": 10**9}, "1000000000 layers, but only 28 tensors"),
        ({"n_embd": 10**9}, "wte.weight must have shape"),  # and no memory is taken for it
        ({"n_head": 3}, "n_head"),
        ({"n_positions": 0}, "at least 1"),
    ],
)
def test_configs_that_are_not_ours_are_refused(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(ValueError, match=message):
        read_pretrained(folder)


def test_broken_files_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    for broken in (b"", weights[:100], b"\xff" * 64, weights[:-4]):
        (folder / "model.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match="must be a safetensors file"):
            read_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold model\.safetensors"):
        read_pretrained(folder)
    (folder / "config.json").write_text("[")
    with pytest.raises(ValueError, match="must be JSON"):
        read_pretrained(folder)


def test_a_folder_with_another_tokenizer_gives_a_model_that_takes_ids(folder):
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": []}}')
    assert read_pretrained(folder)[1] is None
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    assert read_pretrained(folder)[1] is None
