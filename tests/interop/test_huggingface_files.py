"""Hugging Face folders written and read back, and every way in which one can be wrong."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npgpt.engine.config import GPTConfig, Rope
from npgpt.engine.model import GPT
from npgpt.interop.huggingface import read_pretrained, write_pretrained
from npgpt.text.tokenizer import BPETokenizer, ByteTokenizer

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


LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "rope": Rope()}
FAMILY = [
    {},
    {"scale_attn_weights": False},
    {"post_norm": True},
    {"activation": "gelu"},
    {"window": 3},
    {"window": 3, "n_layer": 3},
    {"window": 9, "n_layer": 1, "scale_attn_weights": False},
    LLAMA | {"head_size": 4, "n_kv_head": 1, "n_inner": 32},
    LLAMA | {"head_size": 6, "tied": False},
    LLAMA | {"head_size": 4, "rope": Rope(5e5, "llama3", 8.0, 1.0, 4.0, 16)},
    LLAMA | {"head_size": 4, "rope": Rope(1e5, "linear", 2.0)},
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", FAMILY, ids=str)
def test_what_was_written_comes_back(rng, tmp_path, family, bias):
    config = GPTConfig(**SMALL | {"n_embd": 10} | family, bias=bias, dropout=0.1, layer_norm_epsilon=1e-6)
    model = GPT(config, seed=3)
    with model.edit():
        model.flat_params[...] = rng.standard_normal(model.num_params)
    write_pretrained(tmp_path, model, ByteTokenizer())
    again = read_pretrained(tmp_path)
    assert again.config == model.config
    assert isinstance(again.tokenizer, ByteTokenizer)
    assert again.tensors.keys() == model.params.keys()
    np.testing.assert_array_equal(again.weights, model.flat_params)


def test_biases_are_always_in_the_file(tmp_path):
    write_pretrained(tmp_path, GPT(GPTConfig(**SMALL, bias=False)))
    assert "transformer.h.0.attn.c_attn.bias" in load_file(tmp_path / "model.safetensors")


def in_shards(folder, count=3):
    """The folder's weights as Transformers cuts a large file -> the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for n in range(count):
        file = f"model-{n + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[n::count])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_read(folder):
    before = read_pretrained(folder)
    in_shards(folder)
    after = read_pretrained(folder)
    np.testing.assert_array_equal(after.weights, before.weights)


@pytest.mark.parametrize(
    "file, message",
    [
        ("../model.safetensors", r"a shard must be a file of the folder, got '../model.safetensors'"),
        ("/etc/passwd", "a shard must be a file of the folder"),
        ("..", "a shard must be a file of the folder"),
        ("", "a shard must be a file of the folder"),
        ("a\\b", "a shard must be a file of the folder"),
        ("gone.safetensors", "there is no shard 'gone.safetensors'"),
        ("a\0b", "there is no shard"),
        ("config.json", r"a shard must be a \.safetensors file, got 'config.json'"),
        (7, "weight_map must map names of tensors to names of files"),
        ("model-00002-of-00003.safetensors", r"transformer.wte.weight is missing"),  # it is in the first
    ],
)
def test_indices_that_lie_are_refused(folder, file, message):
    index = in_shards(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder.parent / "model.safetensors")
    index["weight_map"]["transformer.wte.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        read_pretrained(folder)


OTHER_PATTERNS = [
    [[["local", "global"], 1]],
    [[["local"], 2]],
    [[["global", "local"], 2]],
    [[[], 10**12]],
    [["global", 10**12]],
    [[["global"], 10**12]],
    [[["global"], "2"]],
    [],
    "global",
    5,
]


@pytest.mark.parametrize("types", OTHER_PATTERNS)
def test_other_patterns_of_windows_are_refused(tmp_path, types):
    write_pretrained(tmp_path, GPT(GPTConfig(**SMALL, window=3)))
    edit_config(tmp_path, attention_types=types)
    with pytest.raises(ValueError, match="attention_types must be 2 layers that are global, or global and"):
        read_pretrained(tmp_path)


def test_without_windows_the_context_is_the_window(tmp_path):
    write_pretrained(tmp_path, GPT(GPTConfig(**SMALL, window=3)))
    edit_config(tmp_path, attention_types=[[["global"], 2]])
    assert read_pretrained(tmp_path).config.window == SMALL["block_size"]


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

    before = read_pretrained(folder)
    edit_tensors(folder, as_gpt2_once_was)
    after = read_pretrained(folder)
    np.testing.assert_array_equal(after.weights, before.weights)


def test_half_precision_is_read(folder):
    edit_tensors(folder, lambda tensors: {name: a.astype(np.float16) for name, a in tensors.items()})
    assert read_pretrained(folder).weights.dtype == np.float32


def test_bfloat16_is_read(folder):
    """Written by hand, as NumPy does not have it: the upper halves of float32."""
    before = read_pretrained(folder)
    before.weights.view(np.uint32)[...] &= 0xFFFF0000
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, w in before.tensors.items():
        bits = (w.view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(bits)]
        header[f"transformer.{name}"] = {"dtype": "BF16", "shape": w.shape, "data_offsets": offsets}
        data += bits
    header = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    np.testing.assert_array_equal(read_pretrained(folder).weights, before.weights)


def test_a_name_that_is_there_twice_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors | {"ln_f.bias": np.zeros(8, np.float32)})
    with pytest.raises(ValueError, match=r"ln_f\.bias is there twice"):
        read_pretrained(folder)


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
        "h.0.ln_1.bias must be one of F16, BF16, F32, F64, got I32",
    ):
        assert fault in str(error.value)


