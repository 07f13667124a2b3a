"""A state_dict as safetensors, there and back, and what is said where it does not tell enough."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npgpt
from npgpt.engine.config import Rope, engine_config
from npgpt.interop.pytorch import read_checkpoint, read_state_dict, write_state_dict

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 31}


@pytest.mark.parametrize(
    "family",
    [
        {},
        {"engine": "gpt"},
        {"engine": "gpt-3", "window": 3},
        {"bias": False},
        {"activation": "gelu"},
        {"engine": "llama"},
        {"engine": "llama", "tied": False, "n_kv_head": 1, "rope": Rope(500.0, "linear", 2.0)},
    ],
    ids=str,
)
def test_what_was_written_comes_back(rng, tmp_path, family):
    model = npgpt.GPT(engine_config(**{"engine": "gpt-2"} | SMALL | family, dropout=0.2))
    with model.edit():
        model.flat_params[...] = rng.standard_normal(model.num_params)
    write_state_dict(tmp_path / "state.safetensors", model)
    again = npgpt.load(tmp_path / "state.safetensors")
    assert again.config == model.config and again.tokenizer is None
    np.testing.assert_array_equal(again.flat_params, model.flat_params)
    head = load_file(tmp_path / "state.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(head, model.params["wte.weight" if model.config.tied else "lm_head.weight"])


def test_heads_must_be_told_where_the_file_does_not(rng, tmp_path):
    model, path = npgpt.GPT(npgpt.GPTConfig(**SMALL)), tmp_path / "state.safetensors"
    write_state_dict(path, model)
    save_file(load_file(path), path)  # without our metadata
    with pytest.raises(ValueError, match=r"does not tell n_head; give it: load\(path, n_head=12\)"):
        npgpt.load(path)
    again = npgpt.load(path, n_head=2, dropout=0.1)
    assert again.config == npgpt.GPTConfig(**SMALL, dropout=0.1)
    np.testing.assert_array_equal(again.flat_params, model.flat_params)


def test_of_llama_the_context_and_the_positions_must_be_told_too(rng, tmp_path):
    sizes = SMALL | {"n_kv_head": 1, "rope": Rope(500.0), "tied": False, "attention_bias": True}
    model, path = npgpt.GPT(engine_config("llama", **sizes), seed=3), tmp_path / "state.safetensors"
    write_state_dict(path, model)
    save_file(load_file(path), path)
    with pytest.raises(
        ValueError, match=r"does not tell block_size, rope; give them: load\(path, block_size=2048"
    ):
        npgpt.load(path, n_head=2)
    for wrong in (3, "2", 0):
        with pytest.raises(ValueError, match="n_head must fit 8 rows of queries and 4 of keys"):
            npgpt.load(path, n_head=wrong, block_size=6, rope=Rope(500.0))
    again, ids = npgpt.load(path, n_head=2, block_size=6, rope=Rope(500.0)), [[1, 2, 3]]
    assert again.config.K == 1 and not again.config.tied
    np.testing.assert_array_equal(again.logits(ids), model.logits(ids))


def test_nanogpt_in_a_compiled_model(rng, tmp_path):
    """Its linear layers are (out, in), and torch.compile puts a prefix before all names."""
    model = npgpt.GPT(npgpt.GPTConfig(**SMALL, bias=False, activation="gelu"))
    linear = {n: w.ndim == 2 and not n.startswith("w") for n, w in model.params.items()}
    state = {
        f"_orig_mod.transformer.{n}": np.ascontiguousarray(w.T if linear[n] else w)
        for n, w in model.params.items()
    }
    save_file(state, tmp_path / "nano.safetensors")
    again = npgpt.load(tmp_path / "nano.safetensors", n_head=2)
    assert again.config == model.config
    np.testing.assert_array_equal(again.flat_params, model.flat_params)


@pytest.mark.parametrize(
    "note", ["[", "7", '{"n_layer": 0}', '{"depth": 3}', '{"n_layer": "2"}', "[" * 10**5]
)
def test_a_config_that_is_none_is_refused(tmp_path, note):
    path = tmp_path / "state.safetensors"
    write_state_dict(path, npgpt.GPT(npgpt.GPTConfig(**SMALL)))
    save_file(load_file(path), path, metadata={"npgpt": note})
    with pytest.raises(ValueError, match="npgpt in its metadata must be a GPTConfig"):
        read_state_dict(path)


def test_other_tensors_are_refused(tmp_path):
    save_file({"encoder.weight": np.zeros((2, 2), np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"must hold the tensors of a GPT, got encoder\.weight"):
        read_state_dict(tmp_path / "x.safetensors", n_head=1)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        npgpt.load(tmp_path / "x.safetensors", n_head=1)


def test_fields_are_for_state_dicts_alone(tmp_path):
    with pytest.raises(
        ValueError, match=r"load: n_head must be left out, but for a \.safetensors or \.pt file"
    ):
        npgpt.load(tmp_path, n_head=2)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="n_head must be left out"):
        npgpt.load(tmp_path / "m.gguf", n_head=2)


def test_a_pickle_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "ckpt.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a pickle, which torch alone may open: pip install torch"):
        read_checkpoint(tmp_path / "ckpt.pt")