def test_an_untied_head_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors | {"lm_head.weight": np.zeros((257, 8), np.float32)})
    with pytest.raises(ValueError, match=r"lm_head.weight must equal transformer.wte.weight"):
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
        ({"model_type": "qwen2"}, "model_type must be one of gpt2, openai-gpt, gpt_neo, llama, got 'qwen2'"),
        ({"activation_function": "relu"}, "activation_function must be one of gelu.*, got 'relu'"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"n_inner": 5}, r"n_inner must be 4 \* n_embd, got 5"),
        ({"n_layer": "two"}, "n_layer must be a number, got 'two'"),
        ({"n_layer": 10**9}, "1000000000 layers, but only 28 tensors"),
        ({"n_embd": 10**9}, "wte.weight must have shape"),  # and no memory is taken for it
        ({"n_head": 3}, "n_head"),
        ({"n_positions": 0}, "at least 1"),
        ({"num_attention_heads": 4}, "n_head and num_attention_heads must be equal, got 2 and 4"),
        ({"num_hidden_layers": 3}, "n_layer and num_hidden_layers must be equal, got 2 and 3"),
        ({"hidden_size": None}, "n_embd and hidden_size must be equal, got 8 and None"),
        (
            {"max_position_embeddings": 7},
            "n_positions and max_position_embeddings must be equal, got 6 and 7",
        ),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx must be False, got True",
        ),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config must be left out or empty, got {'bits': 4}",
        ),
        ({"per_layer_config": {"1": {"n_head": 4}}}, "per_layer_config must be left out or empty"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads must be left out or empty"),
        ({"configuration_files": ["config.5.0.0.json"]}, "configuration_files must be left out or empty"),
    ],
)
def test_configs_that_are_not_ours_are_refused(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(ValueError, match=message):
        read_pretrained(folder)


@pytest.mark.parametrize("value", [{"bad_words_ids": []}, {"min_length": 0, "typical_p": 1.0}, {"top_k": 5}])
def test_settings_of_generation_that_do_nothing_or_are_the_callers(folder, value):
    (folder / "generation_config.json").write_text(json.dumps(value))
    assert read_pretrained(folder).config.n_head == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size must be left out, got 3"),
        ({"suppress_tokens": [7]}, r"suppress_tokens must be left out, got \[7\]"),
        ({"forced_eos_token_id": 0}, "forced_eos_token_id must be left out, got 0"),
        ({"typical_p": 0.9}, "typical_p must be 1, got 0.9"),
    ],
)
def test_settings_of_generation_that_are_not_ours_are_refused(folder, change, message):
    (folder / "generation_config.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match=f"generation_config.json: {message}"):
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
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {"a": 0}}}')
    with pytest.warns(UserWarning, match=r"tokenizer\.json: must hold a BPE model; the model takes ids only"):
        assert read_pretrained(folder).tokenizer is None
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    assert read_pretrained(folder).tokenizer is None


def test_any_tokenizer_travels_with_its_model(tmp_path):
    bpe = BPETokenizer.train([b"um dois um dois"], 260)
    model = GPT(GPTConfig(**SMALL | {"vocab_size": 260}), seed=1)
    write_pretrained(tmp_path, model, bpe)
    assert read_pretrained(tmp_path).tokenizer == bpe
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 259
    BPETokenizer.train([b"mar sol mar sol"], 260).save(tmp_path, 6)  # as many tokens, but others
    with pytest.raises(ValueError, match="the tokenizer must be the one that the model was trained with"):
        read_pretrained(tmp_path)
    BPETokenizer.train([b"um dois um dois"], 261).save(tmp_path, 6)
    with pytest.raises(ValueError, match="must have at most the model's 260 tokens, got 261"):
        read_pretrained(tmp_path)
